"""Sending through a proxy: what is handed to it, what never is, and whose fault it is where it opens no way."""

from __future__ import annotations

import base64
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from cbq_exporter.config import DeliveryConfig, ProxyConfig, QueueConfig
from cbq_exporter.config.files import Files
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.proxying import Proxy, proxy_of
from cbq_exporter.errors import ConfigError
from cbq_exporter.model import FailureKind
from tests.support.connect_proxy import Way
from tests.support.receiver import Answer, Connection, Receiver, never_answer, self_signed
from tests.support.sender import LOOPBACK, Sender

NOTHING_ALLOWED = EgressPolicy()


@pytest.fixture(params=[False, True], ids=["thread", "process"])
def through(request: pytest.FixtureRequest) -> Callable[..., Sender]:
    """An engine that sends through a proxy at a port of loopback."""

    def make(proxy: Receiver, egress: EgressPolicy = NOTHING_ALLOWED, user: str = "", password: str = "") -> Sender:
        return Sender(egress, proxy=Proxy(proxy.url(""), user, password), own_process=request.param)

    return make


def test_everything_goes_through_it(receiver: Receiver, through: Callable[..., Sender]) -> None:
    """Without a look at the name: it is the proxy that resolves. The proxy itself needs no allowance."""
    way = Way(receiver.port)
    busy = Answer(503, {"Retry-After": "7"}, b"busy")
    receiver.on("/busy", busy)
    with Receiver(raw=way) as proxy, through(proxy, user="me", password="s3:cret") as sender:
        exchange = sender.post("http://hooks.example.com/x", b"one", headers=["X-Own: 1"])
        assert (exchange.status, exchange.failure) == (200, None)
        away = sender.post("http://hooks.example.com/busy")
        assert (away.status, away.failure, away.retry_after, away.sample) == (503, FailureKind.HTTP_5XX, 7.0, b"busy")
        assert not away.never_left
    (head,) = way.heads  # the way is kept
    assert head[0] == "CONNECT hooks.example.com:80 HTTP/1.1"
    credentials = base64.b64encode(b"me:s3:cret").decode()
    assert f"Proxy-Authorization: Basic {credentials}" in head
    assert not any(line.lower().startswith("x-own") for line in head)
    first = receiver.requests[0]
    assert (first.path, first.body, first.headers["host"]) == ("/x", b"one", "hooks.example.com")
    assert not any(name.startswith("proxy") for name in first.headers)


def test_tls_is_with_the_receiver(tmp_path: Path) -> None:
    context, certificate = self_signed(tmp_path)
    with (
        Receiver(tls=context) as receiver,
        Receiver(raw=Way(receiver.port)) as proxy,
        Sender(NOTHING_ALLOWED, proxy=Proxy(proxy.url("")), ca_file=str(certificate)) as sender,
    ):
        assert sender.post("https://hooks.example.com/").failure == FailureKind.TLS  # the certificate is localhost's
    with (
        Receiver(tls=context) as receiver,
        Receiver(raw=Way(receiver.port)) as proxy,
        Sender(LOOPBACK, proxy=Proxy(proxy.url("")), ca_file=str(certificate)) as sender,
    ):
        assert sender.post(f"https://127.0.0.1:{receiver.port}/").status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.1", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"),
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "redis", "printer.local", "metadata.google.internal"),
        *("a.internal.", "router.lan", "x.home.arpa", "wiki.corp"),
    ],
)
def test_what_is_never_handed_over(host: str) -> None:
    way = Way(1)
    with Receiver(raw=way) as proxy, Sender(NOTHING_ALLOWED, proxy=Proxy(proxy.url(""))) as sender:
        exchange = sender.post(f"http://{host}/")
        assert (exchange.failure, exchange.never_left) == (FailureKind.BLOCKED, True)
        assert exchange.detail.startswith("blocked: ")
        assert proxy.connections == 0


def test_allowances_and_ports_hold_for_what_is_handed_over(receiver: Receiver, through: Callable[..., Sender]) -> None:
    policy = EgressPolicy((ip_network("10.1.0.0/16"),), frozenset((80, 8443)))
    way = Way(receiver.port)
    urls = ("http://10.1.2.3/", "http://10.2.2.3/", "http://example.com:8443/", "http://example.com:22/")
    with Receiver(raw=way) as proxy, through(proxy, policy) as sender:
        ends = sender.send([sender.request(url) for url in urls])
    assert [end.failure for end in ends] == [None, FailureKind.BLOCKED, None, FailureKind.BLOCKED]
    assert "port 22 is none of 80, 8443" in ends[3].detail
    assert sorted(head[0].split()[1] for head in way.heads) == ["10.1.2.3:80", "example.com:8443"]


