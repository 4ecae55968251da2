"""The file that ``web.config_file`` names: TLS, basic authentication and headers, as Prometheus's own tools read it.

The keys and their meaning are those of the Prometheus exporter-toolkit (docs/web-configuration.md there), so that one
file serves every exporter of a machine. What Python's TLS cannot do is refused, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError

from cbq_exporter.config import document, kinds
from cbq_exporter.config.document import Document, DocumentError
from cbq_exporter.config.kinds import WRITTEN, WRONG, Kind, Wrong
from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Finding, Place, shown, shown_value
from cbq_exporter.config.section import Section
from cbq_exporter.errors import ConfigError, Problem
from cbq_exporter.web import small_file

MOST_BYTES = 64 * 1024  # of the file, and of each file that it names
MOST_COST = 18  # of a password's hash: that takes about 20 s already
VERSIONS = ("TLS10", "TLS11", "TLS12", "TLS13")

# Go's names of the suites before TLS 1.3, with OpenSSL's.
CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
# As in Go, those of TLS 1.3 may be listed and cannot be chosen.
CIPHERS_13 = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})
CURVES: Mapping[str, str] = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}

_ANY_CERTIFICATE = ("RequireAnyClientCert", "RequireClientCert")
_CLIENT_AUTH = ("NoClientCert", "RequestClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")

# The response headers that may be given, and the values where not every one is allowed.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}")
# Cost, salt (whose last character has two bits only) and digest.
_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_MOST_USERS = 1000
_USER = re.compile(r"[^:\x00-\x1f\x7f]{1,200}")
_DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)"
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# --- kinds of value ------------------------------------------------------------------------------


def _pem(what: str) -> Kind:
    def parse(value: object, written: bool) -> SecretStr:
        if isinstance(value, SecretStr):
            return value
        if not isinstance(value, str) or "-----BEGIN " not in value or not value.isascii():
            raise Wrong
        return SecretStr(value)

    return Kind(f"{what} in PEM", parse, {"type": "string"})


def _names(allowed: str, parse_all: Callable[[tuple[str, ...]], object]) -> Kind:
    """A list of texts."""

    def parse(value: object, written: bool) -> object:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise Wrong
        return parse_all(tuple(value))

    return Kind(allowed, parse, {"type": "array", "items": {"type": "string"}})


def _client_auth(value: object, written: bool) -> object:
    if value in _ANY_CERTIFICATE:
        raise Wrong(
            "would let in whoever has any certificate, unverified, which this program cannot: "
            "use RequireAndVerifyClientCert"
        )
    if value not in _CLIENT_AUTH:
        raise Wrong
    return value


def _ciphers(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in CIPHERS and name not in CIPHERS_13:
            raise Wrong(f"has a suite that is unknown or insecure: choose out of {', '.join(CIPHERS)}")
    return names


def _curves(names: tuple[str, ...]) -> tuple[str, ...]:
    if "X25519" in names or len(names) > 1:
        raise Wrong(
            f"can be one of {', '.join(CURVES)} here: leave it out for all usual curves, X25519 first among them"
        )
    if any(name not in CURVES for name in names):
        raise Wrong
    return names


def _sans(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not name for name in names):
        raise Wrong
    return names


def _headers(value: object, written: bool) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Wrong
    for name, text in value.items():
        allowed = _HEADERS.get(name)
        if allowed is None:
            raise Wrong(f"can have {', '.join(_HEADERS)}, written so, and no other header")
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            raise Wrong(f"must have a text of printable ASCII for {name}")
        if allowed and text not in allowed:
            raise Wrong(f"must have {' or '.join(allowed)} for {name}")
    return {name: text for name, text in value.items() if text}


def _users(value: object, written: bool) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_USERS:
        raise Wrong
    # A name in the wrong place may be a password: the position is told instead.
    for position, (name, hashed) in enumerate(value.items(), 1):
        if not _USER.fullmatch(name):
            raise Wrong(f"has a name that no client can send (number {position}): it must be a text without a colon")
        text = hashed.get_secret_value() if isinstance(hashed, SecretStr) else hashed
        why = _hash_trouble(text)
        if why:
            raise Wrong(f"{why} (user number {position}): make one with `htpasswd -nBC 10 NAME`")
    return {name: one if isinstance(one, SecretStr) else SecretStr(one) for name, one in value.items()}


def _hash_trouble(value: object) -> str:
    match = _HASH.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return "must have a bcrypt hash for each user"
    if not 4 <= int(match[1]) <= MOST_COST:
        return f"must have hashes of a cost from 4 to {MOST_COST}"
    return ""


def _interval(value: object, written: bool) -> float:
    """Seconds. As in Go, zero needs no unit."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    match = re.fullmatch(_DURATION, value) if isinstance(value, str) else None
    if not match:
        raise Wrong
    return float(match[1]) * _UNIT_SECONDS[match[2]]


