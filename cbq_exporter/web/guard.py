"""Bounds on what one client can hold: connections, half-sent requests, answers that nobody reads.

aiohttp bounds the size of a request's head, but lets a client take over a minute for it, and waits for ever for one
that stops reading. The guard sits between the socket and aiohttp, sees the bytes go by and looks at all connections
again and again while there are any. (The start of a request that came in one piece with the end of another is not
seen: there aiohttp's minute holds.) A connection with TLS counts from its handshake on.

Where no more may be open, the one that has waited longest for a request makes room. Else whoever holds them all, idle,
would keep everybody out.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import web

log = logging.getLogger(__name__)

_SAY_EVERY = 60.0  # seconds between two lines that say that there is no room


@dataclass(frozen=True, slots=True)
class Limits:
    """``head`` and ``answer`` are seconds: for a request's head to arrive, for an answer to be taken.

    ``heads`` and ``unsent`` are bytes of all connections together: of heads that are not whole, of which aiohttp takes
    a MiB each, and of answers that nobody has read yet.
    """

    connections: int = 512
    head: float = 10.0
    answer: float = 30.0
    look_every: float = 1.0
    heads: int = 8 * 1024 * 1024
    unsent: int = 64 * 1024 * 1024


class Guard:
    """Call it for the protocol of a new connection; ``middleware`` tells it which requests are complete."""

    def __init__(self, limits: Limits, make: Callable[[], asyncio.Protocol]) -> None:
        self._limits = limits
        self._make = make
        self._connections: dict[asyncio.BaseProtocol, Connection] = {}  # by aiohttp's protocol
        self._next_look: asyncio.TimerHandle | None = None
        self._said_full_at = -math.inf  # of the loop's clock
        self._heads = 0  # bytes of all heads that are not whole

    def __call__(self, refuses: Callable[[asyncio.Transport], str] | None = None) -> Connection:
        """``refuses`` says, before anything is read, why the client is not let in; empty where it is."""
        return Connection(self, self._make(), refuses)

    def close(self) -> None:
        """Abort whatever is still open."""
        for connection in tuple(self._connections.values()):
            connection.abort()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:
            return await handler(request)
        connection.begin_request()
        answer: web.StreamResponse | None = None
        try:
            answer = await handler(request)
            return answer
        finally:
            connection.end_request(0 if answer is None else answer.content_length or 0)

    def opened(self, connection: Connection) -> bool:
        """Says whether there is room for it; there stays room until it is ``closed``."""
        if connection.inner in self._connections:
            return True
        if len(self._connections) >= self._limits.connections and not self._make_room():
            return False
        self._connections[connection.inner] = connection
        connection.waits_since = asyncio.get_running_loop().time()
        if self._next_look is None:
            self._look_later()
        return True

    def took(self, connection: Connection, count: int) -> None:
        """So many bytes more of a head. Where all heads together are too many bytes, the largest is closed."""
        if connection.inner not in self._connections:
            return  # it is being closed
        connection.head += count
        self._heads += count
        while self._heads > self._limits.heads:
            self._say("half-sent requests are too large together: the largest are closed")
            self._close(max(self._connections.values(), key=lambda one: one.head))

    def head_ended(self, connection: Connection) -> None:
        self._heads -= connection.head
        connection.head = 0

    def wrote(self) -> None:
        """More than a socket takes at once. Where all that is unsent is too many bytes, the largest is closed."""
        unsent = {one: one.unsent for one in self._connections.values()}
        while sum(unsent.values()) > self._limits.unsent:
            self._say("answers that nobody reads are too large together: the largest are closed")
            largest = max(unsent, key=lambda one: unsent[one])
            del unsent[largest]
            self._close(largest)

    def _make_room(self) -> bool:
        waiting = [one for one in self._connections.values() if one.waits_since is not None]
        what = "for each new one the one that waits longest is closed" if waiting else "more are refused"
        self._say(f"{len(self._connections)} connections are open: {what}")
        if waiting:
            self._close(min(waiting, key=lambda one: one.waits_since or 0.0))
        return bool(waiting)

    def _close(self, connection: Connection) -> None:
        self.closed(connection)
        connection.abort()

    def _say(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_full_at >= _SAY_EVERY:
            self._said_full_at = now
            log.warning("%s", what)

    def closed(self, connection: Connection) -> None:
        if self._connections.pop(connection.inner, None) is not None:
            self.head_ended(connection)

    def _look_later(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(self._limits.look_every, self._look)

    def _look(self) -> None:
        self._next_look = None
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._connections.values()):
            trouble = connection.trouble(now, self._limits)
            if trouble:
                log.debug("a client's connection is closed: %s", trouble)
                connection.abort()
        if self._connections:
            self._look_later()


class Connection(asyncio.Protocol):
    """Hands everything on to aiohttp's protocol, and keeps two times."""

    def __init__(
        self, guard: Guard, inner: asyncio.Protocol, refuses: Callable[[asyncio.Transport], str] | None
    ) -> None:
        self.inner = inner
        self._refuses = refuses
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._in_request = False
        self._length = 0
        self._head_since: float | None = self._loop.time()
        self._unsent_since: float | None = None
        self._accepted = False
        self.head = 0  # bytes of a head that is not whole; a body's first ones may be among them for a moment
        self.waits_since: float | None = None  # for a handshake or a request, of the loop's clock; None during one
        self.give_up: Callable[[], object] | None = None  # ends the handshake
        self.transport: asyncio.Transport | None = None  # none yet during a handshake, which has a timeout of its own

    def begin_request(self) -> None:
        self._in_request = True
        self._head_since = self.waits_since = None
        self._guard.head_ended(self)

    def end_request(self, length: int) -> None:
        """``length`` of the answer's body, in bytes."""
        self._in_request = False
        self._length = length
        self._unsent_since = None
        self.waits_since = self._loop.time()

    @property
    def unsent(self) -> int:
        """Bytes that are kept for it: aiohttp has the whole body until the last of it has gone."""
        waiting = 0 if self.transport is None else self.transport.get_write_buffer_size()
        return max(waiting, self._length) if waiting else 0

    def trouble(self, now: float, limits: Limits) -> str:
        """Why it should be closed; empty where it is well. ``now`` is of the loop's clock."""
        if self.transport is None:
            return ""
        if self._head_since is not None and now - self._head_since > limits.head:
            return "it did not send a whole request in time"
        if not self.unsent:
            self._unsent_since = None
        elif self._unsent_since is None:
            self._unsent_since = now
        elif now - self._unsent_since > limits.answer:
            return "it does not read its answer"
        return ""

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.give_up is not None:
            self.give_up()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._head_since = self.waits_since = self._loop.time()
        self._accepted = self._guard.opened(self)
        why = self._refuses(self.transport) if self._accepted and self._refuses is not None else ""
        if why:
            log.debug("a client's connection is closed: %s", why)
            self._accepted = False
            self._guard.closed(self)
        if self._accepted:
            self.inner.connection_made(transport)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._accepted:
            self._guard.closed(self)
            self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._accepted:
            return
        if not self._in_request:
            if self._head_since is None:
                self._head_since = self._loop.time()
            self._guard.took(self, len(data))
            if self.transport is None or self.transport.is_closing():
                return
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received() if self._accepted else None

    def pause_writing(self) -> None:
        self.inner.pause_writing()
        self._guard.wrote()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
