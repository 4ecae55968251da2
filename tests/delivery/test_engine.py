"""The sending engine: what goes out, what comes back, and that each request comes back exactly once.

Leaving a ``Sender`` holds it to one exchange a request, so every test here proves that too.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pycurl
import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.delivery import pacing, slot, transfers
from cbq_exporter.delivery.engine import Engine, Exchange, Request
from cbq_exporter.delivery.own_thread import OwnThread
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.surroundings import Surroundings
from cbq_exporter.delivery.transfers import Transfers
from cbq_exporter.model import FailureKind
from tests.support.receiver import (
    Answer,
    Connection,
    Receiver,
    Seen,
    busy,
    held,
    never_answer,
    never_read,
    read_slowly,
    refuse_early,
    self_signed,
)
from tests.support.sender import LOOPBACK, Sender

MIB = 1 << 20


# --- what goes out and what comes back ----------------------------------------------------------


def test_the_request_arrives_as_it_was_given(receiver: Receiver) -> None:
    body = bytes(range(256)) * 40
    headers = ["Content-Type: application/json", "X-Tab: a\tb", "webhook-id: msg_1"]
    with Sender(user_agent="cbq-exporter/1.2") as sender:
        exchange = sender.post(receiver.url("/a/b?c=%20d"), body, headers=headers)
        sender.post(receiver.url("/empty"), b"")
    assert exchange == Exchange(0, 200, None, duration=exchange.duration)
    assert 0 < exchange.duration < 5
    first, empty = receiver.requests
    assert (first.method, first.path, first.body) == ("POST", "/a/b?c=%20d", body)
    assert first.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "user-agent": "cbq-exporter/1.2",
        "accept": "*/*",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "x-tab": "a\tb",
        "webhook-id": "msg_1",
    }
    assert (empty.body, empty.headers["content-length"]) == (b"", "0")


def test_nothing_of_one_request_is_left_in_the_next(receiver: Receiver) -> None:
    """One connection, so one handle, used again and again."""
    url = receiver.on("/", lambda seen: Answer(503, {"Retry-After": "5"}, b"no") if seen.body == b"bad" else Answer())
    headers = ["A: 1"]
    with Sender(max_connections=1) as sender:
        bad = sender.post(url, b"bad", headers=headers)
        headers[0] = "B: 2"
        good = sender.post(url, b"", headers=headers)
        again = sender.post(receiver.url("/other"), b"x" * 100_000, headers=["C: 3"], timeout=1.0)
        small = sender.post(receiver.url("/other"), b"y", headers=["C: 3"])
    assert (bad.status, bad.failure, bad.retry_after, bad.sample) == (503, FailureKind.HTTP_5XX, 5.0, b"no")
    for exchange in (good, again, small):
        assert exchange == Exchange(exchange.tag, 200, None, duration=exchange.duration)
    assert [next(name for name in ("a", "b", "c") if name in seen.headers) for seen in receiver.requests] == list(
        "abcc"
    )
    assert [len(seen.body) for seen in receiver.requests] == [3, 0, 100_000, 1]
    assert receiver.connections == 1


@pytest.mark.parametrize(
    ("failure", "statuses"),
    [
        (None, (200, 201, 202, 204, 206, 226, 299)),
        (FailureKind.HTTP_3XX, (300, 301, 302, 303, 304, 305, 307, 308, 399)),
        (FailureKind.HTTP_4XX, (400, 401, 403, 404, 407, 408, 410, 413, 417, 421, 425, 429, 499)),
        (FailureKind.HTTP_5XX, (500, 502, 503, 504, 511, 599, 600, 999)),
    ],
)
def test_statuses(receiver: Receiver, sender: Sender, failure: FailureKind | None, statuses: tuple[int, ...]) -> None:
    body = {status: b"" if status in (204, 304) else b"because" for status in statuses}
    urls = [receiver.on(f"/{status}", Answer(status, body=body[status])) for status in statuses]
    exchanges = sender.send([sender.request(url) for url in urls])
    assert [(end.status, end.failure, end.sample) for end in exchanges] == [
        (status, failure, b"" if failure is None else body[status]) for status in statuses
    ]
    assert not any(end.never_left for end in exchanges)


def test_retry_after(receiver: Receiver, sender: Sender) -> None:
    def after(value: str) -> float | None:
        return sender.post(receiver.on("/", Answer(429, {"Retry-After": value}))).retry_after

    assert after("7") == 7.0
    assert after("0") is None
    assert after("-5") is None
    assert after("soon") is None
    assert after("Wed, 21 Oct 2015 07:28:00 GMT") is None
    as_date = sender.post(receiver.on("/", busy(90, as_date=True, status=429))).retry_after
    assert as_date is not None
    assert 85 <= as_date <= 90
    assert after("99999999999999999999") in (None, 6 * 3600.0)  # libcurl believes no more than six hours
    assert sender.post(receiver.on("/", Answer(429))).retry_after is None


def test_answers_are_read_to_a_limit(receiver: Receiver) -> None:
    page = b"<html>" + b"x" * 300_000
    with Sender(max_response_bytes=10_000) as sender:
        good = sender.post(receiver.on("/good", Answer(200, body=page)))
        bad = sender.post(receiver.on("/bad", Answer(500, body=page)))
        whole = sender.post(receiver.on("/whole", Answer(500, body=page[:9000])))
    assert (good.status, good.failure, good.sample) == (200, None, b"")
    assert (bad.status, bad.failure, bad.sample) == (500, FailureKind.HTTP_5XX, page[:1024])
    assert (whole.status, whole.sample) == (500, page[:1024])
    # A connection with unread bytes in it is not used again.
    assert receiver.connections == 3


def test_an_answer_that_is_asked_for_is_kept_whatever_its_status(sender: Sender, receiver: Receiver) -> None:
    page = bytes(range(256)) * 400
    urls = [receiver.on(f"/{status}", Answer(status, body=page)) for status in (200, 422)]
    asked = [sender.request(url, answer_bytes=110_000) for url in urls]
    cut = sender.request(urls[0], answer_bytes=1000)
    good, bad, part, usual = sender.send([*asked, cut, sender.request(urls[0])])
    assert (good.failure, good.sample) == (None, page)
    assert (bad.failure, bad.sample) == (FailureKind.HTTP_4XX, page)
    assert (part.failure, part.sample) == (None, page[:1000])
    assert (usual.failure, usual.sample) == (None, b"")


def test_exchanges_come_on_the_event_loop(receiver: Receiver) -> None:
    class Watching(Sender):
        def _on_done(self, exchanges: list[Exchange]) -> None:
            threads.add(threading.get_ident())
            super()._on_done(exchanges)

    threads: set[int] = set()
    with Watching() as sender:
        sender.send([sender.request(receiver.url()) for _ in range(20)])
    assert threads == {threading.get_ident()}


# --- connections --------------------------------------------------------------------------------


def test_connections_are_kept(receiver: Receiver, sender: Sender) -> None:
    for _ in range(30):
        assert sender.post(receiver.url()).status == 200
    assert receiver.connections == 1


def test_connections_are_bounded(receiver: Receiver) -> None:
    url = receiver.on("/", held)
    with Sender(max_connections=5) as sender:
        sender.submit([sender.request(url) for _ in range(23)])
        receiver.wait_for_requests(5)
        assert sender.engine.in_flight == 5
        assert sender.engine.outstanding == 23
        receiver.open_gate()
        sender.wait()
        assert [end.status for end in sender.done] == [200] * 23
        receiver.on("/", Answer())
        sender.send([sender.request(url) for _ in range(200)])
    assert receiver.most_open_connections == 5
    assert receiver.connections <= 23 + 5


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_of_fast_ones_more_are_handed_over_and_no_more_are_open(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, own_process: bool
) -> None:
    """Those that are handed over wait in their order, each destination for its own places, and are cancelled too."""
    monkeypatch.setattr(pacing, "_AHEAD", 1e9)  # seconds: however busy the machine is, the receiver counts as fast
    slow, quick = receiver.on("/slow", held), receiver.on("/quick", Answer())
    with Sender(max_connections=4, own_process=own_process) as sender:
        sender.send([sender.request(quick) for _ in range(20)])
        before = len(receiver.requests)
        sender.submit([sender.request(slow, destination="slow", places=2) for _ in range(5)])
        sender.submit([sender.request(quick, destination="quick", places=2) for _ in range(5)])
        sender.wait(lambda: sender.engine.outstanding == 5)  # the quick ones went past them
        receiver.wait_for_requests(before + 7)
        assert sender.engine.in_flight == 5
        sender.submit([sender.request(slow) for _ in range(6)])  # 8 of these 11 are handed over, 4 open
        receiver.wait_for_requests(before + 9)
        assert sender.engine.in_flight == 8
        sender.engine.cancel_unstarted()
        sender.wait(lambda: sender.engine.outstanding == 4)
        assert [end.failure for end in sender.done[-7:]] == [FailureKind.CANCELLED] * 7
        receiver.open_gate()
        sender.wait()
        assert [end.status for end in sender.done[-4:]] == [200] * 4
    assert len(receiver.requests) == before + 9
    assert receiver.most_open_connections == 4


def test_more_than_a_thousand_connections_at_once(receiver: Receiver, many_descriptors: None) -> None:
    """``select`` could not see the descriptors past 1,023."""
    url = receiver.on("/", held)
    count = 1300
    with Sender(max_connections=count) as sender:
        requests = [sender.request(url, timeout=60.0, connect_timeout=60.0) for _ in range(count)]
        sender.submit(requests)
        receiver.wait_for_requests(count, 60)
        assert receiver.open_connections == count
        assert sender.engine.in_flight == count
        receiver.open_gate()
        sender.wait(timeout=60)
        assert {end.status for end in sender.done} == {200}


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_connections_are_kept_beyond_those_in_use(own_process: bool) -> None:
    """So that of thousands of destinations each need not be connected to again and again."""
    with (
        Receiver(host="0.0.0.0") as receiver,
        Sender(max_connections=2, idle_connections=18, own_process=own_process) as sender,
    ):
        urls = [f"http://127.0.7.{number + 1}:{receiver.port}/" for number in range(20)]
        for _ in range(3):
            sender.send([sender.request(url) for url in urls])
        assert receiver.connections == receiver.open_connections == 20
        sender.send([sender.request(f"http://127.0.8.{number + 1}:{receiver.port}/") for number in range(5)])
        receiver.wait_until(lambda it: it.open_connections == 20)  # the oldest made room


def test_connections_that_nobody_uses_are_closed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "IDLE_CONNECTION", 0.2)
    with Sender(max_connections=2, idle_connections=2) as sender:
        for again in (1, 2):
            assert sender.post(receiver.url()).status == 200
            receiver.wait_until(lambda it: it.open_connections == 0)
            assert receiver.connections == again


def test_a_kept_connection_that_died_is_no_failure(receiver: Receiver, sender: Sender) -> None:
    assert sender.post(receiver.url()).status == 200
    receiver.drop_connections()
    assert sender.post(receiver.url()).status == 200
    assert len(receiver.requests) == 2
    # The receiver takes the request and hangs up: on a kept connection libcurl asks once more.
    seen: list[Seen] = []

    async def hang_up_once(request: Seen, connection: Connection) -> None:
        seen.append(request)
        if len(seen) > 1:
            await connection.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    assert sender.post(receiver.on("/once", hang_up_once), b"again").status == 201
    assert [request.body for request in seen] == [b"again", b"again"]


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_many_kept_connections_that_died_together_are_no_failure(own_process: bool) -> None:
    """libcurl tries five of them; then the request goes on a new one, and what happens there counts."""
    asked: list[str] = []

    async def takes_one_request(connection: Connection) -> None:
        asked.append((await connection.head()).split()[1])
        if asked[-1] != "/never":
            await connection.gate()
            await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            asked.append((await connection.head()).split()[1])
        connection.reset()

    with Receiver(raw=takes_one_request) as receiver, Sender(own_process=own_process) as sender:
        sender.submit([sender.request(receiver.url("/first"), b"") for _ in range(20)])
        receiver.wait_until(lambda it: it.connections == 20)
        receiver.open_gate()
        sender.wait()
        assert sender.post(receiver.url("/again"), b"").status == 200
        assert asked[20:] == ["/again"] * 7
        failed = sender.post(receiver.url("/never"), b"")
        assert (failed.failure, failed.never_left) == (FailureKind.PROTOCOL, False)
        assert asked[27:] == ["/never"] * 7
        receiver.drop_connections()
        assert sender.post(receiver.url("/never"), b"").failure == FailureKind.PROTOCOL
        assert asked[34:] == ["/never"]


def test_nobody_listens(receiver: Receiver, sender: Sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert sender.post(receiver.on("/", Answer(503, {"Retry-After": "9"}))).status == 503
    exchange = sender.post(f"http://127.0.0.1:{port}/")
    assert (exchange.failure, exchange.status, exchange.retry_after) == (FailureKind.CONNECT, 0, None)
    assert exchange.never_left
    assert "Connection refused" in exchange.detail


@pytest.mark.parametrize("sender", [False], ids=["thread"], indirect=True)
def test_out_of_descriptors(receiver: Receiver, sender: Sender) -> None:
    """Our own trouble, not the receiver's; and it passes."""
    probe = os.dup(0)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        exchange = sender.post(receiver.url())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert exchange.failure == FailureKind.LOCAL
    assert exchange.never_left
    assert "Too many open files" in exchange.detail
    assert sender.post(receiver.url()).status == 200


