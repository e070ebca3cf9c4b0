# The image, in two stages: one builds a virtual environment from what is locked and from this checkout, the other only
# runs it and has no pip, no compiler and no source.
#
#   docker build -t coordinator .
#   docker run --init --read-only --tmpfs /tmp -p 8080:8080 -v coordinator:/var/lib/coordinator coordinator
#
# It runs as user 10001 and writes to /var/lib/coordinator (the embedded log, or with Kafka the view of finished commands)
# and /tmp, nowhere else.  It reads /app: a coordinator.toml, and an application's code as a layer of its own (`FROM
# coordinator`, `COPY orders.py .`, `CMD ["--app", "orders:app"]`) or as a volume.  More in deploy/README.md.

# For builds that repeat to the byte give the base by digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Dependencies first: this layer is kept until a lock changes.  Wheels only, so that no compiler is ever needed.
COPY requirements.lock deploy/requirements-build.lock ./
RUN python -m venv --without-pip /opt/coordinator \
    && pip install --require-hashes --only-binary :all: -r requirements-build.lock \
    && pip --python /opt/coordinator/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md ./
COPY clients/python clients/python
COPY coordinator coordinator
# Without build isolation, which would fetch a build backend that nothing has pinned; the one of the lock is here.
RUN pip wheel --no-build-isolation --no-deps --wheel-dir wheels ./clients/python . \
    && pip --python /opt/coordinator/bin/python install --no-index --no-deps wheels/*.whl \
    && pip --python /opt/coordinator/bin/python check

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="coordinator" \
      org.opencontainers.image.description="A networked saga coordinator over a distributed log" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 coordinator \
    && useradd --uid 10001 --gid coordinator --home-dir /app --no-create-home --shell /usr/sbin/nologin coordinator \
    && install -d /app \
    && install -d -o coordinator -g coordinator -m 0750 /var/lib/coordinator \
    && python -m pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel
COPY --from=build /opt/coordinator /opt/coordinator
# Every interface is right in a container and wrong on a host, so these defaults are the image's.  Variables beat the file:
# what a mounted coordinator.toml says under [listen] and log.data_dir does not count, set the variables instead.
ENV PATH=/opt/coordinator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    COORDINATOR_LOG__DATA_DIR=/var/lib/coordinator \
    COORDINATOR_LISTEN__HTTP=0.0.0.0:8080 \
    COORDINATOR_LISTEN__GRPC=0.0.0.0:9090 \
    COORDINATOR_LISTEN__TCP=0.0.0.0:7070
WORKDIR /app
# A number, since `runAsNonRoot` cannot tell who a name is.
USER 10001:10001
VOLUME /var/lib/coordinator
EXPOSE 8080 9090 7070
# The first one drains, a second one stops at once; both lose nothing.  The exec form below makes the daemon PID 1, so it
# is the daemon that gets them.
STOPSIGNAL SIGTERM
# Alive, not ready: one that replays, or waits for Kafka, must not be taken for broken.  -I -S starts Python in a third of the time.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-S", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["coordinator", "serve"]
