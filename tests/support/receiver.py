"""A real HTTP receiver for tests, on loopback, in a thread of its own.

It records each request and answers by path: with an ``Answer``, with a function of the request that
returns one, or with a script that writes to the connection whatever it likes, sane or hostile.

    with Receiver() as receiver:
        receiver.on("/busy", Answer(503, {"Retry-After": "7"}))
        receiver.on("/liar", close_inside_body)
        ... send to receiver.url("/busy") ...
        assert receiver.requests[0].body == b"…"
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

from tests.support.skips import skip_or_fail

_BACKLOG = 4096
_BLOCK = b"x" * 65536


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. Header names are in lower case; ``at`` is epoch seconds.

    ``certificate`` is the common name of the certificate that the sender has shown, empty without one.
    """

    method: str
    path: str
    headers: dict[str, str]
    header_lines: tuple[str, ...]
    body: bytes
    at: float
    peer: tuple[str, int]
    certificate: str = ""


@dataclass(frozen=True)
class Answer:
    """``delay`` in seconds before it is written. Content-Length is added unless given."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0


class Connection:
    """What a script may do: write bytes, wait for the gate, and close by returning."""

    def __init__(self, receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._receiver = receiver
        self._reader = reader
        self._writer = writer

    async def head(self) -> str:
        """Request line and headers; only for a ``RawScript``."""
        return (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")

    async def read(self, count: int) -> bytes:
        """At most ``count`` bytes; none at the end. Only for a ``RawScript``."""
        return await self._reader.read(count)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    @property
    def closed(self) -> bool:
        """Whether writing is pointless: under TLS that is no error."""
        return self._writer.is_closing()

    def reset(self) -> None:
        """Hang up with a RST: what was written and not taken yet may be lost."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def gate(self) -> None:
        """Wait until the test calls ``Receiver.open_gate``."""
        await self._receiver.gate.wait()

    async def gone(self) -> None:
        """Wait until the peer has closed."""
        await self._receiver.never(self._writer)


Script = Callable[[Seen, Connection], Awaitable[None]]
RawScript = Callable[[Connection], Awaitable[None]]
Behaviour = Answer | Callable[[Seen], Answer] | Script