# --- time ---------------------------------------------------------------------------------------


def test_total_timeout(receiver: Receiver, sender: Sender) -> None:
    slow = sender.request(receiver.on("/never", never_answer), timeout=0.3)
    began = time.monotonic()
    late, good = sender.send([slow, sender.request(receiver.url())])
    assert time.monotonic() - began < 2
    assert (late.failure, late.status, late.never_left) == (FailureKind.TIMEOUT, 0, False)
    assert 0.25 < late.duration < 2
    assert good.status == 200
    assert [end.tag for end in sender.done] == [good.tag, late.tag]


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue is full: a further connect is not answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            waiting.append(one)
        yield address[1]
        for one in waiting:
            one.close()


def test_connect_timeout(full_port: int, receiver: Receiver, sender: Sender) -> None:
    silent = f"https://127.0.0.1:{receiver.port}/"  # speaks no TLS and waits for more
    began = time.monotonic()
    connecting, shaking_hands = sender.send(
        [
            sender.request(f"http://127.0.0.1:{full_port}/", timeout=15.0, connect_timeout=0.3),
            sender.request(silent, timeout=15.0, connect_timeout=0.3),
        ]
    )
    assert time.monotonic() - began < 3
    assert (connecting.failure, connecting.never_left) == (FailureKind.TIMEOUT, True)
    assert (shaking_hands.failure, shaking_hands.never_left) == (FailureKind.TIMEOUT, True)


