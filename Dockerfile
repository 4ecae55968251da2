# The daemon, as nobody in particular, on a root that may be read-only, without a shell. With a store elsewhere it writes
# nothing; the embedded one keeps its data in /var/lib/cbq-exporter: mount a volume there.
#
#   docker build --build-arg CBQ_REVISION=$(git rev-parse HEAD) -t cbq-exporter .
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg CBQ_REVISION=$(git rev-parse HEAD) …
#   docker run --read-only -p 127.0.0.1:9847:9847 -v cbq-data:/var/lib/cbq-exporter cbq-exporter
#
# docs/install.md tells the rest. podman and buildah keep the health check only with --format docker.

# The index of all architectures as it was published on 2026-08-04. A newer one:
#   docker buildx imagetools inspect debian:bookworm-slim --format '{{.Manifest.Digest}}'
# Any Debian 12 will do: --build-arg BASE=registry.example/debian:bookworm-slim
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1
# What Debian has mended since the base was made, too: its C library goes into the image.
RUN apt-get -q update \
    && DEBIAN_FRONTEND=noninteractive apt-get -qy upgrade \
    && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends \
        binutils ca-certificates netbase python3 python3-venv tzdata
WORKDIR /src
# What changes least comes first.
COPY requirements/run.lock requirements/
RUN python3 -m venv /opt/cbq-exporter \
    && /opt/cbq-exporter/bin/pip install -q --require-hashes -r requirements/run.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY docs docs
COPY cbq_exporter cbq_exporter
ARG CBQ_REVISION=
RUN /opt/cbq-exporter/bin/pip install -q --no-deps --no-build-isolation . \
    && /opt/cbq-exporter/bin/pip uninstall -qy pip setuptools \
    # Debugging symbols, and the sources that extensions were compiled from.
    && find /opt/cbq-exporter -name '*.so*' -exec strip --strip-unneeded {} + \
    && find /opt/cbq-exporter '(' -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.h' ')' -delete
COPY deploy/container deploy/container
RUN deploy/container/make-root.sh /root-of-image

FROM scratch
COPY --from=build /root-of-image /
ENV PATH=/opt/cbq-exporter/bin:/usr/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    CBQ_CONFIG=/etc/cbq-exporter/config.yaml
USER 10001:10001
WORKDIR /var/lib/cbq-exporter
VOLUME /var/lib/cbq-exporter
EXPOSE 9847
STOPSIGNAL SIGTERM
# Whether its loops are alive, not whether Redis is: a restart would not bring Redis back.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["cbq-exporter", "healthcheck"]
ENTRYPOINT ["cbq-exporter"]
CMD ["serve"]
ARG CBQ_REVISION=
LABEL org.opencontainers.image.title="cbq-exporter" \
    org.opencontainers.image.description="Delivers, watches and heals Redis-backed queues of HTTP callbacks" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.source="https://github.com/cbq-exporter/cbq-exporter" \
    org.opencontainers.image.documentation="https://github.com/cbq-exporter/cbq-exporter/blob/main/docs/install.md" \
    org.opencontainers.image.revision="${CBQ_REVISION}"
