"""The kinds of value that configuration is written in: what is allowed, how it is read, how it is written back.

A ``Kind`` is the annotation of a field. It carries the sentence an operator reads when the value is wrong, so that no
library's wording reaches them, and the piece of JSON schema that editors use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, SecretStr, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cbq_exporter.config import redis_url

WRITTEN = {"written": True}  # the validation context of values that a person wrote in a file
WRONG = "wrong"  # the type of every error raised here

SECOND = 1.0
MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_UNIT_SECONDS = {"ms": 0.001, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
_UNIT_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)"
_SIZE = r"([0-9]{1,15}) ?(B|KiB|MiB|GiB|kB|KB|MB|GB)"
_RATE = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)/(s|m|h)"
_BANDWIDTH = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(k|M|G)bit/s"
_HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"
_HEADER_VALUE = r"(?=[\t ]*[!-~])[\t\x20-\x7e]{1,8192}"
_QUEUE_NAME = r"[a-z0-9_-]{1,64}"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_LISTEN = r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([^\[\]:/@\s]*)):([0-9]{1,5})"

_RECEIVER = r"(?:(?:https?://)?[A-Za-z0-9*._:\[\]-]{1,255}|https?://[A-Za-z0-9*._:\[\]-]{1,255}/[!-~]{0,2000})"

_PROXY = r"https?://(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})/?"

RESERVED_HEADERS = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class Wrong(ValueError):
    """Refuses a value with a sentence of its own; without one the kind's usual sentence is shown."""


@dataclass(frozen=True, eq=False)
class Kind:
    """``parse`` gets the value and whether it was written by a person; ``write`` is the way back."""

    allowed: str
    parse: Callable[[object, bool], object]
    schema: Mapping[str, Any]
    write: Callable[[Any], object] = lambda value: value

    def read(self, value: object, *, written: bool) -> Any:
        try:
            return self.parse(value, written)
        except Wrong as wrong:
            raise Wrong(str(wrong) or f"must be {self.allowed}") from None

    def _validate(self, value: object, info: ValidationInfo) -> Any:
        try:
            return self.read(value, written=info.context is WRITTEN)
        except Wrong as wrong:
            raise PydanticCustomError(WRONG, "{why}", {"why": str(wrong)}) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)


def write_duration(seconds: float) -> str:
    """The shortest usual form: 90.0 is ``90s``, 300.0 is ``5m``, a single day is ``24h``."""
    for unit, least in (("d", 2), ("h", 1), ("m", 1), ("s", 1)):
        amount = seconds / _UNIT_SECONDS[unit]
        if amount >= least and amount == int(amount):
            return f"{int(amount)}{unit}"
    if seconds == 0:
        return "0s"
    return f"{seconds:.10g}s" if seconds > 1 else f"{seconds * 1000:.10g}ms"


def write_size(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % _UNIT_BYTES[unit] == 0:
            return f"{count // _UNIT_BYTES[unit]}{unit}"
    return f"{count}B"


def whole(low: int, high: int) -> Kind:
    def parse(value: object, written: bool) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Wrong
        return value

    return Kind(f"a whole number from {low} to {high}", parse, {"type": "integer", "minimum": low, "maximum": high})


def share() -> Kind:
    """A part of a whole as a float."""

    def parse(value: object, written: bool) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise Wrong
        return float(value)

    return Kind(
        "a number above 0 and up to 1, such as 0.5", parse, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    )


def flag() -> Kind:
    def parse(value: object, written: bool) -> bool:
        if not isinstance(value, bool):
            raise Wrong
        return value

    return Kind("true or false", parse, {"type": "boolean"})


def choice(*words: str) -> Kind:
    def parse(value: object, written: bool) -> str:
        if not isinstance(value, str) or value not in words:
            raise Wrong
        return next(word for word in words if word == value)

    return Kind(f"one of {', '.join(words)}", parse, {"type": "string", "enum": [str(word) for word in words]}, str)


def duration(low: float, high: float) -> Kind:
    """Seconds as a float. A person writes a unit; code may pass seconds."""
    allowed = f"a duration from {write_duration(low)} to {write_duration(high)}, such as 500ms, 1.5s, 5m, 24h or 30d"

    def parse(value: object, written: bool) -> float:
        match = re.fullmatch(_DURATION, value) if isinstance(value, str) else None
        bare = re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(value)) and not isinstance(value, bool)
        if match:
            seconds = round(float(match[1]) * _UNIT_SECONDS[match[2]], 9)
        elif isinstance(value, int | float) and not isinstance(value, bool) and (value == 0 or not written):
            seconds = float(value)
        elif value == "0":
            seconds = 0.0
        elif bare and len(str(value)) <= 12:
            raise Wrong(f"add a unit, such as {value}s or {value}m: must be {allowed}")
        else:
            raise Wrong
        if not low <= seconds <= high:
            raise Wrong
        return seconds

    pattern: dict[str, Any] = {"type": "string", "pattern": f"^{_plain(_DURATION)}$"}
    schema = {"anyOf": [pattern, {"enum": [0, "0"]}]} if low == 0 else pattern
    return Kind(allowed, parse, schema, write_duration)


