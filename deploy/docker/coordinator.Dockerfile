# docker build -f deploy/docker/coordinator.Dockerfile -t hansa-coordinator .
# docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v hansa:/data -p 8443:8443 \
#     hansa-coordinator --address fl.example.org
# docker exec CONTAINER hansa party invite NAME
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/hansa \
    && /opt/hansa/bin/pip install --no-cache-dir -c constraints.txt '.[postgres,s3,otel]' \
    && /opt/hansa/bin/pip uninstall --yes pip

FROM python:3.12-slim-bookworm
RUN python -m pip uninstall --yes pip \
    && useradd --uid 10001 --home-dir /data --shell /usr/sbin/nologin hansa \
    && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=build /opt/hansa /opt/hansa
ENV PATH=/opt/hansa/bin:$PATH HANSA_HOME=/data PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 8443 9464
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["sh", "-c", "hansa coordinator status || exit 1"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["hansa", "coordinator", "start", "--metrics", "0.0.0.0:9464"]
