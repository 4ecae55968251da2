"""Reading a URL: what is refused and why, and that libcurl sees the same host that we judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address

import pycurl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cbq_exporter.delivery.url import MAX_LENGTH, Target, parse
from tests.support.receiver import Receiver

REFUSED = [
    # absent, empty, of another type
    (None, "not a string"),
    (7, "not a string"),
    (True, "not a string"),
    (b"http://example.com/", "not a string"),
    (["http://example.com/"], "not a string"),
    ({"href": "http://example.com/"}, "not a string"),
    ("", "empty"),
    # relative
    ("/callback", "relative"),
    ("callback", "relative"),
    ("//example.com/", "relative"),
    ("example.com/callback", "relative"),
    ("?x=1", "relative"),
    # other schemes
    ("ftp://example.com/", "scheme"),
    ("file:///etc/passwd", "scheme"),
    ("javascript:alert(1)", "scheme"),
    ("gopher://example.com/", "scheme"),
    ("dict://localhost:6379/", "scheme"),
    ("unix:///run/docker.sock", "scheme"),
    ("data:text/plain,x", "scheme"),
    ("example.com:80/", "scheme"),
    ("httpx://example.com/", "scheme"),
    # no authority
    ("http:example.com", "no //"),
    ("http:/example.com", "no //"),
    ("http:\\\\example.com", "no //"),
    ("http://", "no host"),
    ("http:///path", "no host"),
    ("http:////example.com", "no host"),
    ("http://:80/", "no host"),
    ("http://?x", "no host"),
    # characters that split requests or are read in two ways
    ("http://example.com/a\r\nHost: evil", "U+000D"),
    ("http://example.com/a\nb", "U+000A"),
    ("http://example.com/\0", "U+0000"),
    ("http://exam\tple.com/", "U+0009"),
    (" http://example.com/", "U+0020"),
    ("http://example.com/ ", "U+0020"),
    ("http://example.com/a b", "U+0020"),
    ("http://example.com/\x7f", "U+007F"),
    ("http://example.com/\x85", "U+0085"),
    ("http://example.com/\u2028", "U+2028"),
    ("http://example.com/\ud800", "U+D800"),
    # credentials, and what other parsers take for a host
    ("http://user:secret@example.com/", "credentials"),
    ("http://user@example.com/", "credentials"),
    ("http://@example.com/", "credentials"),
    ("http://example.com@evil.example/", "credentials"),
    ("http://example.com\\@evil.example/", "credentials"),
    ("http://example.com\\evil.example/", "not a domain name"),
    ("http://example.com%2f.evil.example/", "not a domain name"),
    ("http://example.com%00.evil.example/", "not a domain name"),
    ("http://exa%6dple.com/", "not a domain name"),
    ("http://a,b/", "not a domain name"),
    ("http://a..b/", "not a domain name"),
    ("http://.a/", "not a domain name"),
    ("http://*/", "not a domain name"),
    ("http://" + "a" * 64 + ".com/", "not a domain name"),
    ("http://" + "a." * 127 + "com/", "longer"),
    ("http://" + "ü" * 4000 + "/", "longer"),
    ("http://" + "ü" * 80 + ".de/", "not a domain name"),
    ("http://user:secret@exam\u2100ple.com/", "malformed"),  # NFKC makes it "a/c"
    ("http://fa\u00df.de/", "two domains"),
    ("http://a\u200db.de/", "two domains"),
    # ports
    ("http://example.com:0/", "port"),
    ("http://example.com:65536/", "port"),
    ("http://example.com:999999/", "port"),
    ("http://example.com:-1/", "port"),
    ("http://example.com:+80/", "port"),
    ("http://example.com:8_0/", "port"),
    ("http://example.com:http/", "port"),
    ("http://example.com:80:80/", "port"),
    ("http://example.com:\u0668\u0660/", "port"),
    ("http://[::1]:80x/", "port"),
    ("http://::1/", "port"),
    # addresses
    ("http://[::1/", "malformed"),
    ("http://::1]/", "malformed"),
    ("http://[::1]x/", ""),
    ("http://[::g]/", ""),
    ("http://[]/", ""),
    ("http://[127.0.0.1]/", ""),
    ("http://[v1.x]/", ""),
    ("http://[fe80::1%25eth0]/", ""),
    ("http://256.1.1.1/", "not an IPv4 address"),
    ("http://1.2.3.4.5/", "not an IPv4 address"),
    ("http://08.1.1.1/", "not an IPv4 address"),
    ("http://1_0.1/", "not an IPv4 address"),
    ("http://-1.1/", "not an IPv4 address"),
    ("http://4294967296/", "not an IPv4 address"),
    ("http://0x/", "not an IPv4 address"),
    ("http://example.1/", "not an IPv4 address"),
    # length
    ("http://example.com/" + "a" * MAX_LENGTH, "characters, more than"),
]

READ = [
    ("http://example.com", "http://example.com", "example.com", 80, "example.com"),
    ("https://example.com/a?b=c#d", "https://example.com/a?b=c#d", "example.com", 443, "example.com"),
    ("HTTPS://EXAMPLE.com:443/A", "https://example.com:443/A", "example.com", 443, "example.com"),
    ("http://example.com:8080/", "http://example.com:8080/", "example.com", 8080, "example.com:8080"),
    ("http://example.com:00080/", "http://example.com:80/", "example.com", 80, "example.com"),
    ("http://example.com:/x", "http://example.com/x", "example.com", 80, "example.com"),
    ("https://example.com:80/", "https://example.com:80/", "example.com", 80, "example.com:80"),
    ("http://example.com./x", "http://example.com./x", "example.com.", 80, "example.com"),
    ("http://a_b.example/", "http://a_b.example/", "a_b.example", 80, "a_b.example"),
    (
        "http://bücher.example/ü?ü=%C3",
        "http://xn--bcher-kva.example/%C3%BC?%C3%BC=%C3",
        "xn--bcher-kva.example",
        80,
        None,
    ),
    ("http://BÜCHER.example:81", "http://xn--bcher-kva.example:81", "xn--bcher-kva.example", 81, None),
    ("http://\u2488com/", "http://1.com/", "1.com", 80, "1.com"),  # a digit and a full stop in one letter
    ("http://example。com/", "http://example.com/", "example.com", 80, "example.com"),
    ("http://example.com/a@b:c", "http://example.com/a@b:c", "example.com", 80, "example.com"),
    ("http://example.com?@evil.example/", "http://example.com?@evil.example/", "example.com", 80, "example.com"),
    ("http://example.com#@evil.example/", "http://example.com#@evil.example/", "example.com", 80, "example.com"),
    ('http://example.com/\\"<>{}|^`', 'http://example.com/\\"<>{}|^`', "example.com", 80, "example.com"),
    ("http://a.example/v1/../b/./c", "http://a.example/b/c", "a.example", 80, "a.example"),
    ("http://a.example/v1/%2E%2e/.%2e/b?/../c#/../d", "http://a.example/b?/../c#/../d", "a.example", 80, "a.example"),
    ("http://a.example/%c3%A9%zz%0?%0a", "http://a.example/%C3%A9%zz%0?%0a", "a.example", 80, "a.example"),
    ("http://a.example/v1//../é/..", "http://a.example/v1/", "a.example", 80, "a.example"),
    ("http://a.example/..a/b../...", "http://a.example/..a/b../...", "a.example", 80, "a.example"),
    ("http://a.example?/../b", "http://a.example?/../b", "a.example", 80, "a.example"),
    ("http://127.0.0.1/", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://127.1/", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://2130706433/", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://0x7F.1:81/", "http://127.0.0.1:81/", "127.0.0.1", 81, "127.0.0.1:81"),
    ("http://0177.0.0.01/", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://127.0.0.1./", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://１２７.０.０.１/", "http://127.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
    ("http://[0:0::1]:80/", "http://[::1]:80/", "::1", 80, "[::1]"),
    ("http://[::ffff:127.0.0.1]:8/", "http://[::ffff:7f00:1]:8/", "::ffff:7f00:1", 8, "[::ffff:7f00:1]:8"),
]


@pytest.mark.parametrize(("url", "why"), REFUSED, ids=lambda value: ascii(value)[:50])
def test_refused(url: object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(url)
    reason = str(caught.value)
    assert why in reason
    assert reason.isprintable()
    assert len(reason) < 120
    assert "secret" not in reason


@pytest.mark.parametrize(("url", "sent", "host", "port", "destination"), READ, ids=lambda value: ascii(value)[:50])
def test_read(url: str, sent: str, host: str, port: int, destination: str | None) -> None:
    target = parse(url)
    wanted = destination or (host if port == 80 else f"{host}:{port}")
    assert target == Target(sent, sent.partition(":")[0], host, port, wanted)


def test_the_longest_url_that_is_read() -> None:
    url = "http://example.com/".ljust(MAX_LENGTH, "a")
    assert parse(url).url == url
    assert parse("http://example.com/abc", max_length=22).port == 80
    with pytest.raises(ValueError):
        parse("http://example.com/abc", max_length=21)


# --- against libcurl ----------------------------------------------------------------------------


class Curl:
    """libcurl, made to connect to one receiver whatever the URL's host: its Host header says what it read."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._handle = handle = pycurl.Curl()
        handle.setopt(pycurl.CONNECT_TO, [f"::127.0.0.1:{receiver.port}"])
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.TIMEOUT, 10)
        handle.setopt(pycurl.WRITEFUNCTION, len)

    def asks(self, url: str) -> tuple[str, str]:
        """Host and path."""
        before = len(self._receiver.requests)
        self._handle.setopt(pycurl.URL, url)
        self._handle.perform()
        (seen,) = self._receiver.requests[before:]
        return seen.headers["host"], seen.path


