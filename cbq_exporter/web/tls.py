"""The server's TLS: certificates as their files are at the moment of each new connection."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from cbq_exporter.config.models import Config
from cbq_exporter.errors import ConfigError, Problem
from cbq_exporter.web import small_file, web_config
from cbq_exporter.web.web_config import CIPHERS, CURVES, MOST_BYTES, TlsConfig

_FILES = ("cert_file", "key_file", "client_ca_file")
_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_OLD = ("TLS10", "TLS11")
# Python's own choice for servers, in words that a level can be put before.
_USUAL_CIPHERS = "ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!AESCCM"


class Certificates:
    """Gives the context for a connection; it is built anew when the settings or the bytes of a file are others."""

    def __init__(self) -> None:
        self._made_of: tuple[TlsConfig, Mapping[str, bytes]] | None = None
        self._context: ssl.SSLContext | None = None

    def context(self, tls: TlsConfig) -> ssl.SSLContext:
        """Raises ConfigError where the files cannot be used."""
        contents = {name: _content(name, path) for name in _FILES if (path := getattr(tls, name)) is not None}
        made_of = (tls, contents)
        if self._context is None or self._made_of != made_of:
            self._context = None
            self._context = make_context(tls)
            # What was read before it was loaded: a change in between shows at the next connection.
            self._made_of = made_of
        return self._context


def check_web_config(config: Config) -> tuple[str, ...]:
    """Whether the file of ``web.config_file`` and those that it names can be used; returns its warnings.

    Raises ConfigError.
    """
    path = config.web.config_file
    if path is None:
        return ()
    file = web_config.read(path)
    if file.tls_server_config is not None:
        Certificates().context(file.tls_server_config)
    return web_config.warnings(file, config)


def make_context(tls: TlsConfig) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _limit(context, tls)
    _load_certificate(context, tls)
    if tls.verifies_clients:
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        _load_client_ca(context, tls)
        # Each connection shows its certificate: none is let in for having been let in before.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def unwelcome(tls: TlsConfig, certificate: Mapping[str, Any] | None) -> str:
    """Why the client that showed ``certificate`` (as ``ssl`` gives it) is not let in; empty where it is."""
    if tls.client_allowed_sans is None:
        return ""
    names = [_plain(kind, name) for kind, name in (certificate or {}).get("subjectAltName", ())]
    if any(name in tls.client_allowed_sans for name in names):
        return ""
    return "none of its certificate's names is one of client_allowed_sans"


def _plain(kind: str, name: str) -> str:
    """In the form that Go and people write."""
    try:
        return str(ipaddress.ip_address(name)) if kind == "IP Address" else name
    except ValueError:
        return name


def _limit(context: ssl.SSLContext, tls: TlsConfig) -> None:
    least = tls.min_version
    ciphers = [CIPHERS[name] for name in tls.cipher_suites if name in CIPHERS]
    if tls.cipher_suites and not ciphers:
        least = "TLS13"  # only its suites are listed
    elif ciphers or least in _OLD:
        # OpenSSL has the old versions' signatures in its lowest level only.
        level = ":@SECLEVEL=0" if least in _OLD else ""
        context.set_ciphers((":".join(ciphers) or _USUAL_CIPHERS) + level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the operator has asked for the old versions
        context.minimum_version = _VERSIONS[least]
        context.maximum_version = _VERSIONS[tls.max_version]
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    for name in tls.curve_preferences:
        context.set_ecdh_curve(CURVES[name])


def _load_certificate(context: ssl.SSLContext, tls: TlsConfig) -> None:
    with _File(tls.cert_file, tls.cert) as certificate, _File(tls.key_file, tls.key) as key:
        try:
            context.load_cert_chain(certificate, key, password=_nobody_knows)
        except (ssl.SSLError, OSError, ValueError) as error:
            allowed = "must be a certificate in PEM, and its key, unencrypted"
            raise _refused("cert_file", tls.cert_file, _why(error), allowed) from None


def _load_client_ca(context: ssl.SSLContext, tls: TlsConfig) -> None:
    try:
        if tls.client_ca_file is not None:
            context.load_verify_locations(cafile=tls.client_ca_file)
        elif tls.client_ca is not None:
            context.load_verify_locations(cadata=tls.client_ca.get_secret_value())
        else:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise _refused("client_ca_file", tls.client_ca_file, _why(error), "must have certificates in PEM") from None


class _File:
    """The path of ``path``, or of a file of its own with ``text``, which is there only meanwhile."""

    def __init__(self, path: Path | None, text: SecretStr | None) -> None:
        self._path = path
        self._text = text

    def __enter__(self) -> str:
        if self._path is not None:
            return str(self._path)
        assert self._text is not None
        self._own = tempfile.NamedTemporaryFile("w", suffix=".pem")  # nobody else may read it
        self._own.write(self._text.get_secret_value())
        self._own.flush()
        return self._own.name

    def __exit__(self, *_: object) -> None:
        if self._path is None:
            self._own.close()


def _content(name: str, path: Path) -> bytes:
    try:
        return small_file.read(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise _refused(name, path, small_file.why(error), "must be a file that can be read") from None


def _refused(name: str, path: Path | None, why: str, allowed: str) -> ConfigError:
    """``name`` is the key that has the path; where there is no path, the one without ``_file`` has the text."""
    key = f"tls_server_config.{name if path else name.removesuffix('_file')}"
    return ConfigError((Problem(str(path or "web config"), key, f"an error when reading it ({why})", allowed),))


def _nobody_knows() -> str:
    """The password of an encrypted key. Without this OpenSSL would ask for it on the terminal."""
    return ""


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unreadable").lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)
