# Two stages: one that builds wheels of what is locked and of this checkout, one that only runs them.
#
#   docker build -t coordinator .
#   docker run -p 8080:8080 -v coordinator-data:/data coordinator
#
# The image runs as a user without rights; /data holds the embedded log.  An application's code comes as a layer of its
# own (`FROM coordinator`, `COPY orders.py .`, `CMD ["--app", "orders:app"]`) or as a volume on /app.

FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /opt/coordinator
ENV PATH=/opt/coordinator/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY clients/python clients/python
COPY coordinator coordinator
RUN pip install --no-deps ./clients/python . && python -m compileall -q /opt/coordinator

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /app --create-home coordinator && install -d -o coordinator -g coordinator /data
COPY --from=build /opt/coordinator /opt/coordinator
# Listening on every interface is right in a container and wrong on a host, so the defaults stay with the image.
ENV PATH=/opt/coordinator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COORDINATOR_LOG__DATA_DIR=/data \
    COORDINATOR_LISTEN__HTTP=0.0.0.0:8080 \
    COORDINATOR_LISTEN__GRPC=0.0.0.0:9090 \
    COORDINATOR_LISTEN__TCP=0.0.0.0:7070
WORKDIR /app
USER coordinator
VOLUME /data
EXPOSE 8080 9090 7070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["coordinator", "serve"]
