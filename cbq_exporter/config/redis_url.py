"""Reading a Redis URL without the client library: what is wrong with it, and how to show it without its password."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

EXAMPLES = "redis://host:6379/0, rediss://user:password@host:6380/0 or unix:///run/redis.sock"

_COMMON_OPTIONS = ("db", "username", "password", "client_name")
TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile")
_CERT_REQS = ("none", "optional", "required")
_DATABASE = re.compile(r"[0-9]{1,5}")


def trouble(url: str) -> str | None:
    """One sentence that quotes nothing of the URL, or None where it is usable."""
    scheme = url.partition(":")[0]
    if "sentinel" in scheme or "cluster" in scheme:
        return "sentinel and cluster are not available yet in this version; use redis://, rediss:// or unix://"
    if scheme not in ("redis", "rediss", "unix") or "://" not in url:
        return f"must be a URL such as {EXAMPLES}"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "must be printable ASCII without spaces; percent-encode other characters"
    if "#" in url:
        return "must not contain '#'; in a password write it as %23"
    if "," in re.split("[/?]", url.partition("://")[2])[0].rpartition("@")[2]:
        return "names several hosts; sentinel and cluster are not available yet in this version"
    parts = _split(url)
    if parts is None:
        return f"host or port is not valid; must be a URL such as {EXAMPLES}"
    return _place_trouble(parts) or _option_trouble(parts)


def redacted(url: str) -> str:
    """The URL without any password, for logs and ``status``."""
    parts = _split(url)
    if parts is None:
        return "***"
    credentials, at, place = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***" if colon else "***"  # without a colon nobody knows whether it is a name or a secret
    options = [(name, value) for name, value in parse_qsl(parts.query) if name != "password"]
    query = f"?{urlencode(options, safe='/')}" if options else ""
    return f"{parts.scheme}://{shown + at if at else ''}{place}{parts.path}{query}"


def sends_password_in_clear(url: str) -> bool:
    """Whether a password would cross a network unencrypted."""
    parts = _split(url)
    if parts is None or parts.scheme != "redis" or is_loopback(parts.hostname or ""):
        return False
    return bool(parts.password or parts.username) or any(name == "password" for name, _ in parse_qsl(parts.query))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            return None
        return parts
    except ValueError:
        return None


def _place_trouble(parts: SplitResult) -> str | None:
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2]:
            return "a unix socket needs three slashes: unix:///run/redis.sock"
        return None if len(parts.path) > 1 else "must name the socket: unix:///run/redis.sock"
    if not parts.hostname:
        return "must name a host: redis://host:6379/0"
    if parts.path not in ("", "/") and not _DATABASE.fullmatch(parts.path[1:]):
        return "after the host comes the database's number, such as /0 (a '/' or '?' in a password is %2F or %3F)"
    return None


def _option_trouble(parts: SplitResult) -> str | None:
    known = _COMMON_OPTIONS + (TLS_OPTIONS if parts.scheme == "rediss" else ())
    options = parse_qsl(parts.query, keep_blank_values=True)
    if any(name not in known for name, _ in options):
        return f"after '?' only these options are known: {', '.join(known)}"
    if any(name == "db" and not _DATABASE.fullmatch(value) for name, value in options):
        return "the option db must be a database's number"
    if any(name == "ssl_cert_reqs" and value not in _CERT_REQS for name, value in options):
        return f"the option ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}"
    return None
