"""Where the trusted certificate authorities are. The bundled libcurl does not know."""

from __future__ import annotations

import os

_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def default_ca_file() -> str | None:
    """The system's file, else certifi's. None leaves it to libcurl."""
    for path in _FILES:
        if os.path.isfile(path):
            return path
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()
