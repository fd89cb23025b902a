{{- /* What the pods of coordinator and agent have in common. Only Go's own template functions are used. */ -}}
{{- define "hansa.security" }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
{{- end }}
{{- define "hansa.container" }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: ["ALL"]
{{- end }}
{{- define "hansa.claim" }}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: ["ReadWriteOnce"]
        {{- if .storageClass }}
        storageClassName: {{ printf "%q" .storageClass }}
        {{- end }}
        resources:
          requests:
            storage: {{ printf "%q" .storage }}
{{- end }}