_CHOICE = {"type": "string"}
_USERS = Kind("a mapping of at most 1000 users to the bcrypt hashes of their passwords", _users, {"type": "object"})
_HEADER_MAPPING = Kind("a mapping of headers to texts", _headers, {"type": "object"})
_CIPHER_LIST = _names("a list of Go's names of cipher suites", _ciphers)
_CURVE_LIST = _names(f"a list with one of {', '.join(CURVES)}", _curves)
_SAN_LIST = _names("a list of names, IP addresses, e-mail addresses or URIs", _sans)
_CLIENT_AUTH_TYPE = Kind(f"one of {', '.join((*_CLIENT_AUTH, _ANY_CERTIFICATE[0]))}", _client_auth, _CHOICE)
_INTERVAL = Kind("a duration such as 1s or 100ms", _interval, _CHOICE)

# --- the file ------------------------------------------------------------------------------------


class TlsConfig(Section):
    """Each of certificate, key and CA is written here or in a file; paths are absolute once they are read."""

    cert: Annotated[SecretStr, _pem("a certificate")] | None = None
    key: Annotated[SecretStr, _pem("a private key")] | None = None
    client_ca: Annotated[SecretStr, _pem("certificates")] | None = None
    cert_file: Annotated[Path, kinds.path()] | None = None
    key_file: Annotated[Path, kinds.path()] | None = None
    client_ca_file: Annotated[Path, kinds.path()] | None = None
    client_auth_type: Annotated[str, _CLIENT_AUTH_TYPE] = "NoClientCert"
    client_allowed_sans: Annotated[tuple[str, ...], _SAN_LIST] | None = None
    min_version: Annotated[str, kinds.choice(*VERSIONS)] = "TLS12"
    max_version: Annotated[str, kinds.choice(*VERSIONS)] = "TLS13"
    cipher_suites: Annotated[tuple[str, ...], _CIPHER_LIST] = ()
    prefer_server_cipher_suites: Annotated[bool, kinds.flag()] = True
    curve_preferences: Annotated[tuple[str, ...], _CURVE_LIST] = ()

    @property
    def verifies_clients(self) -> bool:
        return self.client_auth_type in ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert")


class HttpConfig(Section):
    """``http2`` may be either: HTTP/1.1 is spoken."""

    http2: Annotated[bool, kinds.flag()] = True
    headers: Annotated[dict[str, str], _HEADER_MAPPING] = Field(default_factory=dict)


class RateLimitConfig(Section):
    """``interval`` is seconds between two requests, 0 for no limit; ``burst`` requests may come at once."""

    interval: Annotated[float, _INTERVAL] = 0.0
    burst: Annotated[int, kinds.whole(0, 1_000_000)] = 0


class WebConfigFile(Section):
    """The file as a whole. Without ``tls_server_config`` it is plain HTTP; without users everybody is let in."""

    tls_server_config: TlsConfig | None = None
    http_server_config: HttpConfig = HttpConfig()
    basic_auth_users: Annotated[dict[str, SecretStr], _USERS] = Field(default_factory=dict)
    rate_limit: RateLimitConfig = RateLimitConfig()


def read(path: Path) -> WebConfigFile:
    """Raises ConfigError with everything that is wrong in the file. The files that it names are not looked at."""
    return parse(content(path), path)


