"""Certificates of destinations: read when the configuration is, so that nothing is sent before somebody notices."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cbq_exporter.config import DestinationConfig, TlsConfig, check, warnings
from cbq_exporter.config.models import Config
from tests.config.conftest import Load
from tests.generated import ROOT
from tests.web import certificates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """authority.pem, client.pem with client.key, locked.key (the same with a password), both.pem, and no.pem."""
    folder = tmp_path_factory.mktemp("pem")
    authority = certificates.authority(folder)
    client = certificates.client(folder, authority, "client", "DNS:a")
    (folder / "both.pem").write_bytes(client.certificate.read_bytes() + client.key.read_bytes())
    (folder / "no.pem").write_text("nothing")
    command = ["openssl", "pkey", "-in", str(client.key), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(folder / "locked.key")], check=True, capture_output=True, timeout=60)
    return folder


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"ca_file": "authority.pem"}, []),
        ({"ca_file": "client.pem", "cert_file": "client.pem", "key_file": "client.key"}, []),
        ({"cert_file": "both.pem"}, []),
        ({"cert_file": "client.pem"}, ["cert_file"]),
        ({"key_file": "client.key"}, ["key_file"]),
        ({"cert_file": "client.pem", "key_file": "authority.key"}, ["cert_file"]),
        ({"cert_file": "client.pem", "key_file": "locked.key"}, ["cert_file"]),
        ({"cert_file": "client.pem", "key_file": "gone.key"}, ["key_file"]),
        ({"cert_file": ".", "ca_file": "gone.pem"}, ["ca_file", "cert_file"]),
        ({"cert_file": "no.pem", "ca_file": "no.pem"}, ["ca_file", "cert_file"]),
        ({"ca_file": "client.key"}, ["ca_file"]),
    ],
)
def test_certificates(folder: Path, files: dict[str, str], wrong: list[str]) -> None:
    tls = TlsConfig(**{name: folder / file for name, file in files.items()})
    problems = check(Config(destinations=(DestinationConfig(name="a", match="a"), _entry(tls))))
    assert [problem.path for problem in problems] == [f"destinations[1].tls.{name}" for name in wrong]
    assert not any("BEGIN" in f"{problem.found}{problem.allowed}" for problem in problems)


def test_the_example_of_the_page_loads(loaded: Load, folder: Path) -> None:
    text = (ROOT / "docs" / "delivery.md").read_text()
    example = re.findall(r"```yaml\n(destinations:.*?)```", text, re.DOTALL)[0]
    for name, file in (
        ("partner.pem", "client.pem"),
        ("partner.key", "client.key"),
        ("internal-ca.pem", "authority.pem"),
    ):
        example = example.replace(f"/etc/cbq-exporter/{name}", str(folder / file))
    config = loaded(example)
    assert [entry.name for entry in config.destinations] == ["partner", "legacy", "internal"]
    assert warnings(config) == ()


def _entry(tls: TlsConfig) -> DestinationConfig:
    return DestinationConfig(name="b", match="b", tls=tls)