@pytest.fixture(scope="module")
def curl() -> Iterator[Curl]:
    with Receiver() as receiver:
        yield Curl(receiver)


_PIECES = st.sampled_from(
    [
        *"/\\?#@:%[].-_~;&=+,!*'()|{}<>^`\"",
        *[
            "//",
            "..",
            "/./",
            "/../",
            "/%2e",
            "%2E",
            "%2f",
            "%40",
            "%00",
            "http:",
            "https://",
            "xn--",
            "xn--bcher-kva",
            "a",
            "B",
            "z9",
            "example",
            "com",
            "localhost",
        ],
        *[
            "1",
            "0",
            "127",
            "0x7f",
            "0177",
            "256",
            "65535",
            "80",
            "::1",
            "[::1]",
            "ü",
            "ß",
            "。",
            "．",
            "１",
            "／",
            "＠",
            "：",
            "℀",
            "٣",
        ],
        *"\u00ad\u200b\u3000\t\r\n\0 ",
    ]
)
_NUMBERS = st.sampled_from(["1", "0", "127", "255", "256", "0x7f", "0X1", "017", "08", "a", "65536", "16777215"])
_NAMES = st.sampled_from(["a", "B-c", "d_e", "xn--a", "ü", "１", "com"])
_JOINED = st.lists(_NUMBERS | _NAMES, min_size=1, max_size=5).map(".".join) | st.lists(_NUMBERS, min_size=1).map(
    ".".join
)
_URLS = st.one_of(
    st.text(),
    st.builds("http://{}".format, st.text()),
    st.builds("{}{}".format, st.sampled_from(["http://", "HTTPS://", "http:/"]), st.lists(_PIECES).map("".join)),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["http://", "https://"]),
        _JOINED,
        st.sampled_from(["", ".", ":80", ":", ".:1", ":443"]),
        st.builds("{}{}".format, st.sampled_from("/?#"), st.lists(_PIECES).map("".join)),
    ),
)


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("http://example.com\\@localhost/")
@example("http://a@b/")
@example("http://a?@b/")
@example("http://a#@b/")
@example("http://a/\\@b")
@example("http://a;b/")
@example("http://1.2.3/")
@example("http://0x7f000001/")
@example("http://1.0xffffff:1/")
@example("http://127.0.0.1./")
@example("http://a.:81/")
@example("http://[::ffff:1.2.3.4]/")
@example("http://xn--a/")
@example("http://a/../../b/%2e%2e")
@example("http://a/%0a%zz?%0a")
@given(_URLS)
def test_libcurl_reads_the_host_and_the_path_that_we_judged(curl: Curl, url: str) -> None:
    """Whatever comes, it is refused with a ValueError or it means the same to us and to libcurl."""
    try:
        target = parse(url)
    except ValueError:
        return
    assert re.fullmatch("[!-~]+", target.url)
    # Read again it stays as it is: nothing is left to interpret.
    assert parse(target.url) == target
    host, port, path = _without_tls(curl, target)
    assert _same_host(host, target.host)
    assert port == target.port
    assert path == _path(target)


def _path(target: Target) -> str:
    rest = re.sub("^https?://[^/?#]*", "", target.url).partition("#")[0]
    return rest if rest.startswith("/") else f"/{rest}"


def _same_host(host: str, ours: str) -> bool:
    return host == ours or (":" in ours and IPv6Address(host) == IPv6Address(ours))


def _without_tls(curl: Curl, target: Target) -> tuple[str, int, str]:
    """What libcurl reads in the target's URL: host, port (the scheme's own spelt out) and path."""
    scheme, _, rest = target.url.partition("://")
    seen, path = curl.asks(f"http://{rest}")
    name, colon, port = seen.rpartition(":")
    if not colon or seen.endswith("]"):
        name, port = seen, str(80 if scheme == "http" or _names_port(rest) else 443)
    return name.strip("[]"), int(port), path


def _names_port(rest: str) -> bool:
    """Whether the authority ends in a port: http's own port is not seen in the Host header."""
    return re.match(r"[^/?#]*:[0-9]+(?:[/?#]|\Z)", rest) is not None
