"""Receivers that do what they like: each costs its own request and nobody else's, within time and memory."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbq_exporter.delivery.engine import Request
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
    "unfinished_chunks": (behaviours.unfinished_chunks, 0, PROTOCOL),
    # without an end
    "endless_headers": (behaviours.endless_headers, 0, PROTOCOL),
    "one_endless_header": (behaviours.one_endless_header, 0, PROTOCOL),
    "endless_body": (behaviours.endless_body, 200, None),
    "endless_bad_news": (behaviours.endless_bad_news, 500, HTTP_5XX),
    "endless_1xx": (behaviours.endless_1xx, 0, PROTOCOL),
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
    "byte_by_byte": says(*[bytes([byte]) for byte in OK + EMPTY]),
    "close": says(OK + b"Connection: close\r\n" + EMPTY),
    "compressed_nonsense": says(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"),
}


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
    return sender.request(stage.url(f"/{name}"), timeout=timeout if failure == TIMEOUT else 30.0)


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
    assert [(name, end.status, end.failure) for name, end in zip(SOUND, exchanges, strict=True)] == [
        (name, 200, None) for name in SOUND
    ]


def test_the_others_do_not_notice(stage: Receiver, receiver: Receiver) -> None:
    """While the slow ones of them still hang."""
    with Sender() as sender:
        sender.submit([hostile(sender, stage, name, 30.0) for name in HOSTILE])
        first = sender.submitted
        sender.submit([sender.request(receiver.url(), b"good") for _ in range(200)])
        sender.wait(lambda: sum(end.tag >= first for end in sender.done) == 200)
        assert {end.status for end in sender.done if end.tag >= first} == {200}
        assert sender.engine.in_flight >= 4
        sender.close()
        kinds = {end.failure for end in sender.done if end.tag < first}
        assert FailureKind.CANCELLED in kinds


def test_one_handle_outlives_all_of_them(stage: Receiver, receiver: Receiver) -> None:
    """One after the other on the same handle, with a good one after each: nothing rubs off."""
    with Sender(max_connections=1) as sender:
        for name, (_, status, failure) in HOSTILE.items():
            bad, good = sender.send([hostile(sender, stage, name, 0.1), sender.request(receiver.url(), b"good")])
            assert (bad.status, bad.failure) == (status, failure), name
            assert (good.status, good.failure, good.detail, good.sample) == (200, None, "", b""), name
            assert good.retry_after is None


def test_memory_is_bounded(stage: Receiver) -> None:
    names = ["endless_headers", "one_endless_header", "endless_body", "endless_bad_news", "endless_1xx"]
    with Sender(max_connections=50) as sender:
        requests = [sender.request(stage.url(f"/{name}"), timeout=5.0) for name in names * 10]
        sender.send(requests)  # what a first use costs is not the question
        before = _resident()
        for _ in range(4):
            sender.send([sender.request(stage.url(f"/{name}"), timeout=5.0) for name in names * 10])
        assert _resident() - before < 48 << 20


def _resident() -> int:
    """In bytes; the most so far where the system does not say more."""
    statm = Path("/proc/self/statm")
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
