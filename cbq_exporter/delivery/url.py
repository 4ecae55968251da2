"""Reading a receiver's URL: what is usable, and which destination it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, urlsplit

MAX_LENGTH = 8192

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PLAIN = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]+)?)(?:[/?#][!-~]*)?\Z")
_AFTER_PATH = re.compile(r"[?#]")
_DOTS = re.compile(r"/(?:\.|%2e){1,2}(?:[/?#]|\Z)", re.IGNORECASE)
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_SMALL_ESCAPED = re.compile(r"%(?:[a-f][0-9A-Fa-f]|[0-9A-F][a-f])")
_UNUSABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?\Z")
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)\.?\Z")
# IDNA 2003, which Python speaks, reads these as "ss", as another sigma and as nothing; IDNA 2008 keeps them.
_AMBIGUOUS = re.compile("[\u00df\u1e9e\u03c2\u200c\u200d]")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that can be sent to.

    ``url`` is pure ASCII: a host in other letters is in its IDNA form, a path in other letters is
    percent-encoded, an IPv4 address is four decimal numbers whichever way it was written. Of a path with dots
    (``/a/../b``) only what they lead to is left, and its escapes are in capitals, so that the path that is judged is
    the one that is asked for. ``host`` is in lower case and has no brackets. ``destination`` is what limits and
    breakers are kept by: the host, with the port where it is not the scheme's own.
    """

    url: str
    scheme: str
    host: str
    port: int
    destination: str


def parse(url: object, max_length: int = MAX_LENGTH) -> Target:
    """Read ``url``; raises ValueError with a reason of one line, which never repeats the URL itself."""
    if not isinstance(url, str):
        raise ValueError(f"the URL is not a string but {type(url).__name__}")
    if len(url) > max_length:
        raise ValueError(f"the URL has {len(url)} characters, more than {max_length}")
    return _parse(url)


@lru_cache(maxsize=1024)
def _parse(url: str) -> Target:
    plain = _PLAIN.match(url)
    if plain is not None and not (_DOTS.search(url, plain.end(1)) or _SMALL_ESCAPED.search(url)):
        origin = _parse_origin(plain[1])
        if origin.url == plain[1]:  # what follows stays as it is too
            return Target(url, origin.scheme, origin.host, origin.port, origin.destination)
    return _parse_slowly(url)


@lru_cache(maxsize=16_384)
def _parse_origin(url: str) -> Target:
    return _parse_slowly(url)


def _parse_slowly(url: str) -> Target:
    if not url:
        raise ValueError("the URL is empty")
    unusable = _UNUSABLE.search(url)
    if unusable is not None:
        raise ValueError(f"the URL contains the character U+{ord(unusable[0]):04X}")
    named = _SCHEME.match(url)
    if named is None:
        raise ValueError("the URL is relative: it must begin with http:// or https://")
    scheme = named[1].lower()
    if scheme not in _DEFAULT_PORTS:
        raise ValueError(f"the URL's scheme is {scheme[:20]!r}; only http and https are sent to")
    if not url[named.end() :].startswith("//"):
        raise ValueError(f"the URL has no // after {scheme}:")
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its own message would repeat the host.
        raise ValueError("the URL cannot be parsed: its host and port are malformed") from None
    if "@" in parts.netloc:
        raise ValueError("the URL carries credentials; they are not sent: use a header or a signature")
    host, port_text = _split_port(parts.netloc)
    port = _port(port_text, scheme)
    if host.startswith("["):
        bare = _ipv6(host)
        authority = f"[{bare}]"
    else:
        bare = authority = _name(host)
    ours = authority if port_text in ("", None) else f"{authority}:{port}"
    after = _in_one_way(url[named.end() + 2 + len(parts.netloc) :])
    return _target(f"{scheme}://{ours}{quote(after, safe=_VISIBLE)}", scheme, bare, port)


def _target(url: str, scheme: str, host: str, port: int) -> Target:
    name = host.rstrip(".")
    if ":" in name:
        name = f"[{name}]"
    destination = name if port == _DEFAULT_PORTS[scheme] else f"{name}:{port}"
    return Target(url, scheme, host, port, destination)


def _in_one_way(after: str) -> str:
    """``after`` is what follows the authority. The path in it as libcurl writes it."""
    mark = _AFTER_PATH.search(after)
    end = len(after) if mark is None else mark.start()
    path = _ESCAPED.sub(lambda escaped: escaped[0].upper(), after[:end])
    return _without_dots(path) + after[end:]


def _without_dots(path: str) -> str:
    """By RFC 3986 (5.2.4); a dot may be written as ``%2e``."""
    if not _DOTS.search(path):
        return path
    kept: list[str] = []
    dots = ""
    for segment in path[1:].split("/"):
        dots = segment.lower().replace("%2e", ".")
        if dots == "..":
            del kept[-1:]
        elif dots != ".":
            kept.append(segment)
    if dots in (".", ".."):
        kept.append("")
    return f"/{'/'.join(kept)}"


def _split_port(netloc: str) -> tuple[str, str | None]:
    if netloc.startswith("["):
        end = netloc.find("]") + 1
        host, rest = netloc[:end], netloc[end:]
        if rest and not rest.startswith(":"):
            raise ValueError("the URL has something between its address and its port")
        return host, rest[1:] if rest else None
    host, colon, port = netloc.partition(":")
    return host, port if colon else None


def _port(text: str | None, scheme: str) -> int:
    if text is None or text == "":
        return _DEFAULT_PORTS[scheme]
    if not _PORT.match(text) or not 1 <= int(text) <= 65535:
        raise ValueError("the URL's port is not a number from 1 to 65535")
    return int(text)


def _ipv6(host: str) -> str:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        raise ValueError("the URL's host in brackets is not an IPv6 address") from None
    if address.scope_id is not None:
        raise ValueError("the URL's IPv6 address has a zone; it is not sent to")
    if address.ipv4_mapped is not None:
        # One destination has one name, in whatever Python: from 3.13 on its own would end like an IPv4 address.
        return f"::ffff:{int(address.ipv4_mapped) >> 16:x}:{int(address.ipv4_mapped) & 0xFFFF:x}"
    return str(address)


def _name(host: str) -> str:
    if not host:
        raise ValueError("the URL has no host")
    if len(host) > 254:
        raise ValueError("the URL's host is longer than any domain name")
    if not host.isascii():
        if _AMBIGUOUS.search(host):
            raise ValueError("the URL's host has a letter that standards read as two domains; write its xn-- form")
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("the URL's host is not a domain name") from None
    host = host.lower()
    if len(host) > 254 or not _HOST.match(host):
        raise ValueError("the URL's host is not a domain name or an address")
    return _ipv4(host) if _ENDS_IN_NUMBER.search(host) else host


def _ipv4(host: str) -> str:
    """All that libcurl and browsers read as an address (``127.1``, ``0x7f000001``, ``0177.0.0.1``), in one form.

    No top-level domain is a number, so what ends in one and is no address is nothing at all.
    """
    parts = host.rstrip(".").split(".")
    try:
        *first, last = [_number(part) for part in parts]
        if len(parts) > 4 or any(number > 255 for number in first) or last >= 256 ** (5 - len(parts)):
            raise ValueError
    except ValueError:
        raise ValueError("the URL's host ends in a number and is not an IPv4 address") from None
    return str(IPv4Address(int.from_bytes(bytes(first), "big") * 256 ** (5 - len(parts)) + last))


def _number(text: str) -> int:
    if not text.isalnum():  # int() would read signs and underscores
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:], 16)
    return int(text, 8 if len(text) > 1 and text[0] == "0" else 10)
