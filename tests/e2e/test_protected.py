"""A daemon behind TLS and passwords, as a real Prometheus scrapes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bcrypt

from tests.support.daemons import Daemon, until
from tests.support.prometheus import Prometheus
from tests.support.servers import Server
from tests.web import certificates

PASSWORD = "a-password-of-prometheus"


def test_prometheus_scrapes_with_a_certificate_and_a_password(server: Server, tmp_path: Path) -> None:
    authority = certificates.authority(tmp_path)
    own = certificates.server(tmp_path, authority)
    prometheus = certificates.client(tmp_path, authority, "prometheus", "DNS:prometheus.example")
    web_yml = tmp_path / "web.yml"

    def protect(password: str) -> None:
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode()
        web_yml.write_text(
            f"tls_server_config:\n  cert_file: {own.certificate.name}\n  key_file: {own.key.name}\n"
            f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {authority.certificate.name}\n"
            f"  client_allowed_sans: [prometheus.example]\n  min_version: TLS13\n"
            f"basic_auth_users:\n  prometheus: {hashed}\n"
        )

    protect(PASSWORD)
    with Daemon(server.url, web={"config_file": str(web_yml)}) as daemon:
        assert daemon.url.startswith("https://")
        job: dict[str, Any] = {
            "job_name": "cbq-exporter",
            "scheme": "https",
            "static_configs": [{"targets": [urlsplit(daemon.url).netloc]}],
            "basic_auth": {"username": "prometheus", "password": PASSWORD},
            "tls_config": {
                "ca_file": str(authority.certificate),
                "cert_file": str(prometheus.certificate),
                "key_file": str(prometheus.key),
            },
        }
        nobody = {**job, "job_name": "nobody", "basic_auth": {"username": "prometheus", "password": "guessed"}}
        stranger = {**job, "job_name": "stranger", "tls_config": {"ca_file": str(authority.certificate)}}
        every = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        with Prometheus({"global": every, "scrape_configs": [job, nobody, stranger]}) as scraper:
            scraper.wait_for('cbq_up{job="cbq-exporter"} == 1')
            scraper.wait_for('up{job="nobody"} == 0')
            scraper.wait_for('up{job="stranger"} == 0')
            assert {sample.labels["job"] for sample in scraper.query("cbq_up")} == {"cbq-exporter"}
            protect("another")
            scraper.wait_for('up{job="cbq-exporter"} == 0')
            web_yml.write_text("basic_auth_users: [")
            until(lambda: "the web config cannot be used" in daemon.log())
            protect(PASSWORD)
            scraper.wait_for('up{job="cbq-exporter"} == 1')
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


def test_a_daemon_does_not_start_with_a_bad_web_config(server: Server, tmp_path: Path) -> None:
    web_yml = tmp_path / "web.yml"
    web_yml.write_text("tls_server_config: {cert_file: none.pem, key_file: none.key}")
    daemon = Daemon(server.url, folder=tmp_path, web={"config_file": str(web_yml)})
    daemon.launch()
    assert daemon.wait() == 1
    assert f"{tmp_path}/none.pem: tls_server_config.cert_file: found an error when reading it" in daemon.log()
    assert "Traceback" not in daemon.log()