def test_what_is_too_late_is_not_sent(receiver: Receiver) -> None:
    first = receiver.on("/first", held)
    with Sender(max_connections=1) as sender:
        now = SYSTEM_CLOCK.monotonic()
        blocker = sender.request(first, timeout=30.0)
        late = sender.request(receiver.url("/late"), not_after=now + 0.05)
        moved = sender.request(receiver.url("/moved"), not_after=now + 0.05)
        past = sender.request(receiver.url("/past"), not_after=now - 1)
        sender.submit([blocker, late, moved, past])
        receiver.wait_for_requests(1)
        moved.not_after = now + 60  # its owner extended the lease while it waited
        while SYSTEM_CLOCK.monotonic() <= late.not_after:
            time.sleep(0.01)
        receiver.open_gate()
        sender.wait()
        ends = {end.tag: end for end in sender.done}
    assert ends[blocker.tag].status == 200
    assert ends[moved.tag].status == 200
    for expired in (ends[late.tag], ends[past.tag]):
        assert (expired.failure, expired.never_left) == (FailureKind.EXPIRED, True)
    assert [seen.path for seen in receiver.requests] == ["/first", "/moved"]


# --- what cannot be sent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "X: a\r\nHost: evil",
        "X: a\nY: b",
        "X: a\rb",
        "X: a\0b",
        "X: a\x7f",
        "X: \x1b[31m",
        "X: ü",
        "X\n: a",
        "X: a\u2028b",
    ],
    ids=ascii,
)
def test_a_header_that_could_carry_more_than_one_is_refused(receiver: Receiver, sender: Sender, header: str) -> None:
    bad, good = sender.send([sender.request(receiver.url(), headers=[header]), sender.request(receiver.url())])
    assert (bad.failure, bad.never_left) == (FailureKind.PROTOCOL, True)
    assert "printable ASCII" in bad.detail
    assert good.status == 200
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "dict", "telnet", "ws", "smtp", "ldap", "tftp", "mqtt"])
def test_other_schemes_are_refused_by_libcurl_too(receiver: Receiver, sender: Sender, scheme: str) -> None:
    exchange = sender.post(f"{scheme}://127.0.0.1:{receiver.port}/etc/passwd")
    assert exchange.failure == FailureKind.PROTOCOL
    assert receiver.connections == 0