def size(low: int, high: int) -> Kind:
    """Bytes as an int."""

    def parse(value: object, written: bool) -> int:
        match = re.fullmatch(_SIZE, value) if isinstance(value, str) else None
        if match:
            count = int(match[1]) * _UNIT_BYTES[match[2]]
        elif isinstance(value, int) and not isinstance(value, bool):
            count = value
        else:
            raise Wrong
        if not low <= count <= high:
            raise Wrong
        return count

    return Kind(
        f"a size from {write_size(low)} to {write_size(high)}, such as 64KiB, 16MiB, 1MB or a whole number of bytes",
        parse,
        {
            "anyOf": [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "string", "pattern": f"^{_plain(_SIZE)}$"},
            ]
        },
        write_size,
    )


def text(pattern: str, allowed: str) -> Kind:
    def parse(value: object, written: bool) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise Wrong
        return value

    return Kind(allowed, parse, {"type": "string", "pattern": f"^{_plain(pattern)}$"})


def path() -> Kind:
    def parse(value: object, written: bool) -> Path:
        if isinstance(value, Path):
            return value
        if not isinstance(value, str) or not value or not value.isprintable():
            raise Wrong
        return Path(value)

    def write(value: Path) -> str:
        return str(value) if value.is_absolute() else f"./{value}"

    return Kind("the path of a file or directory", parse, {"type": "string", "minLength": 1}, write)


def queue_name() -> Kind:
    return text(_QUEUE_NAME, "1 to 64 characters out of a-z, 0-9, _ and -")


def key_name() -> Kind:
    return text(r"[\x21-\x7e]{1,200}", "1 to 200 printable ASCII characters without spaces")


def header_name() -> Kind:
    inner = text(_HEADER_NAME, "a header name: letters, digits and !#$%&'*+.^_`|~-")

    def parse(value: object, written: bool) -> object:
        name = inner.parse(value, written)
        if isinstance(name, str) and name.lower() in RESERVED_HEADERS:
            raise Wrong("is set for each request and cannot be given here")
        return name

    return Kind(inner.allowed, parse, inner.schema)


def header_value() -> Kind:
    return text(_HEADER_VALUE, "a text of printable ASCII on one line, not blank (a number needs quotes)")


def secret_name() -> Kind:
    return text(r"[a-z_][a-z0-9_]{0,63}", "a name of a-z, 0-9 and _")


def secret_source() -> Kind:
    """Where a secret is read. A path begins in a way that a secret written here by mistake does not."""
    return text(
        r"env:[A-Za-z_][A-Za-z0-9_]*|\.{0,2}/[^\x00-\x1f\x7f]{1,1000}",
        "env:NAME for an environment variable, or the path of a file that begins with / or ./",
    )