class Receiver:
    """Use as a context manager. Everything public may be called from the test's thread.

    ``raw`` has each connection from its first byte, with as little buffered as the system allows: the requests
    are then not recorded.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        raw: RawScript | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.default: Behaviour = Answer()
        self._tls = tls
        self._raw = raw
        self._routes: dict[str, Behaviour] = {}
        self._seen: list[Seen] = []
        self._changed = threading.Condition()
        self._connections = 0
        self._open = 0
        self._most_open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._ready = threading.Event()
        self._readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = {}
        self.gate = asyncio.Event()

    # --- for the test ------------------------------------------------------------------------

    def url(self, path: str = "/", host: str | None = None) -> str:
        name = host or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"{'https' if self._tls else 'http'}://{name}:{self.port}{path}"

    def on(self, path: str, behaviour: Behaviour) -> str:
        """Answer ``path`` so from now on; returns its URL."""
        self._routes[path] = behaviour
        return self.url(path)

    @property
    def requests(self) -> list[Seen]:
        with self._changed:
            return list(self._seen)

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return self._connections

    @property
    def open_connections(self) -> int:
        return self._open

    @property
    def most_open_connections(self) -> int:
        return self._most_open

    def wait_until(self, condition: Callable[[Receiver], bool], timeout: float = 10.0) -> None:
        """Wait for requests or connections to make ``condition`` true; TimeoutError otherwise."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"{len(self._seen)} requests, {self._open} open connections")

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> None:
        self.wait_until(lambda it: len(it._seen) >= count, timeout)

    def open_gate(self) -> None:
        """Let go everything that ``held`` holds, and all that comes."""
        self._loop.call_soon_threadsafe(self.gate.set)

    def drop_connections(self) -> None:
        """Close every connection, kept ones too, and wait until all are gone."""
        self._loop.call_soon_threadsafe(self._drop)
        self.wait_until(lambda it: it._open == 0)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the receiver did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # --- its thread --------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda *_: None)  # a peer that hangs up is no news here
        limit = 1 << 14 if self._raw else 1 << 22
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, self.host, self.port, ssl=self._tls, backlog=_BACKLOG, limit=limit)
        )
        if self._raw:
            server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._drop()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _drop(self) -> None:
        for writer in list(self._readers):
            writer.transport.abort()

    async def never(self, writer: asyncio.StreamWriter) -> None:
        await self._readers[writer].read()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._readers[writer] = reader
        self._count(1)
        try:
            if self._raw:
                await self._raw(Connection(self, reader, writer))
                return
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, ssl.SSLError):
            pass
        finally:
            with contextlib.suppress(Exception):
                writer.close()
                await writer.wait_closed()
            del self._readers[writer]
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._open += change
            self._connections += change == 1
            self._most_open = max(self._most_open, self._open)
            self._changed.notify_all()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; says whether the connection is kept."""
        seen = await _read_request(reader, writer)
        with self._changed:
            self._seen.append(seen)
            self._changed.notify_all()
        behaviour = self._routes.get(seen.path.partition("?")[0], self.default)
        if inspect.iscoroutinefunction(behaviour):
            await behaviour(seen, Connection(self, reader, writer))
            return False
        answer: Any = behaviour if isinstance(behaviour, Answer) else behaviour(seen)  # type: ignore[call-arg]
        if answer.delay:
            await asyncio.sleep(answer.delay)
        names = {name.lower() for name in answer.headers}
        lines = [f"HTTP/1.1 {answer.status} Whatever", *(f"{name}: {value}" for name, value in answer.headers.items())]
        if "content-length" not in names and answer.status not in (204, 304):
            lines.append(f"Content-Length: {len(answer.body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
        await writer.drain()
        return "connection" not in names


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    method, path, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    peer = writer.get_extra_info("peername")[:2]
    shown = writer.get_extra_info("peercert") or {}
    names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
    return Seen(method, path, headers, tuple(lines), body, time.time(), peer, "".join(names))


# --- behaviours, sane and hostile ---------------------------------------------------------------


async def held(seen: Seen, connection: Connection) -> None:
    """Answers 200 once the gate is open, and closes."""
    await connection.gate()
    await connection.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


async def never_answer(seen: Seen, connection: Connection) -> None:
    await connection.gone()


async def close_before_headers(seen: Seen, connection: Connection) -> None:
    return


async def close_inside_status_line(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 20")


async def close_inside_headers(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Half: ab")


async def close_between_headers(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")


async def close_inside_body(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")


async def close_inside_bad_news(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 503 No\r\nRetry-After: 9\r\nContent-Length: 1000\r\n\r\nhalf")


async def close_before_body_of_bad_news(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 503 No\r\nRetry-After: 9\r\nContent-Length: 1000\r\n\r\n")


async def endless_headers(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await connection.write(b"X-More: " + _BLOCK[:8000] + b"\r\n")


async def one_endless_header(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nX-More: ")
    while True:
        await connection.write(_BLOCK)


async def endless_body(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await connection.write(_BLOCK)


async def endless_bad_news(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 500 No\r\n\r\n")
    while True:
        await connection.write(_BLOCK)


async def only_1xx(seen: Seen, connection: Connection) -> None:
    """An interim answer, then nothing."""
    await connection.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    await connection.gone()


async def only_1xx_then_close(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")


async def endless_1xx(seen: Seen, connection: Connection) -> None:
    while True:
        await connection.write(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 100)


async def switching_protocols(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
    await connection.gone()


async def garbage(seen: Seen, connection: Connection) -> None:
    await connection.write(b"\x00\x01\x02 SSH-2.0-nope\r\n\r\n" * 20)


async def bad_chunks(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nwhat\r\n0\r\n\r\n")


async def unfinished_chunks(seen: Seen, connection: Connection) -> None:
    await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhat\r\n")


async def drip(seen: Seen, connection: Connection) -> None:
    """A sound answer, one byte each 10 ms, that would take most of a minute."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + _BLOCK[:5000]:
        await connection.write(bytes([byte]))
        await asyncio.sleep(0.01)


def redirect(to: str, status: int = 302) -> Answer:
    return Answer(status, {"Location": to})


def busy(seconds: float, *, as_date: bool = False, status: int = 503) -> Answer:
    """Too busy; ``Retry-After`` in seconds or as an HTTP date."""
    after = formatdate(time.time() + seconds, usegmt=True) if as_date else str(round(seconds))
    return Answer(status, {"Retry-After": after}, b"busy")


# --- raw scripts --------------------------------------------------------------------------------


async def read_slowly(connection: Connection) -> None:
    """Takes the body in 16 KiB pieces with a pause between them, and rests in the middle until the gate is open."""
    left = length = _length(await connection.head())
    while left:
        data = await connection.read(min(left, 1 << 14))
        if not data:
            return
        left -= len(data)
        await asyncio.sleep(0.001)
        if left < length // 2:
            await connection.gate()
    await connection.write(b"HTTP/1.1 200 OK\r\nX-Length: %d\r\nContent-Length: 0\r\n\r\n" % length)


async def never_read(connection: Connection) -> None:
    """Reads the headers and nothing of the body."""
    await connection.head()
    await connection.gate()


async def refuse_early(connection: Connection) -> None:
    """Answers 413 as soon as the headers are there, and takes no more than what comes meanwhile."""
    await connection.head()
    await connection.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge")
    for _ in range(8):
        await connection.read(1 << 14)


def _length(head: str) -> int:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


# --- TLS ----------------------------------------------------------------------------------------


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for 127.0.0.1 and localhost, and its certificate's file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        skip_or_fail("the openssl command is needed to make a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