def test_a_url_that_did_not_come_from_parse(receiver: Receiver, sender: Sender) -> None:
    urls = [
        "",
        "http://",
        "http://\n/",
        receiver.url("/a b"),
        receiver.url("/a\r\nX: y"),
        receiver.url("/\0"),
        "http://ü/",
    ]
    exchanges = sender.send([sender.request(url) for url in urls])
    assert {end.failure for end in exchanges} == {FailureKind.PROTOCOL}
    assert receiver.connections == 0


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_an_unknown_certificate_is_refused(tls: tuple[ssl.SSLContext, Path], sender: Sender) -> None:
    with Receiver(tls=tls[0]) as receiver:
        exchange = sender.post(receiver.url())
        assert (exchange.failure, exchange.never_left) == (FailureKind.TLS, True)
        assert not receiver.requests


def test_a_certificate_of_the_ca_file_is_good_for_its_own_names(
    tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = tls
    with Receiver(tls=context) as receiver, Sender(ca_file=str(certificate)) as sender:
        assert sender.post(receiver.url(), b"x" * MIB).status == 200
        assert sender.post(receiver.url(host="localhost")).status == 200
        make = slot.Slot.__init__

        def make_with_name(self: slot.Slot, around: Surroundings) -> None:
            make(self, around)
            self.curl.setopt(pycurl.RESOLVE, [f"other.test:{receiver.port}:127.0.0.1"])

        monkeypatch.setattr(slot.Slot, "__init__", make_with_name)
        with Sender(ca_file=str(certificate)) as another:
            wrong = another.post(receiver.url(host="other.test"))
        assert (wrong.failure, wrong.never_left) == (FailureKind.TLS, True)
        assert len(receiver.requests) == 2


def test_tls_with_somebody_who_does_not_speak_it(sender: Sender) -> None:
    async def plain(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Receiver(raw=plain) as receiver:
        exchange = sender.post(f"https://127.0.0.1:{receiver.port}/")
    assert (exchange.failure, exchange.never_left) == (FailureKind.TLS, True)


def test_a_ca_file_that_is_not_there_is_our_own_trouble(tls: tuple[ssl.SSLContext, Path], tmp_path: Path) -> None:
    with Receiver(tls=tls[0]) as receiver, Sender(ca_file=str(tmp_path / "none.pem")) as sender:
        assert sender.post(receiver.url()).failure == FailureKind.LOCAL


# --- large bodies -------------------------------------------------------------------------------
# With the safety tick out of the way, one lost wake-up leaves a request standing until its timeout.


@pytest.fixture
def no_safety_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_SAFETY_TICK", 3600.0)


def patient(sender: Sender, url: str, body: bytes) -> Any:
    return sender.request(url, body, timeout=600.0, connect_timeout=600.0)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_large_bodies(tls: tuple[ssl.SSLContext, Path], no_safety_tick: None, encrypted: bool) -> None:
    context, certificate = tls
    sizes = [10_000_000, 16 << 10, (16 << 10) + 1, 64 << 10, (64 << 10) + 1, 4 * MIB, *[MIB] * 40]
    bodies = [os.urandom(64) * (size // 64) + b"x" * (size % 64) for size in sizes]
    with Receiver(tls=context if encrypted else None) as receiver, Sender(ca_file=str(certificate)) as sender:
        exchanges = sender.send([patient(sender, receiver.url(), body) for body in bodies], timeout=30)
        assert [end.status for end in exchanges] == [200] * len(bodies)
        assert sorted(seen.body for seen in receiver.requests) == sorted(bodies)
        # Once more, on kept connections.
        assert {end.status for end in sender.send([patient(sender, receiver.url(), body) for body in bodies])} == {200}


def test_receivers_that_read_slowly_do_not_slow_the_others(receiver: Receiver, no_safety_tick: None) -> None:
    with Receiver(raw=read_slowly) as slow, Sender() as sender:
        sender.submit([patient(sender, slow.url(), b"x" * 3 * MIB) for _ in range(4)])
        slow.wait_until(lambda it: it.open_connections == 4)
        sender.submit([patient(sender, receiver.url(), b"y" * 50_000) for _ in range(50)])
        sender.wait(lambda: len(sender.done) >= 50)
        assert sender.engine.in_flight == 4
        slow.open_gate()
        sender.wait()
        assert {end.status for end in sender.done} == {200}


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The waits of every engine, one a turn of its loop: one that spins makes thousands a second."""
    waits: list[float | None] = []
    wait = Poller.wait

    def counted(self: Poller, seconds: float | None) -> None:
        waits.append(seconds)
        wait(self, seconds)

    monkeypatch.setattr(Poller, "wait", counted)
    return waits


def test_a_receiver_that_does_not_read_costs_no_time(turns: list[float | None]) -> None:
    with Receiver(raw=never_read) as receiver, Sender() as sender:
        sender.submit([sender.request(receiver.url(), b"x" * 20 * MIB, timeout=1.0) for _ in range(3)])
        receiver.wait_until(lambda it: it.open_connections == 3)
        before = len(turns)
        sender.wait()
        assert len(turns) - before < 500
        assert {(end.failure, end.never_left) for end in sender.done} == {(FailureKind.TIMEOUT, False)}


def test_waiting_costs_no_time(receiver: Receiver, turns: list[float | None]) -> None:
    """For answers, on idle connections, and on those that the receiver has closed."""
    with Sender() as sender:
        sender.submit([sender.request(receiver.on("/", never_answer), timeout=0.5) for _ in range(20)])
        receiver.wait_for_requests(20)
        before = len(turns)
        sender.wait()
        assert len(turns) - before < 150
        sender.send([sender.request(receiver.url("/kept")) for _ in range(20)])
        receiver.drop_connections()
        before = len(turns)
        time.sleep(0.2)
        assert len(turns) - before < 50


def test_an_answer_before_the_body_was_read(no_safety_tick: None) -> None:
    with Receiver(raw=refuse_early) as receiver, Sender() as sender:
        exchange = sender.post(receiver.url(), b"x" * 10_000_000)
    # The hang-up may overtake the answer, as it may with any sender.
    assert exchange.failure in (FailureKind.HTTP_4XX, FailureKind.PROTOCOL)
    assert not exchange.never_left


# --- ending -------------------------------------------------------------------------------------


def test_close_gives_what_is_on_its_way_its_time(receiver: Receiver) -> None:
    url = receiver.on("/", held)
    with Sender(max_connections=2) as sender:
        sender.submit([sender.request(url) for _ in range(5)])
        receiver.wait_for_requests(2)
        threading.Timer(0.1, receiver.open_gate).start()
        began = time.monotonic()
        sender.close(grace=10)
        assert time.monotonic() - began < 5  # no longer than it takes
        assert [end.status for end in sender.done if end.failure is None] == [200, 200]
        unsent = [end for end in sender.done if end.failure is not None]
        assert [(end.failure, end.never_left) for end in unsent] == [(FailureKind.CANCELLED, True)] * 3
    assert len(receiver.requests) == 2


def test_close_does_not_wait_longer_than_its_grace(receiver: Receiver) -> None:
    with Sender() as sender:
        sender.submit([sender.request(receiver.on("/", never_answer), timeout=60.0) for _ in range(3)])
        receiver.wait_for_requests(3)
        began = time.monotonic()
        sender.close(grace=0.1)
        assert time.monotonic() - began < 3
        assert [(end.failure, end.never_left) for end in sender.done] == [(FailureKind.CANCELLED, False)] * 3
        receiver.wait_until(lambda it: it.open_connections == 0)
        # Closed again, and asked again: nothing hangs and nothing is lost.
        sender.close(grace=1)
        assert sender.post(receiver.url()).failure == FailureKind.CANCELLED
        sender.engine.cancel_unstarted()
    assert not [thread for thread in threading.enumerate() if thread.name == "cbq-delivery"]


def test_two_closes_at_once(receiver: Receiver) -> None:
    async def both(engine: Engine) -> None:
        await asyncio.gather(engine.close(0.2), engine.close(0.2))

    with Sender() as sender:
        sender.submit([sender.request(receiver.on("/", never_answer)) for _ in range(3)])
        receiver.wait_for_requests(3)
        sender.loop.run_until_complete(both(sender.engine))
        assert [end.failure for end in sender.done] == [FailureKind.CANCELLED] * 3


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_what_comes_after_a_cancel_is_sent(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, own_process: bool
) -> None:
    """However late the cancel is heard: here at the same moment as what came before and after it."""
    monkeypatch.setattr(pacing, "ahead", lambda speed, most: 10)
    with Sender(max_connections=4, own_process=own_process) as sender:
        until = time.monotonic() + 0.6  # it has been measured by then, so that more are handed over than may be open
        while time.monotonic() < until:
            sender.send([sender.request(receiver.url()) for _ in range(20)])
        after: set[int] = set()

        async def at_one_moment() -> None:
            sender.engine.submit([tagged() for _ in range(4)])
            sender.engine.cancel_unstarted()
            those = [tagged() for _ in range(4)]
            after.update(one.tag for one in those)
            sender.engine.submit(those)

        def tagged() -> Request:
            sender.submitted += 1
            return sender.request(receiver.url(), tag=sender.submitted - 1)

        first = sender.submitted
        for _ in range(200):
            sender.loop.run_until_complete(at_one_moment())
            sender.wait()
        assert {end.status for end in sender.done if end.tag in after} == {200}
        others = [end for end in sender.done if end.tag >= first and end.tag not in after]
        assert any(end.failure is FailureKind.CANCELLED for end in others)


def test_cancelling_what_is_not_started(receiver: Receiver) -> None:
    url = receiver.on("/", held)
    with Sender(max_connections=1) as sender:
        sender.submit([sender.request(url) for _ in range(4)])
        receiver.wait_for_requests(1)
        sender.engine.cancel_unstarted()
        sender.wait(lambda: len(sender.done) == 3)
        assert {end.failure for end in sender.done} == {FailureKind.CANCELLED}
        receiver.open_gate()
        sender.wait()
        # The engine goes on.
        assert sender.post(receiver.url("/other")).status == 200


def test_an_engine_that_was_never_started(receiver: Receiver) -> None:
    loop = asyncio.new_event_loop()
    done: list[Exchange] = []
    engine = Engine(egress=LOOPBACK, on_done=done.extend, loop=loop, clock=SYSTEM_CLOCK)
    with Sender() as sender:
        request = sender.request(receiver.url())

    async def use() -> None:
        engine.submit([request])
        await engine.close(1)
        await asyncio.sleep(0)

    loop.run_until_complete(use())
    loop.close()
    assert [end.failure for end in done] == [FailureKind.CANCELLED]
    assert engine.outstanding == 0


def test_close_while_the_last_wake_up_is_being_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake-up of a submit serves for that of close() too: who takes it must look whether to stop."""
    take = OwnThread.take
    stop_now = threading.Event()

    def take_as_close_asks(self: OwnThread) -> Sequence[Request]:
        if stop_now.is_set():
            self.closing = True
            self._wake()  # finds a wake-up under way, and leaves it at that
        return take(self)

    monkeypatch.setattr(OwnThread, "take", take_as_close_asks)
    with Sender() as sender:
        time.sleep(0.02)  # let it come to rest; where it does not, the test proves less
        stop_now.set()
        carrier = sender.engine._carrier
        assert isinstance(carrier, OwnThread)
        carrier.submit([])
        thread = carrier._thread
        assert thread is not None
        thread.join(5)
        alive = thread.is_alive()
        if alive and carrier._poller is not None:
            carrier._poller.wake()  # so that a failure is a failure and no hanging
        assert not alive


def test_nothing_is_left_open(receiver: Receiver) -> None:
    def use() -> None:
        with Sender() as sender:
            assert {end.status for end in sender.send([sender.request(receiver.url()) for _ in range(20)])} == {200}
        receiver.wait_until(lambda it: it.open_connections == 0)

    use()
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        use()
    assert len(os.listdir("/dev/fd")) == before


# --- trouble of its own -------------------------------------------------------------------------


def fail_once(method: Callable[..., Any], armed: threading.Event, when: Callable[..., bool]) -> Callable[..., Any]:
    def failing(self: Any, *arguments: Any) -> Any:
        if armed.is_set() and when(self):
            armed.clear()
            raise RuntimeError("on purpose")
        return method(self, *arguments)

    return failing


@pytest.mark.parametrize("place", ["take", "_begin_taken", "_reap", "_new_multi", "wait"])
def test_an_error_inside_starts_the_engine_over_and_loses_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url = receiver.on("/", held)
    armed = threading.Event()
    owner: Any = {"wait": Poller, "take": OwnThread}.get(place, Transfers)
    # A new multi handle is needed only after another error.
    first = "_reap" if place == "_new_multi" else place
    monkeypatch.setattr(owner, first, fail_once(getattr(owner, first), armed, lambda it: True))
    with Sender(max_connections=3) as sender:
        sender.submit([sender.request(url, timeout=30.0) for _ in range(8)])
        receiver.wait_for_requests(3)
        if place == "_new_multi":
            twice = threading.Event()
            twice.set()
            monkeypatch.setattr(Transfers, place, fail_once(Transfers._new_multi, twice, lambda it: True))
        armed.set()
        receiver.open_gate()
        sender.submit([sender.request(receiver.url("/more")) for _ in range(4)])
        sender.wait()
        assert not armed.is_set()
        kinds = [end.failure for end in sender.done]
        assert set(kinds) <= {None, FailureKind.LOCAL}
        assert kinds.count(FailureKind.LOCAL) <= 3  # those in flight
        assert sender.post(receiver.url("/more")).status == 200


def test_close_ends_an_engine_that_cannot_start_over(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Transfers) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Transfers, "_new_multi", never)
    with Sender() as sender:
        sender.submit([sender.request(receiver.url()) for _ in range(3)])
        sender.close(grace=0.1)
        assert [(end.failure, end.never_left) for end in sender.done] == [(FailureKind.CANCELLED, True)] * 3


def test_a_handle_that_fails_costs_only_its_own_request(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = slot.Slot.answered

    def fail_for_one(self: slot.Slot) -> Exchange:
        if self.request.body == b"unlucky":
            raise RuntimeError("on purpose")
        return answered(self)

    monkeypatch.setattr(slot.Slot, "answered", fail_for_one)
    with Sender() as sender:
        bodies = [b"lucky", b"unlucky", b"lucky"]
        exchanges = sender.send([sender.request(receiver.url(), body) for body in bodies])
        assert [end.failure for end in exchanges] == [None, FailureKind.LOCAL, None]