@pytest.mark.parametrize(
    ("answer", "failure", "detail"),
    [
        (b"403 No", FailureKind.LOCAL, "the proxy refuses: HTTP 403"),
        (b"407 Who", FailureKind.LOCAL, "the proxy refuses: HTTP 407"),
        (b"429 Slow", FailureKind.LOCAL, "the proxy refuses: HTTP 429"),
        (b"500 Oh", FailureKind.LOCAL, "the proxy refuses: HTTP 500"),
        (b"302 There", FailureKind.LOCAL, "the proxy refuses: HTTP 302"),
        # A receiver that is down must not be tried for ever.
        (b"502 Down", FailureKind.CONNECT, "the proxy cannot reach it: HTTP 502"),
        (b"504 Late", FailureKind.CONNECT, "the proxy cannot reach it: HTTP 504"),
    ],
)
def test_refusals_of_the_proxy(
    through: Callable[..., Sender], answer: bytes, failure: FailureKind, detail: str
) -> None:
    with Receiver(raw=Way(1, answer)) as proxy, through(proxy) as sender:
        exchange = sender.post("https://example.com/")
    assert (exchange.status, exchange.failure, exchange.detail) == (0, failure, detail)
    assert exchange.never_left


def test_a_proxy_that_is_not_there(through: Callable[..., Sender]) -> None:
    with Receiver() as proxy:
        gone = proxy
    with through(gone) as sender:
        exchange = sender.post("http://example.com/")
    assert (exchange.failure, exchange.never_left) == (FailureKind.LOCAL, True)
    assert exchange.detail.startswith("the proxy cannot be used: ")


def test_a_proxy_that_speaks_something_else(tmp_path: Path) -> None:
    async def garbage(connection: Connection) -> None:
        await connection.head()
        await connection.write(b"\x00\x01 nonsense\r\n\r\n")

    context, _ = self_signed(tmp_path)  # of nobody we know
    with Receiver(raw=garbage) as proxy, Receiver(tls=context) as unknown, Sender(proxy=Proxy(proxy.url(""))) as sender:
        assert sender.post("http://example.com/").failure == FailureKind.LOCAL
        with Sender(proxy=Proxy(unknown.url(""))) as another:
            exchange = another.post("http://example.com/")
            assert (exchange.failure, exchange.never_left) == (FailureKind.LOCAL, True)
            assert not unknown.requests


def test_a_receiver_that_the_proxy_is_still_trying_to_reach(through: Callable[..., Sender]) -> None:
    """It counts as the receiver's silence: else one that is down would be tried for ever."""
    with Receiver(raw=Way(1, silent=True)) as proxy, through(proxy) as sender:
        exchange = sender.post("http://example.com/", timeout=0.3, connect_timeout=0.3)
    assert (exchange.failure, exchange.never_left) == (FailureKind.TIMEOUT, True)


def test_a_receiver_that_fails_behind_it(receiver: Receiver, through: Callable[..., Sender]) -> None:
    """Its failures are its own, on a new way and on a kept one."""

    async def hang_up(seen: object, connection: Connection) -> None:
        return

    receiver.on("/never", never_answer)
    receiver.on("/gone", hang_up)
    with Receiver(raw=Way(receiver.port)) as proxy, through(proxy) as sender:
        for _ in range(2):
            assert sender.post("http://example.com/never", timeout=0.2).failure == FailureKind.TIMEOUT
            assert sender.post("http://example.com/gone").failure == FailureKind.PROTOCOL
            assert sender.post("http://example.com/").status == 200
            assert sender.post("http://example.com/gone").failure == FailureKind.PROTOCOL


def test_the_environment_cannot_lead_around_it(
    receiver: Receiver, through: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Way(receiver.port)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    with Receiver(raw=way) as proxy, through(proxy) as sender:
        assert sender.post("http://example.com/").status == 200
    assert len(way.heads) == 1


def test_credentials_come_from_a_file_and_show_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("me:s3:cret \n")
    config = ProxyConfig(url="http://proxy.example:3128/", credentials_file=file)
    queue = QueueConfig(name="q", delivery=DeliveryConfig(proxy=config))
    files = Files()
    proxy = proxy_of(queue, files)
    assert proxy == Proxy("http://proxy.example:3128", "me", "s3:cret ")
    assert "s3" not in repr(proxy)
    assert proxy_of(QueueConfig(name="q"), Files()) is None
    assert not files.have_changed()
    file.write_text("me:another")
    assert files.have_changed(), "a reload takes the new ones"
    for content in (b"", b"nobody", b":x", b"a:b\nc:d", b"a:\xff", b"a:" + b"b" * 5000):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            proxy_of(queue, Files())
        assert "queues[q].delivery.proxy.credentials_file" in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="no file there"):
        proxy_of(queue, Files())
