"""Clients that misbehave hold little, for a short time, and harm no other."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import uvloop
from aiohttp import web

from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.web.guard import Limits
from cbq_exporter.web.headers import HEADERS
from tests.support.daemons import until
from tests.web.serving import FakeBackend, Serving, serving

NewLoop = Callable[[], Any]
QUICK = Limits(head=0.5, answer=0.5, look_every=0.1)
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def ended(sock: socket.socket) -> bool:
    """Reads until the server closes; False where it does not within the socket's timeout."""
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def cut_off(sock: socket.socket, within: float = 20) -> bool:
    deadline = time.monotonic() + within
    try:
        while time.monotonic() < deadline:
            sock.sendall(b"G")
            time.sleep(0.05)
    except ConnectionError:
        return True
    return False


def many_series(backend: FakeBackend) -> None:
    backend.instruments = Instruments(["callbacks"], max_destinations=1000)
    for number in range(600):
        backend.instruments.queue("callbacks").destination(f"host{number}.a-long-name.example")


def well(served: Serving) -> bool:
    return served.ask("/-/healthy").status == 200


@LOOPS
def test_a_client_that_stops_reading_is_cut_off(new_loop: NewLoop) -> None:
    """Its answers are larger than what the sockets hold, so that the server would have to keep the rest."""
    backend = FakeBackend()
    many_series(backend)
    with serving(backend, Limits(head=60, answer=0.5, look_every=0.1), new_loop=new_loop) as served:
        whole = len(served.ask("/metrics").body)
        sock = served.connect(receive_buffer=4096)
        for _ in range(1 + 8_000_000 // whole):
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert well(served), "others are served meanwhile"
        # Reading would make it a client that reads: that the connection is gone shows when writing to it.
        assert cut_off(sock)
        sock.close()
        assert well(served)


@LOOPS
def test_answers_that_nobody_reads_are_bounded_all_together(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    size, many = 6_000_000, 12  # larger than what the system takes for a socket

    class Large:
        def add_to(self, app: web.Application) -> None:
            app.router.add_get("/large", self._answer)

        async def _answer(self, request: web.Request) -> web.Response:
            return web.Response(body=bytes(size))

    with serving(FakeBackend(), Limits(answer=60, unsent=16_000_000), new_loop, [Large()]) as served:
        held = [served.connect(receive_buffer=4096) for _ in range(many)]
        for sock in held:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        until(lambda: bool(caplog.messages))
        assert len(served.ask("/large").body) == size, "who reads is served"
        got = [_whole_answer(sock) for sock in held]
        assert 0 < sum(got) < many, "some were closed, some were not"
        for sock in held:
            sock.close()
    assert caplog.messages == ["answers that nobody reads are too large together: the largest are closed"]


def _whole_answer(sock: socket.socket) -> bool:
    try:
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return bool(answer.read())
    except (OSError, http.client.HTTPException):
        return False


@LOOPS
@pytest.mark.parametrize("before", [b"", b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
def test_a_request_that_does_not_come_to_its_end_is_given_up(before: bytes, new_loop: NewLoop) -> None:
    with serving(FakeBackend(), QUICK, new_loop=new_loop) as served, served.connect() as sock:
        if before:
            sock.sendall(before)
            assert sock.recv(65536)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert ended(sock)


def test_a_connection_without_a_request_is_given_up() -> None:
    with serving(FakeBackend(), QUICK) as served, served.connect() as sock:
        assert ended(sock)


def test_a_head_that_drips_in_is_given_up() -> None:
    with serving(FakeBackend(), QUICK) as served, served.connect() as sock:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /metrics HTTP/1.1\r\n")
            while time.monotonic() - began < 15:
                sock.sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() - began < 10


def test_an_idle_connection_between_two_scrapes_is_kept() -> None:
    with serving(FakeBackend(), QUICK) as served, served.connect() as sock:
        sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        # Longer than both limits and the look that enforces them: what is tested is that nothing happens.
        time.sleep(1)
        sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def _asked(backend: FakeBackend, count: int) -> bool:
    return len(backend.deadlines) == count


def test_connections_with_a_request_under_way_are_not_closed_for_others() -> None:
    backend = FakeBackend()
    with serving(backend, Limits(connections=3, look_every=0.1)) as served:
        backend.hangs = True
        held = [served.connect() for _ in range(3)]
        for count, sock in enumerate(held, 1):
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 2\r\n\r\n")
            until(partial(_asked, backend, count))
        with served.connect() as extra:
            assert ended(extra)
        held.pop().close()
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                assert well(served)
                break
            assert time.monotonic() < deadline
        for sock in held:
            sock.close()


def test_half_sent_requests_are_bounded_all_together(caplog: pytest.LogCaptureFixture) -> None:
    head = b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 8000) for i in range(100))
    with serving(FakeBackend(), Limits(head=60, look_every=0.1)) as served:
        held = [served.connect() for _ in range(30)]  # 24 MB
        for sock in held:
            sock.settimeout(0.01)
            with contextlib.suppress(OSError):
                sock.sendall(head)
        assert well(served)
        until(lambda: sum(map(ended, held)) >= 19)
        with served.connect() as sock:
            sock.sendall(head + b"\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 "), "one by itself is heard"
        for sock in held:
            sock.close()
    assert caplog.messages == ["half-sent requests are too large together: the largest are closed"]


@pytest.mark.parametrize("sent", [b"", b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["silent", "idle"])
def test_nobody_keeps_others_out_by_holding_all_connections(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with serving(FakeBackend(), Limits(connections=3, head=60, look_every=0.1)) as served:
        held = [served.connect() for _ in range(3)]
        for sock in held:
            if sent:
                sock.sendall(sent)
                assert sock.recv(65536)
        assert well(served)
        assert ended(held[0]), "the one that waited longest made room"
        assert well(served)
        held += [served.connect() for _ in range(20)]
        assert well(served)
        for sock in held:
            sock.close()
    assert len(caplog.messages) == 1, "it is said once a minute at most"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\x00\r\n\r\n",
    ],
    ids=["long header", "many headers", "long path", "tls", "smuggling", "no host", "control character"],
)
def test_what_is_no_sane_request_is_refused_without_filling_the_log(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(FakeBackend(), QUICK) as served, served.connect() as sock:
        with contextlib.suppress(OSError, http.client.HTTPException):
            sock.sendall(request_bytes)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            assert answer.status == 400
            assert {answer.headers[name] for name in HEADERS} == set(HEADERS.values())
            assert answer.read() == b"This is no request that is understood here.\n", "it quotes nothing"
        assert ended(sock)
        assert well(served)
    assert caplog.records == []


def test_a_body_that_nobody_wants_is_not_read() -> None:
    with serving(FakeBackend(), QUICK) as served:
        assert served.ask("/metrics", "POST", body=b"x" * 65_537).status == 413
        with served.connect() as sock:
            sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):
                began = time.monotonic()
                while time.monotonic() - began < 15:
                    sock.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            assert time.monotonic() - began < 10
        assert well(served)