def content(path: Path) -> bytes:
    try:
        return small_file.read(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        found = f"an error when reading it ({small_file.why(error)})"
        raise ConfigError((Problem(str(path), "web.config_file", found, "must be a file that can be read"),)) from None


def parse(text: bytes, path: Path) -> WebConfigFile:
    """``path`` is where ``text`` was read: other files are named relative to its folder. Raises ConfigError."""
    try:
        written = document.read(text)
    except DocumentError as error:
        problem = Problem(_at(path, error.line), "YAML", str(error), "must be YAML that can be read")
        raise ConfigError((problem,)) from None
    found = list(written.findings)
    parsed: WebConfigFile | None = None
    try:
        parsed = WebConfigFile.model_validate(written.data, context=WRITTEN)
    except ValidationError as error:
        found += [_finding(detail) for detail in error.errors(include_url=False)]
    if parsed is not None and parsed.tls_server_config is not None:
        if written.data["tls_server_config"]:
            found += _tls_findings(parsed.tls_server_config)
        else:  # an empty section is none, as in the toolkit
            parsed = parsed.model_copy(update={"tls_server_config": None})
    if parsed is not None and parsed.rate_limit.interval and not parsed.rate_limit.burst:
        found.append(Finding(("rate_limit", "burst"), "0", "must be at least 1, or every request is refused"))
    if parsed is None or found:
        raise ConfigError(_problems(found, written, path))
    return parsed if parsed.tls_server_config is None else _with_absolute_paths(parsed, path.parent)


def warnings(file: WebConfigFile, config: Config) -> tuple[str, ...]:
    """What ``file`` allows and is probably not meant, one line each."""
    if config.web.is_loopback or file.tls_server_config is not None:
        return ()
    tokens = config.web.bearer_token_file or config.alerts.auth.bearer_token_file
    secrets = "passwords" if file.basic_auth_users else "bearer tokens" if tokens else ""
    where = f"{config.web.config_file}: tls_server_config: is not there"
    return (f"{where}: {secrets} cross the network unencrypted",) if secrets else ()


def _tls_findings(tls: TlsConfig) -> list[Finding]:
    found = []
    at: Place = ("tls_server_config",)

    def refuse(key: str, what: str, allowed: str) -> None:
        found.append(Finding((*at, key), what, allowed))

    for inline, file in (("cert", "cert_file"), ("key", "key_file"), ("client_ca", "client_ca_file")):
        given = [name for name in (inline, file) if getattr(tls, name) is not None]
        if len(given) == 2:
            refuse(file, f"{inline} as well", "keep one of the two")
        elif not given and inline != "client_ca":
            refuse(file, "nothing", f"must be given: TLS needs {file} (or {inline})")
    if VERSIONS.index(tls.min_version) > VERSIONS.index(tls.max_version):
        refuse("min_version", repr(tls.min_version), f"must not be above max_version ({tls.max_version})")
    if tls.client_auth_type == "NoClientCert" and (tls.client_ca is not None or tls.client_ca_file is not None):
        refuse("client_auth_type", "NoClientCert", "client CAs need a policy: use RequireAndVerifyClientCert")
    if tls.client_allowed_sans is not None and not tls.verifies_clients:
        refuse("client_allowed_sans", "a list", "has no effect without client_auth_type: RequireAndVerifyClientCert")
    if tls.cipher_suites and CIPHERS_13.issuperset(tls.cipher_suites) and tls.max_version != "TLS13":
        refuse(
            "cipher_suites", "suites of TLS 1.3 only", f"none of them can be used up to max_version {tls.max_version}"
        )
    return found


def _with_absolute_paths(parsed: WebConfigFile, folder: Path) -> WebConfigFile:
    tls = parsed.tls_server_config
    assert tls is not None
    paths = {name: getattr(tls, name) for name in ("cert_file", "key_file", "client_ca_file")}
    absolute = {name: folder / path for name, path in paths.items() if path is not None}
    return parsed.model_copy(update={"tls_server_config": tls.model_copy(update=absolute)})


# --- from pydantic's errors to ours --------------------------------------------------------------


def _finding(detail: Any) -> Finding:
    place: Place = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(_section_at(place[:-1]).model_fields)
        return Finding(place, "an unknown key", f"known here: {known}")
    found = "***" if _is_secret(place) else shown_value(detail["input"], place)
    if detail["type"] == WRONG:
        return Finding(place, found, detail["msg"])
    return Finding(place, found, f"must be a mapping with keys out of: {', '.join(_section_at(place).model_fields)}")


def _section_at(place: Place) -> type[Section]:
    sections: Mapping[str | int, type[Section]] = {
        "tls_server_config": TlsConfig,
        "http_server_config": HttpConfig,
        "rate_limit": RateLimitConfig,
    }
    return sections.get(place[0], WebConfigFile) if place else WebConfigFile


def _is_secret(place: Place) -> bool:
    return place[:1] == ("basic_auth_users",) or place[-1:] in (("key",), ("cert",), ("client_ca",))


def _problems(found: list[Finding], written: Document, path: Path) -> tuple[Problem, ...]:
    """In the order of the file."""
    lined = sorted(((written.line(one.place) or 0, one) for one in found), key=lambda pair: pair[0])
    return tuple(Problem(_at(path, line), shown(one.place), one.found, one.allowed) for line, one in lined[:100])


def _at(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)
