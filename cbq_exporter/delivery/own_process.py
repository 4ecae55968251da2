"""Transfers in a process of their own: requests and exchanges are copied, and two processors can work.

The child ends when the daemon's end of the socket between them is closed, by whatever kind of death.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

import cbq_exporter
from cbq_exporter.delivery.exchange import Exchange, Request
from cbq_exporter.delivery.frames import CANCEL, EXCHANGES, OPTIONS, REQUESTS, Frames, frame
from cbq_exporter.delivery.surroundings import SendingOptions
from cbq_exporter.model import FailureKind

log = logging.getLogger(__name__)

_BUFFER = 1024 * 1024  # bytes that the kernel holds in each direction, where it lets us
_FRAME = 512 * 1024  # bytes of bodies, after which a frame ends
_FRAMES_AT_ONCE = 64
_STOP_WITHIN = 5.0  # seconds
_LONGEST_PAUSE = 5.0  # seconds before a child that keeps ending is started again

_exchanges = msgspec.msgpack.Decoder(list[Exchange]).decode


class OwnProcess:
    """``on_done`` is called on ``loop``. A child that dies is replaced; what it had under way is LOCAL trouble."""

    def __init__(
        self,
        options: SendingOptions,
        on_done: Callable[[list[Exchange]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._options = options
        self._on_done = on_done
        self._loop = loop
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._frames = Frames()
        self._outbox: deque[memoryview] = deque()
        self._under_way: dict[int, Any] = {}  # tags
        self._number = 0
        self._deaths = 0
        self._waiting: list[Request] = []  # while there is no child
        self._relaunch: asyncio.TimerHandle | None = None
        self._closing = False
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            ours.setblocking(False)
            self._process = subprocess.Popen(  # noqa: S603 (this program)
                [sys.executable, "-m", "cbq_exporter.delivery.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._frames = Frames()
        self._outbox.clear()
        self._loop.add_reader(ours, self._read)
        self._write(frame(OPTIONS, self._options))

    def submit(self, requests: list[Request]) -> None:
        if self._socket is None:
            self._waiting += requests
            return
        under_way, number = self._under_way, self._number
        batch: list[Request] = []
        size = 0
        for request in requests:
            number += 1
            under_way[number], request.tag = request.tag, number  # the child cannot be given a tag
            batch.append(request)
            size += len(request.body)
            if size > _FRAME:  # so that the first ones begin while the others are still being written
                self._write(frame(REQUESTS, batch))
                batch, size = [], 0
        self._number = number
        if batch:
            self._write(frame(REQUESTS, batch))

    def cancel_unstarted(self) -> None:
        """What has no connection yet comes back as CANCELLED."""
        if self._socket is not None:
            self._write(frame(CANCEL, None))

    async def stop(self) -> None:
        """Cut off what is in flight; ``on_done`` has been told all on return."""
        self._closing = True
        if self._relaunch is not None:
            self._relaunch.cancel()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _STOP_WITHIN)
            if self._socket is not None:
                self._child_is_gone()
        else:
            self._give_up(self._waiting)
            self._waiting = []

    # --- the socket --------------------------------------------------------------------------

    def _write(self, data: bytearray) -> None:
        self._outbox.append(memoryview(data))
        if len(self._outbox) > 1:
            return
        assert self._socket is not None
        self._flush()
        if self._outbox:
            self._loop.add_writer(self._socket, self._write_on)

    def _write_on(self) -> None:
        assert self._socket is not None
        self._flush()
        if not self._outbox:
            self._loop.remove_writer(self._socket)

    def _flush(self) -> None:
        """Write as much as the socket takes."""
        assert self._socket is not None
        outbox = self._outbox
        try:
            sent = self._socket.sendmsg(list(islice(outbox, _FRAMES_AT_ONCE)))
        except BlockingIOError:
            return
        except OSError:  # the end of the child is read
            outbox.clear()
            sent = 0
        while sent:
            first = outbox[0]
            if sent < len(first):
                outbox[0] = first[sent:]
                break
            sent -= len(first)
            outbox.popleft()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            count = self._socket.recv_into(self._frames.room())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._child_is_gone()
            return
        done: list[Exchange] = []
        for kind, content in self._frames.received(count):
            if kind == EXCHANGES:
                done += _exchanges(content)
            else:
                log.error("the sending process reports: %s", msgspec.msgpack.decode(content))
        for exchange in done:
            exchange.tag = self._under_way.pop(exchange.tag)
        if done:
            self._deaths = 0
            self._on_done(done)

    def _child_is_gone(self) -> None:
        assert self._socket is not None
        assert self._process is not None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        self._process.kill()
        code = self._process.wait()
        self._gone.set()
        if self._closing:
            kind, detail = FailureKind.CANCELLED, "stopped before the answer came"
        else:
            self._deaths += 1
            pause = min(_LONGEST_PAUSE, 0.05 * 2.0 ** min(self._deaths, 20))
            log.error("the sending process ended with %d; a new one starts in %.1f s", code, pause)
            kind, detail = FailureKind.LOCAL, "the sending process ended"
            self._relaunch = self._loop.call_later(pause, self._start_again)
        tags, self._under_way = self._under_way, {}
        if tags:
            self._on_done([Exchange(tag, 0, kind, detail=detail) for tag in tags.values()])

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as error:
            self._deaths += 1
            log.error("no sending process can be started: %s", error)
            self._relaunch = self._loop.call_later(_LONGEST_PAUSE, self._start_again)
            return
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.submit(waiting)

    def _give_up(self, requests: list[Request]) -> None:
        if requests:
            detail = "stopped before it was sent"
            self._on_done(
                [Exchange(one.tag, 0, FailureKind.CANCELLED, detail=detail, never_left=True) for one in requests]
            )


def _environment() -> dict[str, str]:
    """Ours; the package is found wherever this one was found."""
    folder = str(Path(cbq_exporter.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder, others] if others else [folder])}
