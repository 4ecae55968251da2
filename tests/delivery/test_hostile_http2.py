"""HTTP/2 that goes wrong, frame by frame: one end for each request, within time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Iterator

import pytest

from cbq_exporter.model import FailureKind
from tests.support.certificates import Authority, Certificate
from tests.support.receiver import Connection, RawScript, Receiver
from tests.support.sender import Sender

PROTOCOL, TIMEOUT = FailureKind.PROTOCOL, FailureKind.TIMEOUT

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
# Of the header table that both sides know: ":status: 200" and ":status: 500" are one byte each.
OK, BAD = b"\x88", b"\x8e"


def frame(kind: int, content: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def literal(name: bytes, value: bytes) -> bytes:
    """A header that is in no table; both lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


HELLO = frame(SETTINGS)
FINE = frame(HEADERS, OK, flags=END_HEADERS | END_STREAM, stream=1)


def speaks(*frames: bytes, again: bytes = b"", stay: bool = False) -> RawScript:
    """Answers the first request with ``frames``, then with ``again`` for ever."""

    async def script(connection: Connection) -> None:
        await connection.read(1 << 14)
        await connection.write(HELLO)
        await connection.read(1 << 14)
        with contextlib.suppress(OSError):
            for one in frames:
                await connection.write(one)
            while again and not connection.closed:
                await connection.write(again)
                await asyncio.sleep(0)  # writing never waits once the other side is gone
            if stay:
                await connection.gone()

    return script


def headers(block: bytes, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, block, flags=flags, stream=1)


# name: (script, status, failures, one of which it is: a flood may be noticed, or last until the timeout)
HOSTILE: dict[str, tuple[RawScript, int, tuple[FailureKind | None, ...]]] = {
    "fine": (speaks(FINE, stay=True), 200, (None,)),
    "silence": (speaks(stay=True), 0, (TIMEOUT,)),
    "close": (speaks(), 0, (PROTOCOL,)),
    "garbage": (speaks(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 20), 0, (PROTOCOL,)),
    "goaway": (speaks(frame(GOAWAY, struct.pack(">II", 0, 2))), 0, (PROTOCOL,)),
    "reset: internal error": (speaks(frame(RST_STREAM, struct.pack(">I", 2), stream=1), stay=True), 0, (PROTOCOL,)),
    # libcurl asks again where a stream was refused, a few times.
    "reset: refused": (speaks(frame(RST_STREAM, struct.pack(">I", 7), stream=1)), 0, (PROTOCOL, TIMEOUT)),
    "reset after good headers": (
        speaks(headers(OK), frame(RST_STREAM, struct.pack(">I", 2), stream=1), stay=True),
        0,
        (PROTOCOL,),
    ),
    "close after good headers": (speaks(headers(OK)), 0, (PROTOCOL,)),
    "close inside headers": (speaks(headers(OK, flags=0)), 0, (PROTOCOL,)),
    "close inside a body": (speaks(headers(OK), frame(DATA, b"half", stream=1)), 0, (PROTOCOL,)),
    "shorter than it says": (
        speaks(headers(OK + literal(b"content-length", b"9")), frame(DATA, b"half", flags=END_STREAM, stream=1)),
        0,
        (PROTOCOL,),
    ),
    "reset after bad news": (
        speaks(headers(BAD), frame(RST_STREAM, struct.pack(">I", 2), stream=1)),
        500,
        (FailureKind.HTTP_5XX,),
    ),
    "endless body": (speaks(headers(OK), again=frame(DATA, b"x" * 16000, stream=1)), 200, (None,)),
    "empty data for ever": (speaks(headers(OK), again=frame(DATA, stream=1) * 100), 0, (PROTOCOL, TIMEOUT)),
    "interim answers for ever": (speaks(again=headers(b"\x08\x03103") * 50), 0, (PROTOCOL, TIMEOUT)),
    "continuations for ever": (
        speaks(headers(OK, flags=0), again=frame(CONTINUATION, literal(b"x", b"y" * 100) * 50, stream=1)),
        0,
        (PROTOCOL,),
    ),
    "settings for ever": (speaks(again=frame(SETTINGS) * 50), 0, (PROTOCOL, TIMEOUT)),
    "pings for ever": (speaks(again=frame(PING, b"x" * 8) * 50), 0, (PROTOCOL, TIMEOUT)),
    "a push": (speaks(frame(PUSH_PROMISE, struct.pack(">I", 2) + OK, flags=END_HEADERS, stream=1)), 0, (PROTOCOL,)),
    "an answer to nobody": (speaks(frame(HEADERS, OK, flags=5, stream=99)), 0, (PROTOCOL,)),
    "a window beyond all": (speaks(frame(WINDOW, struct.pack(">I", 0x7FFFFFFF))), 0, (PROTOCOL,)),
    "no status": (speaks(headers(literal(b"x", b"y")), stay=True), 0, (PROTOCOL, TIMEOUT)),
    "a table of names that grows": (speaks(headers(b"\x3f\xff\xff\xff\xff\x0f" + OK)), 0, (PROTOCOL,)),
    "a frame of 16 MiB": (speaks(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100_000), 0, (PROTOCOL,)),
    "a line break in a header": (
        speaks(headers(OK + literal(b"x", b"a\r\nHTTP/1.1 500 No")), stay=True),
        0,
        (PROTOCOL, TIMEOUT),
    ),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("IP:127.0.0.1")


@pytest.fixture
def stage(certificate: Certificate) -> Iterator[dict[str, Receiver]]:
    """A receiver for each."""
    context = certificate.server()
    context.set_alpn_protocols(["h2"])
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Receiver(raw=raw, tls=context)) for name, (raw, _, _) in HOSTILE.items()}


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_each_ends_as_it_should_and_in_time(
    stage: dict[str, Receiver], authority: Authority, own_process: bool
) -> None:
    with Sender(ca_file=str(authority.ca_file), own_process=own_process) as sender:
        began = time.monotonic()
        requests = [
            sender.request(stage[name].url(), timeout=1.0 if TIMEOUT in failures else 15.0)
            for name, (_, _, failures) in HOSTILE.items()
        ]
        ends = sender.send(requests)
        assert time.monotonic() - began < 10
    for (name, (_, status, failures)), end in zip(HOSTILE.items(), ends, strict=True):
        assert end.status == status, (name, end)
        assert end.failure in failures, (name, end)
        assert end.detail.isprintable()
        assert len(end.detail) < 500
