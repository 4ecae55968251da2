"""Receivers that do what they like: each costs its own request and nobody else's, within time and memory."""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbq_exporter.delivery.engine import Request
from cbq_exporter.delivery.own_process import OwnProcess
from cbq_exporter.model import FailureKind
from tests.support import receiver as behaviours
from tests.support.receiver import Answer, Connection, Receiver, Script, Seen, never_answer
from tests.support.sender import Sender

PROTOCOL, TIMEOUT = FailureKind.PROTOCOL, FailureKind.TIMEOUT
HTTP_5XX = FailureKind.HTTP_5XX

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


def says(*parts: bytes) -> Script:
    """Writes ``parts`` and closes."""

    async def script(seen: Seen, connection: Connection) -> None:
        for part in parts:
            await connection.write(part)

    return script


def goes_on(*parts: bytes, again: bytes, pause: float = 0.0) -> Script:
    """Writes ``parts``, then ``again`` without an end."""

    async def script(seen: Seen, connection: Connection) -> None:
        for part in parts:
            await connection.write(part)
        while True:
            await connection.write(again)
            await asyncio.sleep(pause)

    return script


def resets_after(content: bytes) -> Script:
    async def script(seen: Seen, connection: Connection) -> None:
        await connection.write(content)
        connection.reset()

    return script


BOMB = gzip.compress(b"\0" * (64 << 20))
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


