# docker build -f deploy/docker/agent.Dockerfile -t hansa-agent .
# docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges -v hansa-agent:/data \
#     -v /srv/hansa:/srv/hansa:ro hansa-agent --token T --data tumours=/srv/hansa/rows.csv --allow logistic-regression
# Models of PyTorch need its wheel, too: --build-arg EXTRAS=otel,torch
FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=otel
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/hansa \
    && /opt/hansa/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && /opt/hansa/bin/pip uninstall --yes pip

FROM python:3.12-slim-bookworm
RUN python -m pip uninstall --yes pip \
    && useradd --uid 10001 --home-dir /data --shell /usr/sbin/nologin hansa \
    && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=build /opt/hansa /opt/hansa
ENV PATH=/opt/hansa/bin:$PATH HANSA_HOME=/data PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /data
EXPOSE 9465
# It is well as long as its metrics answer; whether it is connected is among them, and the coordinator's business, too.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9465/metrics', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["hansa", "agent", "start", "--metrics", "0.0.0.0:9465"]
