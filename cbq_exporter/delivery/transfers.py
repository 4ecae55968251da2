"""Runs transfers on a libcurl multi handle, off the event loop: in a thread or in a process of its own.

How it waits. libcurl's event API (``socket_action``) costs several callbacks into Python per request, each
taking the interpreter's lock; ``multi.perform`` costs none, but its ``select`` cannot see descriptors past
1,023. So this uses ``perform`` and does the waiting itself: each connection's descriptor is registered
once, when it is made, edge-triggered, and forgotten by the kernel when libcurl closes it. An edge comes only
after the socket was full or empty, and libcurl stops earlier when a body is large: while such a one moves,
there is no wait. Name resolution runs in libcurl's own threads, whose wake-up is not visible here: only
while one is under way, waits are short.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import pycurl

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.exchange import Exchange, Request, blocked, cancelled, expired, not_sendable, one_line
from cbq_exporter.delivery.slot import IDLE_CONNECTION, Slot
from cbq_exporter.delivery.surroundings import SendingOptions, Surroundings
from cbq_exporter.model import FailureKind

log = logging.getLogger(__name__)

_STREAMS = 100  # of one HTTP/2 connection; a receiver may allow fewer
_RESOLVING_TICK = 0.002
_SAFETY_TICK = 1.0  # while something is in flight: a lost wake-up costs at most this


class Port(Protocol):
    """Where requests come from and exchanges go to. It wakes the poller when there is something to take."""

    def take(self) -> Sequence[Request]:
        """What has come since the last time; does not wait."""

    @property
    def closing(self) -> bool:
        """Whether to end; asked after each ``take``."""

    def take_cancel(self) -> int | None:
        """Whether what has not begun is not to begin, and how many of those last taken came before that was said;
        None: it was not. Asked after each ``take``, and told once.
        """

    def give(self, exchanges: list[Exchange]) -> None: ...

    def close(self) -> Sequence[Request]:
        """Nothing comes any more; what came too late to be taken."""


class Transfers:
    """Each request that is taken is given back as exactly one exchange. Of one thread only."""

    def __init__(self, around: Surroundings, port: Port, options: SendingOptions, clock: Clock) -> None:
        self._around = around
        self._port = port
        self._max_connections = options.max_connections
        self._most_kept = options.max_connections + options.idle_connections
        self._clock = clock
        self._taken: deque[Request] = deque()  # and not begun
        self._open_to: dict[str, int] = {}  # requests, of destinations that have fewer places than may be open
        self._active: dict[pycurl.Curl, Slot] = {}
        self._large: list[Slot] = []  # of the active ones, those whose body is still being sent
        self._free: list[Slot] = []
        self._multi: Any = None
        self._ended_monotonic: float | None = None  # the last request; None: no connection is open

    def run(self) -> None:
        """Until the port closes; then what is in flight is cut off. An error of its own ends nothing else."""
        troubles = 0
        while not self._port.closing:
            try:
                self._multi = self._new_multi()
                self._turn()
            except Exception as trouble:
                log.exception("the delivery engine starts over after an error of its own")
                self._abort(FailureKind.LOCAL, f"the sending engine failed: {one_line(trouble)}")
                troubles += 1
                threading.Event().wait(min(1.0, 0.05 * troubles))
        self._abort(FailureKind.CANCELLED, "stopped before the answer came")
        self._taken.extend(self._port.close())
        self._give_back_taken(len(self._taken))
        for slot in self._free:
            slot.curl.close()
        self._free.clear()

    def _turn(self) -> None:
        """Until the port closes, or no connection has been used for so long that all are closed.

        libcurl itself looks for such only when another request comes, which may be never.
        """
        multi, port, around, poller = self._multi, self._port, self._around, self._around.poller
        while True:
            before = len(self._taken)
            self._taken.extend(port.take())
            if port.closing:  # asked after taking: the wake-up may have been for this
                return
            cancelled_of_these = port.take_cancel()
            if cancelled_of_these is not None:
                self._give_back_taken(before + cancelled_of_these)
            if self._taken:
                self._begin_taken()
            multi.perform()
            if self._active and self._reap():
                continue
            if self._large and self._still_sending():
                poller.wait(0.0)
                continue
            timeout = multi.timeout()
            if timeout == 0:
                poller.wait(0.0)
                continue
            most = math.inf if timeout < 0 else timeout / 1000.0
            if self._active:
                most = min(most, _SAFETY_TICK)
            elif self._ended_monotonic is not None:
                left = self._ended_monotonic + IDLE_CONNECTION - self._clock.monotonic()
                if left <= 0:
                    self._close_connections()
                    return
                most = min(most, left)
            if around.resolving:
                most = min(most, _RESOLVING_TICK)
            poller.wait(None if most == math.inf else most)

    def _close_connections(self) -> None:
        self._multi.close()
        self._multi = self._ended_monotonic = None

    def _still_sending(self) -> bool:
        moving = False
        for slot in self._large:
            moving |= slot.is_sending()
        return moving

    def _begin_taken(self) -> None:
        now = self._clock.monotonic()
        refused: list[Exchange] = []
        without_place: list[Request] = []
        while self._taken and len(self._active) < self._max_connections:
            request = self._taken.popleft()
            if request.places and self._open_to.get(request.destination, 0) >= request.places:
                without_place.append(request)
                continue
            refusal = self._begin(request, now)
            if refusal is not None:
                refused.append(refusal)
        self._taken.extendleft(reversed(without_place))
        if refused:
            self._port.give(refused)

    def _give_back_taken(self, count: int) -> None:
        """The first of them."""
        if count:
            self._port.give([cancelled(self._taken.popleft().tag) for _ in range(count)])

    def _begin(self, request: Request, now: float) -> Exchange | None:
        """Start ``request``, or say why it cannot be."""
        try:
            slot = self._free.pop() if self._free else Slot(self._around)
        except Exception as trouble:
            log.exception("no handle can be made")
            return not_sendable(request, trouble, local=True)
        try:
            if request.not_after < now:
                self._free.append(slot)
                return expired(request)
            if self._around.proxy is not None:
                reason = self._around.refusal(request.url)
                if reason is not None:
                    self._free.append(slot)
                    return blocked(request, reason)
            slot.load(request, now)
            self._multi.add_handle(slot.curl)
        except Exception as trouble:
            slot.discard()
            return not_sendable(request, trouble)
        self._active[slot.curl] = slot
        if request.places:
            self._open_to[request.destination] = self._open_to.get(request.destination, 0) + 1
        if slot.is_large:
            self._large.append(slot)
        return None

    def _reap(self) -> bool:
        """Take what libcurl has finished; says whether there was anything."""
        done: list[Exchange] = []
        left = 1
        try:
            while left:
                left, good, bad = self._multi.info_read(1000)
                ended = [(curl, None, "") for curl in good] + bad
                for curl, code, message in ended:
                    exchange = self._end(curl, code, message)
                    if exchange is not None:
                        done.append(exchange)
        finally:
            if done:
                self._port.give(done)
                self._ended_monotonic = self._clock.monotonic()
        return bool(done)

    def _end(self, curl: pycurl.Curl, code: int | None, message: str) -> Exchange | None:
        """``code`` is None where libcurl is content. None: it goes on."""
        self._multi.remove_handle(curl)
        slot = self._active[curl]
        request: Request = slot.request
        if code is not None and request.not_after >= self._clock.monotonic() and slot.goes_again(code, message):
            self._multi.add_handle(curl)
            return None
        del self._active[curl]
        if request.places:
            left = self._open_to[request.destination] = self._open_to[request.destination] - 1
            if not left:
                del self._open_to[request.destination]
        if slot.is_large:
            self._large.remove(slot)
        try:
            exchange = slot.answered() if code is None else slot.broke(code, message)
        except Exception as trouble:
            log.exception("the end of a request could not be read")
            slot.discard()
            detail = f"its end could not be read: {one_line(trouble)}"
            return Exchange(request.tag, 0, FailureKind.LOCAL, detail=detail)
        self._free.append(slot)
        return exchange

    def _abort(self, kind: FailureKind, detail: str) -> None:
        """End everything in flight and throw the multi handle away."""
        done: list[Exchange] = []
        for slot in self._active.values():
            done.append(slot.aborted(kind, detail))
            with contextlib.suppress(Exception):
                self._multi.remove_handle(slot.curl)
            with contextlib.suppress(Exception):
                slot.discard()
        self._active.clear()
        self._open_to.clear()
        self._large.clear()
        self._around.resolving = 0
        if self._multi is not None:
            with contextlib.suppress(Exception):
                self._close_connections()
            self._multi = None
        if done:
            self._port.give(done)

    def _new_multi(self) -> Any:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_MAXCONNECTS, self._most_kept)
        multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, _STREAMS)
        return multi