# name: (behaviour, status, failure)
HOSTILE: dict[str, tuple[Script, int, FailureKind | None]] = {
    "never_answer": (behaviours.never_answer, 0, TIMEOUT),
    "drip": (behaviours.drip, 0, TIMEOUT),
    # closes at each point
    "close_before_headers": (behaviours.close_before_headers, 0, PROTOCOL),
    "close_after_one_byte": (says(b"H"), 0, PROTOCOL),
    "close_inside_status_line": (behaviours.close_inside_status_line, 0, PROTOCOL),
    "close_after_status_line": (says(OK), 0, PROTOCOL),
    "close_inside_headers": (behaviours.close_inside_headers, 0, PROTOCOL),
    "close_between_headers": (behaviours.close_between_headers, 0, PROTOCOL),
    "close_before_the_empty_line": (says(OK + b"Content-Length: 0\r\n"), 0, PROTOCOL),
    "close_inside_the_empty_line": (says(OK + b"Content-Length: 0\r\n\r"), 0, PROTOCOL),
    "close_between_headers_of_bad_news": (says(b"HTTP/1.1 503 No\r\nRetry-After: 9\r\n"), 0, PROTOCOL),
    "close_between_headers_after_1xx": (says(b"HTTP/1.1 103 Hints\r\n\r\n" + OK + b"A: b\r\n"), 0, PROTOCOL),
    "close_before_body": (says(OK + b"Content-Length: 5\r\n\r\n"), 0, PROTOCOL),
    "close_inside_body": (behaviours.close_inside_body, 0, PROTOCOL),
    "close_inside_bad_news": (behaviours.close_inside_bad_news, 503, HTTP_5XX),
    "close_before_body_of_bad_news": (behaviours.close_before_body_of_bad_news, 503, HTTP_5XX),
    "reset_before_headers": (resets_after(b""), 0, PROTOCOL),
    "reset_inside_headers": (resets_after(OK + b"A: b"), 0, PROTOCOL),
    "reset_inside_body": (resets_after(OK + b"Content-Length: 1000\r\n\r\nhalf"), 0, PROTOCOL),
    "reset_inside_chunks": (resets_after(CHUNKED + b"4\r\nha"), 0, PROTOCOL),
    "unfinished_chunks": (behaviours.unfinished_chunks, 0, PROTOCOL),
    # without an end
    "endless_headers": (behaviours.endless_headers, 0, PROTOCOL),
    "one_endless_header": (behaviours.one_endless_header, 0, PROTOCOL),
    "endless_body": (behaviours.endless_body, 200, None),
    "endless_bad_news": (behaviours.endless_bad_news, 500, HTTP_5XX),
    "endless_1xx": (behaviours.endless_1xx, 0, PROTOCOL),
    "endless_cookies": (goes_on(OK, again=b"Set-Cookie: c=" + b"x" * 4000 + b"\r\n"), 0, PROTOCOL),
    "endless_trailers": (goes_on(CHUNKED, b"1\r\nx\r\n0\r\n", again=b"X: " + b"y" * 8000 + b"\r\n"), 0, PROTOCOL),
    "endless_status_line": (goes_on(b"HTTP/1.1 200 ", again=b"x" * 8000), 0, PROTOCOL),
    "endless_chunk_extension": (goes_on(CHUNKED, b"1;", again=b"x" * 8000, pause=0.001), 0, TIMEOUT),
    "endless_100": (goes_on(again=b"HTTP/1.1 100 Continue\r\n\r\n"), 0, PROTOCOL),
    # slow enough to be alive, and never done
    "drip_status_line": (goes_on(b"HTTP/1.1 200 ", again=b"x", pause=0.02), 0, TIMEOUT),
    "drip_headers": (goes_on(OK, again=b"X: y\r\n", pause=0.02), 0, TIMEOUT),
    "drip_chunks": (goes_on(CHUNKED, again=b"1\r\nx\r\n", pause=0.02), 0, TIMEOUT),
    "drip_interim": (goes_on(again=b"HTTP/1.1 102 Wait\r\n\r\n", pause=0.02), 0, TIMEOUT),
    "drip_bad_news": (goes_on(b"HTTP/1.1 500 No\r\n\r\n", again=b"x", pause=0.02), 500, HTTP_5XX),
    # interim answers only
    "only_1xx": (behaviours.only_1xx, 0, TIMEOUT),
    "only_1xx_then_close": (behaviours.only_1xx_then_close, 0, PROTOCOL),
    "continue_then_close": (says(b"HTTP/1.1 100 Continue\r\n\r\n"), 0, PROTOCOL),
    "switching_protocols": (behaviours.switching_protocols, 0, TIMEOUT),
    # no HTTP
    "garbage": (behaviours.garbage, 0, PROTOCOL),
    "http_0.9": (says(b"hello\n"), 0, PROTOCOL),
    "bad_chunks": (behaviours.bad_chunks, 0, PROTOCOL),
    "endless_chunk_size": (says(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100), 0, PROTOCOL),
    "icy": (says(b"ICY 200 OK\r\n\r\n"), 0, PROTOCOL),
    "empty_line_first": (says(b"\r\n" + OK + EMPTY), 0, PROTOCOL),
    "negative_chunk": (says(CHUNKED + b"-5\r\nx"), 0, PROTOCOL),
    "largest_chunk": (says(CHUNKED + b"7fffffffffffffff\r\nx"), 0, PROTOCOL),
    "largest_length": (says(OK + b"Content-Length: 9223372036854775807\r\n\r\nx"), 0, PROTOCOL),
    "unknown_transfer_encoding": (says(OK + b"Transfer-Encoding: x\r\n\r\nx"), 0, PROTOCOL),
    "unspeakable_encoding": (says(OK + b"Transfer-Encoding: a\xff\xc3\x1b[31m\xe2\x80\xa8b\r\n\r\n"), 0, PROTOCOL),
    "compressed_transfer": (says(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nnope\r\n"), 0, PROTOCOL),
    "header_without_colon": (says(OK + b"nonsense\r\n" + EMPTY), 0, PROTOCOL),
    "no_status": (says(b"HTTP/1.1\r\n" + EMPTY), 0, PROTOCOL),
    "status_of_four_digits": (says(b"HTTP/1.1 1000 Hm\r\n" + EMPTY), 0, PROTOCOL),
    "negative_status": (says(b"HTTP/1.1 -200 Hm\r\n" + EMPTY), 0, PROTOCOL),
    "status_of_two_digits": (says(b"HTTP/1.1 20 OK\r\n" + EMPTY), 0, PROTOCOL),
    "status_099": (says(b"HTTP/1.1 099 Low\r\n" + EMPTY), 0, PROTOCOL),
    "two_lengths": (says(OK + b"Content-Length: 1\r\nContent-Length: 5\r\n\r\nhello"), 0, PROTOCOL),
    "negative_length": (says(OK + b"Content-Length: -1\r\n\r\n"), 0, PROTOCOL),
    "nul_in_a_header": (says(OK + b"A: b\0c\r\n" + EMPTY), 0, PROTOCOL),
    "http_7": (says(b"HTTP/7.0 200 OK\r\n" + EMPTY), 0, PROTOCOL),
}

# Unusual, but nothing is wrong with them.
SOUND: dict[str, Script] = {
    "without_length": says(OK + b"\r\nbody until the end"),
    "http_1.0": says(b"HTTP/1.0 200 OK\r\n\r\n"),
    "bare_line_feeds": says(b"HTTP/1.1 200 OK\n\n"),
    "no_reason": says(b"HTTP/1.1 200\r\n" + EMPTY),
    "1xx_first": says(b"HTTP/1.1 102 Wait\r\n\r\n" * 10 + OK + EMPTY),
    "chunks": says(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nwhat\r\n0\r\n\r\n"),
    "no_chunks": says(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "trailers": says(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nwhat\r\n0\r\nA: b\r\n\r\n"),
    "trailers_alone": says(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n"),
    "many_trailers_alone": says(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 60 + b"\r\n"),
    "byte_by_byte": says(*[bytes([byte]) for byte in OK + EMPTY]),
    "close": says(OK + b"Connection: close\r\n" + EMPTY),
    "many_cookies": says(OK + b"Set-Cookie: a=b; Domain=.example.com\r\n" * 1000 + EMPTY),
    "long_reason": says(b"HTTP/1.1 200 " + b"x" * 50_000 + b"\r\n" + EMPTY),
    "continue_first": says(b"HTTP/1.1 100 Continue\r\n\r\n" * 3, OK + EMPTY),
    "unspeakable_length": says(OK + b"Content-Length: 99999999999999999999999\r\n\r\nx"),
    "more_than_no_content": says(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"),
    "bomb": says(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB),
    "brotli": says(OK + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nnope"),
    "compressed_nonsense": says(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"),
}


@pytest.fixture(params=[False, True], ids=["thread", "process"])
def own_process(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def stage() -> Iterator[Receiver]:
    with Receiver() as receiver:
        for name, (behaviour, _, _) in HOSTILE.items():
            receiver.on(f"/{name}", behaviour)
        for name, sound in SOUND.items():
            receiver.on(f"/{name}", sound)
        yield receiver


def hostile(sender: Sender, stage: Receiver, name: str, timeout: float) -> Request:
    """``timeout`` is for those that only a timeout can end."""
    _, _, failure = HOSTILE[name]
    only_time_ends_it = failure == TIMEOUT or name == "drip_bad_news"
    return sender.request(stage.url(f"/{name}"), timeout=timeout if only_time_ends_it else 30.0)


def test_each_ends_as_it_should_and_in_time(stage: Receiver, sender: Sender) -> None:
    began = time.monotonic()
    exchanges = sender.send([hostile(sender, stage, name, 0.5) for name in HOSTILE])
    assert time.monotonic() - began < 5
    ends = {name: (end.status, end.failure) for name, end in zip(HOSTILE, exchanges, strict=True)}
    assert ends == {name: (status, failure) for name, (_, status, failure) in HOSTILE.items()}
    for name, end in zip(HOSTILE, exchanges, strict=True):
        assert not end.never_left, name
        assert end.duration < 5, name
        assert len(end.sample) <= 1024, name
        assert (end.detail == "") == (end.failure is None), name
        assert end.detail.isprintable(), name
        assert len(end.detail) < 500, name


def test_unusual_answers_are_answers(stage: Receiver, sender: Sender) -> None:
    exchanges = sender.send([sender.request(stage.url(f"/{name}")) for name in SOUND])
    ends = {name: (end.status, end.failure) for name, end in zip(SOUND, exchanges, strict=True)}
    assert ends == {name: (204 if name == "more_than_no_content" else 200, None) for name in SOUND}


ABSURD_WAITS: list[tuple[list[bytes], set[float | None]]] = [
    ([b"-1"], {None}),
    ([b""], {None}),
    ([b"soon"], {None}),
    ([b"0x10"], {None}),
    ([b"+7"], {None}),
    ([b"7.9"], {7.0}),
    ([b"  7\t"], {7.0}),
    ([b"9" * 30], {None, 6 * 3600.0}),
    ([b"9" * 60_000], {None, 6 * 3600.0}),
    ([b"9223372036854775807"], {None, 6 * 3600.0}),
    ([b"86400"], {6 * 3600.0}),
    ([b"Thu, 01 Jan 1970 00:00:00 GMT"], {None}),
    ([b"Sun, 06 Nov 1994 08:49:37 GMT"], {None}),
    ([b"Fri, 31 Dec 9999 23:59:59 GMT"], {6 * 3600.0}),
    ([b"Mon, 99 Foo 2099 25:61:61 GMT"], {None}),
    ([b"7", b"9"], {7.0, 9.0}),
    ([b"9", b"Sun, 06 Nov 1994 08:49:37 GMT"], {None, 9.0}),
    ([b"\xff\xfe"], {None}),
]


def test_absurd_waits_are_no_reason_to_wait(receiver: Receiver, sender: Sender) -> None:
    """``Retry-After`` is at most a wait of six hours; the status stands whatever it says."""
    for values, allowed in ABSURD_WAITS:
        lines = b"".join(b"Retry-After: %s\r\n" % value for value in values)
        exchange = sender.post(receiver.on("/", says(b"HTTP/1.1 503 No\r\n" + lines + EMPTY)))
        assert (exchange.status, exchange.failure) == (503, HTTP_5XX), values
        assert exchange.retry_after in allowed, (values, exchange.retry_after)


def test_the_others_do_not_notice(stage: Receiver, receiver: Receiver, own_process: bool) -> None:
    """While the slow ones of them still hang."""
    with Sender(own_process=own_process) as sender:
        sender.submit([hostile(sender, stage, name, 30.0) for name in HOSTILE])
        first = sender.submitted
        sender.submit([sender.request(receiver.url(), b"good") for _ in range(200)])
        sender.wait(lambda: sum(end.tag >= first for end in sender.done) == 200)
        assert {end.status for end in sender.done if end.tag >= first} == {200}
        assert sender.engine.in_flight >= 4
        sender.close()
        kinds = {end.failure for end in sender.done if end.tag < first}
        assert FailureKind.CANCELLED in kinds


def test_one_handle_outlives_all_of_them(stage: Receiver, receiver: Receiver, own_process: bool) -> None:
    """One after the other on the same handle, with a good one after each: nothing rubs off."""
    with Sender(max_connections=1, own_process=own_process) as sender:
        for name, (_, status, failure) in HOSTILE.items():
            bad, good = sender.send([hostile(sender, stage, name, 0.1), sender.request(receiver.url(), b"good")])
            assert (bad.status, bad.failure) == (status, failure), name
            assert (good.status, good.failure, good.detail, good.sample) == (200, None, "", b""), name
            assert good.retry_after is None


def test_memory_is_bounded(stage: Receiver, own_process: bool) -> None:
    names = [name for name in HOSTILE if "endless" in name and name != "endless_chunk_extension"]
    with Sender(max_connections=100, own_process=own_process) as sender:

        def once() -> int:
            sender.send([sender.request(stage.url(f"/{name}"), timeout=5.0) for name in (*names, "bomb") * 5])
            carrier = sender.engine._carrier
            return _resident(carrier.pid if isinstance(carrier, OwnProcess) else None)

        before = once()  # what a first use costs is not the question
        assert max(once() for _ in range(2)) - before < 48 << 20


def _resident(pid: int | None) -> int:
    """In bytes; the most so far where the system does not say more."""
    statm = Path(f"/proc/{pid or 'self'}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_an_answer_too_many_is_not_taken_for_the_next_one(receiver: Receiver) -> None:
    smuggled = b"HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n"

    async def one_and_another(seen: Seen, connection: Connection) -> None:
        await connection.write(OK + EMPTY + smuggled)
        await connection.gone()

    with Sender(max_connections=1) as sender:
        assert sender.post(receiver.on("/double", one_and_another)).status == 200
        assert sender.post(receiver.on("/single", Answer(204))).status == 204


def test_an_answer_before_it_was_asked_for(receiver: Receiver) -> None:
    async def hasty(connection: Connection) -> None:
        await connection.write(OK + EMPTY)
        await connection.head()

    with Receiver(raw=hasty) as hasty_one, Sender() as sender:
        # Good or bad, but one exchange, and no trouble for the next.
        assert sender.post(hasty_one.url()).failure in (None, PROTOCOL)
        assert sender.post(receiver.url()).status == 200


def test_redirects_are_an_end(receiver: Receiver, sender: Sender) -> None:
    receiver.on("/loop", behaviours.redirect(receiver.url("/loop"), 307))
    exchange = sender.post(receiver.url("/loop"))
    assert (exchange.status, exchange.failure) == (307, FailureKind.HTTP_3XX)
    for to in (
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "//",
        "\x01",
        "http://[::1",
        "gopher://127.0.0.1:6379/_FLUSHALL",
    ):
        receiver.on("/away", behaviours.redirect(to))
        assert sender.post(receiver.url("/away")).failure == FailureKind.HTTP_3XX
    assert len(receiver.requests) == 7


def test_many_that_never_answer_end_together(receiver: Receiver) -> None:
    with Sender(max_connections=200) as sender:
        url = receiver.on("/", never_answer)
        began = time.monotonic()
        exchanges = sender.send([sender.request(url, timeout=0.5) for _ in range(200)])
        assert time.monotonic() - began < 5
        assert {end.failure for end in exchanges} == {TIMEOUT}
