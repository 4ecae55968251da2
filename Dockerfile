# The daemon, as nobody in particular, on a root that may be read-only. With a store elsewhere it writes nothing; the
# embedded one keeps its data in /var/lib/cbq-exporter: mount a volume there.
#
#   docker build -t cbq-exporter .
#   docker run -p 127.0.0.1:9847:9847 -v ./config.yaml:/etc/cbq-exporter/config.yaml:ro cbq-exporter

FROM python:3.13.7-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# What changes least comes first.
COPY requirements/run.lock requirements/
RUN python -m venv /opt/cbq-exporter \
    && /opt/cbq-exporter/bin/pip install --require-hashes -r requirements/run.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY cbq_exporter cbq_exporter
RUN /opt/cbq-exporter/bin/pip install --no-deps --no-build-isolation . \
    && /opt/cbq-exporter/bin/pip uninstall -y pip setuptools

FROM python:3.13.7-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/cbq-exporter cbq-exporter \
    && install -d -o cbq-exporter -g cbq-exporter /var/lib/cbq-exporter
COPY --from=build /opt/cbq-exporter /opt/cbq-exporter
ENV PATH=/opt/cbq-exporter/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER cbq-exporter
WORKDIR /var/lib/cbq-exporter
EXPOSE 9847
STOPSIGNAL SIGTERM
# Whether its loops are alive, not whether Redis is: a restart would not bring Redis back.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9847/-/healthy', timeout=4)"]
ENTRYPOINT ["cbq-exporter"]
CMD ["serve", "--config", "/etc/cbq-exporter/config.yaml"]
