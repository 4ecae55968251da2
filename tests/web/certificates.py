"""Certificates for tests, made with the openssl program: an authority, servers and clients."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.skips import skip_or_fail


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


def authority(folder: Path, name: str = "authority") -> Pair:
    return _make(folder, name, None, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")


def server(folder: Path, by: Pair, name: str = "server") -> Pair:
    return _issued(folder, name, by, "subjectAltName=DNS:localhost,IP:127.0.0.1", "extendedKeyUsage=serverAuth")


def client(folder: Path, by: Pair, name: str, sans: str) -> Pair:
    """``sans`` as openssl writes them: ``DNS:a,IP:::1``."""
    return _issued(folder, name, by, f"subjectAltName={sans}", "extendedKeyUsage=clientAuth")


def _issued(folder: Path, name: str, by: Pair, *extensions: str) -> Pair:
    return _make(folder, name, by, "basicConstraints=critical,CA:FALSE", *extensions)


def _make(folder: Path, name: str, by: Pair | None, *extensions: str) -> Pair:
    """As strictly as Python checks it from 3.13 on: an authority says what its key is for, and others that they are
    none."""
    openssl = shutil.which("openssl")
    if openssl is None:
        skip_or_fail("the openssl command is needed to make certificates")
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(pair.certificate)]
    command += ["-CA", str(by.certificate), "-CAkey", str(by.key)] if by else []
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return pair