def rate() -> Kind:
    """Requests per second as a float."""

    def parse(value: object, written: bool) -> float:
        match = re.fullmatch(_RATE, value) if isinstance(value, str) else None
        if not match or not float(match[1]):
            raise Wrong
        return float(match[1]) / _UNIT_SECONDS[match[2]]

    return Kind("a rate such as 50/s or 600/m", parse, {"type": "string", "pattern": f"^{_plain(_RATE)}$"})


def bandwidth() -> Kind:
    """Bits per second as a float."""

    def parse(value: object, written: bool) -> float:
        match = re.fullmatch(_BANDWIDTH, value) if isinstance(value, str) else None
        if not match or not float(match[1]):
            raise Wrong
        return float(match[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[match[2]]

    return Kind(
        "a bandwidth such as 500Mbit/s or 64kbit/s",
        parse,
        {"type": "string", "pattern": f"^{_plain(_BANDWIDTH)}$"},
    )


def network() -> Kind:
    """An IPv4Network or IPv6Network."""

    def parse(value: object, written: bool) -> IPv4Network | IPv6Network:
        if isinstance(value, IPv4Network | IPv6Network):
            return value
        if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", value):
            raise Wrong
        try:
            wide = ip_network(value, strict=False)
        except ValueError:
            raise Wrong from None
        try:
            return ip_network(value)
        except ValueError:
            raise Wrong(f"has host bits set; the network is {wide}") from None

    return Kind("a network such as 10.20.0.0/16 or fd00:1234::/32", parse, {"type": "string"}, str)


def receiver() -> Kind:
    """Which URLs are meant: a host, or a URL with stars. Lower case, as far as the host goes."""

    def parse(value: object, written: bool) -> str:
        if not isinstance(value, str) or not re.fullmatch(_RECEIVER, value):
            raise Wrong
        scheme, mark, rest = value.rpartition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{mark}{host.lower()}{slash}{path}"

    return Kind(
        "a host such as hooks.example.com or *.example.com:8443, or a URL such as https://example.com/v2/*",
        parse,
        {"type": "string", "pattern": f"^{_plain(_RECEIVER)}$"},
    )


def proxy() -> Kind:
    """The URL of an HTTP proxy: scheme, host and port, nothing else. What is wrong is told without quoting it."""

    def parse(value: object, written: bool) -> str:
        match = re.fullmatch(_PROXY, value) if isinstance(value, str) else None
        if match is None or not 1 <= int(match[1]) <= 65535:
            raise Wrong
        return str(value).rstrip("/")

    return Kind(
        "the URL of an HTTP proxy with its port and without credentials, such as http://proxy.example:3128",
        parse,
        {"type": "string", "pattern": f"^{_plain(_PROXY)}$"},
    )


def listen_address() -> Kind:
    def parse(value: object, written: bool) -> str:
        if not isinstance(value, str):
            raise Wrong
        split_address(value)
        return value

    return Kind(
        'host:port, such as "127.0.0.1:9847", "[::1]:9847", or ":9847" for all interfaces',
        parse,
        {"type": "string", "pattern": ":[0-9]{1,5}$"},
    )


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets, empty for all interfaces) and port of ``host:port``."""
    match = re.fullmatch(_LISTEN, address)
    if not match or int(match[3]) > 65535:
        raise Wrong
    if match[1] is not None:
        try:
            return str(ip_address(match[1])), int(match[3])
        except ValueError:
            raise Wrong from None
    if match[2] and not re.fullmatch(_HOST, match[2]):
        raise Wrong
    return match[2], int(match[3])


def redis() -> Kind:
    """A SecretStr. What is wrong with a URL is told without quoting any of it."""

    def parse(value: object, written: bool) -> SecretStr:
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not isinstance(plain, str):
            raise Wrong
        why = redis_url.trouble(plain)
        if why:
            raise Wrong(why)
        return SecretStr(plain)

    return Kind(f"a URL such as {redis_url.EXAMPLES}", parse, {"type": "string", "pattern": "^(redis|rediss|unix)://"})


def _plain(pattern: str) -> str:
    """The pattern for JSON schema: groups made plain, wrapped so that ``^`` and ``$`` hold for all of it."""
    return f"(?:{pattern})"
