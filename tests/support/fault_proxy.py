"""A proxy before a server that breaks what it is told to break, when it is told to.

with FaultProxy(server.socket) as proxy:
    proxy.plan(Fault(Action.DROP_REPLY, containing=b"EVALSHA"))
    ... talk to proxy.url ...
    assert proxy.struck == 1
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

_PIECE = 1 << 20  # bytes passed on at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no farewell, nothing that is on its way arrives


class Action(StrEnum):
    DELAY = "delay"  # the piece, and all after it, come ``seconds`` later
    CUT = "cut"  # ``after_bytes`` of the piece still pass; then both sides are closed
    RESET = "reset"  # the same with a TCP reset
    DROP_REPLY = "drop_reply"  # the request passes and is carried out; its answer is not, and the client is cut off
    BLACK_HOLE = "black_hole"  # the piece, and all after it in this direction, never come; nothing is closed


class Direction(StrEnum):
    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to which piece. A piece is what one side sent at once: as a rule a request, or its answer.

    Only requests with the bytes ``containing`` count, or, in the direction to the client, the answers to such
    requests; of those, the first ``skip`` pass, and the next ``times`` are struck, on whichever connection.
    """

    action: Action
    direction: Direction = Direction.TO_SERVER
    containing: bytes = b""
    skip: int = 0
    times: int = 1
    seconds: float = 0.0
    after_bytes: int = 0


@dataclass(slots=True)
class _Planned:
    fault: Fault
    seen: int = 0

    def strikes(self, direction: Direction, request: bytes) -> bool:
        fault = self.fault
        if direction is not fault.direction or fault.containing not in request:
            return False
        self.seen += 1
        return fault.skip < self.seen <= fault.skip + fault.times


@dataclass(eq=False, slots=True)
class _Link:
    """One client's connection and the one to the server that was made for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    mute: set[Direction] = field(default_factory=set)  # directions in which nothing passes any more
    drops_reply: bool = False
    request: bytes = b""  # the last that was sent

    def close(self) -> None:
        for writer in (self.client, self.server):
            writer.close()

    def reset(self) -> None:
        made_by = self.client.get_extra_info("socket")
        made_by.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.client.transport.abort()
        self.server.close()


class FaultProxy:
    """Use as a context manager. It listens on TCP, on loopback; ``upstream`` is the server's unix socket."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._planned: list[_Planned] = []
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.struck = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def plan(self, *faults: Fault) -> None:
        """From now on these, and only these."""

        async def change() -> None:
            self._planned = [_Planned(fault) for fault in faults]

        self._do(change())

    def lead_to(self, upstream: Path) -> None:
        """New connections, as a name in the DNS would after a failover; those that are open stay where they are."""
        self._upstream = str(upstream)

    def heal(self) -> None:
        """Nothing is broken any more; what is half dead (a black hole) is closed."""

        async def change() -> None:
            self._planned = []
            for link in self._links:
                if link.mute:
                    link.close()

        self._do(change())

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._listener.close()
        for link in self._links:
            link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._upstream, limit=_PIECE)
        except OSError:
            to_client.close()
            return
        link = _Link(to_client, to_server)
        self._links.add(link)
        for work in (
            self._pump(link, Direction.TO_SERVER, from_client, to_server),
            self._pump(link, Direction.TO_CLIENT, from_server, to_client),
        ):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, link: _Link, direction: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(_PIECE):
                if direction is Direction.TO_CLIENT and link.drops_reply:
                    break  # there it is: so the command has run
                if direction not in link.mute and not await self._pass_on(link, direction, piece, sink):
                    break
        link.close()
        self._links.discard(link)

    async def _pass_on(self, link: _Link, direction: Direction, piece: bytes, sink: asyncio.StreamWriter) -> bool:
        """Whether the link is still good."""
        if direction is Direction.TO_SERVER:
            link.request = piece
        fault = next((one.fault for one in self._planned if one.strikes(direction, link.request)), None)
        if fault is not None:
            self.struck += 1
            match fault.action:
                case Action.DELAY:
                    await asyncio.sleep(fault.seconds)
                case Action.CUT | Action.RESET:
                    sink.write(piece[: fault.after_bytes])
                    await sink.drain()
                    if fault.action is Action.RESET:
                        link.reset()
                    return False
                case Action.DROP_REPLY:
                    link.drops_reply = True
                case Action.BLACK_HOLE:
                    link.mute.add(direction)
                    return True
        sink.write(piece)
        await sink.drain()
        return True
