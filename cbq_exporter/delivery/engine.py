"""The sending engine: one thread that runs a libcurl multi handle, off the event loop.

How it waits. libcurl's event API (``socket_action``) costs several callbacks into Python per request, each
taking the interpreter's lock; ``multi.perform`` costs none, but its ``select`` cannot see descriptors past
1,023. So the engine uses ``perform`` and does the waiting itself: each connection's descriptor is registered
once, when it is made, edge-triggered, and forgotten by the kernel when libcurl closes it. An edge comes only
after the socket was full or empty, and libcurl stops earlier when a body is large: while such a one moves,
there is no wait. Name resolution runs in libcurl's own threads, whose wake-up is not visible here: only
while one is under way, waits are short.

What it promises. Each submitted request comes back as exactly one ``Exchange``, on the event loop, in
batches. libcurl repeats a request by itself in one case: a kept connection turned out to be dead before
any byte of an answer came. The receiver may see such a request twice, as delivery is at least once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pycurl

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.authorities import default_ca_file
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.exchange import Exchange, Request, cancelled, expired, not_sendable, one_line
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.slot import SAMPLE_BYTES, Slot, Surroundings
from cbq_exporter.model import FailureKind

__all__ = ["SAMPLE_BYTES", "Engine", "Exchange", "Request", "default_ca_file"]

log = logging.getLogger(__name__)

_RESOLVING_TICK = 0.002
_SAFETY_TICK = 1.0  # while something is in flight: a lost wake-up costs at most this


class Engine:
    """Sends requests for one egress policy.

    Kept connections are not judged again, so engines with different policies share nothing.
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        on_done: Callable[[list[Exchange]], None],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        max_response_bytes: int = 64 * 1024,
        ca_file: str | None = None,
        user_agent: str = "cbq-exporter",
        max_connections: int = 256,
    ) -> None:
        self.egress = egress
        self.max_response_bytes = max_response_bytes
        self.user_agent = user_agent
        self.max_connections = max_connections
        self.ca_file = ca_file or default_ca_file()
        self._on_done = on_done
        self._loop = loop
        self._clock = clock

        self._lock = threading.Lock()  # guards the next five
        self._inbox: list[Request] = []
        self._finished: list[Exchange] = []
        self._announced = False
        self._awake = False
        self._cancel_requested = False

        self._outstanding = 0  # submitted and not yet reported; touched on the loop only
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._poller: Poller | None = None

        # Touched by the engine's thread only.
        self._waiting: deque[Request] = deque()
        self._active: dict[pycurl.Curl, Slot] = {}
        self._large: list[Slot] = []  # of the active ones, those whose body is still being sent
        self._free: list[Slot] = []
        self._multi: Any = None

    # --- from the event loop -----------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that have been started and have not ended."""
        return len(self._active)

    @property
    def outstanding(self) -> int:
        """Requests submitted and not yet reported to ``on_done``."""
        return self._outstanding

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("the engine has been started already")
        self._poller = poller = Poller()
        around = Surroundings(self.egress, poller, self.max_response_bytes, self.ca_file, self.user_agent)
        self._thread = threading.Thread(target=self._run, args=(around,), name="cbq-delivery", daemon=True)
        self._thread.start()

    def submit(self, requests: list[Request]) -> None:
        """Hand over a batch, from the event loop; it begins at once, with one wake-up for all of it."""
        if not requests:
            return
        self._outstanding += len(requests)
        self._idle.clear()
        with self._lock:
            accepted = not self._stopped and self._thread is not None
            if accepted:
                self._inbox.extend(requests)
        if accepted:
            self._wake()
        else:
            self._finish([cancelled(request) for request in requests])

    def cancel_unstarted(self) -> None:
        """What has not been started comes back as CANCELLED; what is on its way goes on."""
        with self._lock:
            self._cancel_requested = True
        self._wake()

    async def close(self, grace: float) -> None:
        """Cancel what is not started, give the rest ``grace`` seconds, cancel that too, end the thread."""
        thread = self._thread
        if thread is None or self._stopped:
            return
        self.cancel_unstarted()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        self._stopping = True
        self._wake()
        await asyncio.to_thread(thread.join)
        self._deliver()

    def _deliver(self) -> None:
        with self._lock:
            done, self._finished = self._finished, []
            self._announced = False
        if not done:
            return
        self._outstanding -= len(done)
        if self._outstanding == 0:
            self._idle.set()
        self._on_done(done)

    # --- from any thread ---------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._awake:
                return
            self._awake = True
            if self._poller is not None and not self._stopped:
                self._poller.wake()

    def _finish(self, exchanges: list[Exchange]) -> None:
        with self._lock:
            self._finished.extend(exchanges)
            if self._announced:
                return
            self._announced = True
        # The loop may be closed already: then nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver)

    # --- the engine's thread -----------------------------------------------------------------

    def _run(self, around: Surroundings) -> None:
        troubles = 0
        while not self._stopping:
            try:
                self._multi = self._new_multi()
                self._turn_until_stopped(around)
            except Exception as trouble:
                log.exception("the delivery engine starts over after an error of its own")
                self._abort(around, FailureKind.LOCAL, f"the sending engine failed: {one_line(trouble)}")
                troubles += 1
                threading.Event().wait(min(1.0, 0.05 * troubles))
        self._abort(around, FailureKind.CANCELLED, "stopped before the answer came")
        with self._lock:
            self._stopped = True
            rest = [*self._waiting, *self._inbox]
            self._waiting.clear()
            self._inbox.clear()
            around.poller.close()
        if rest:
            self._finish([cancelled(request) for request in rest])
        for slot in self._free:
            slot.curl.close()
        self._free.clear()

    def _turn_until_stopped(self, around: Surroundings) -> None:
        multi, poller = self._multi, around.poller
        while True:
            self._take_inbox(poller)
            if self._stopping:  # asked after the inbox: the wake-up just taken may have been close()'s
                return
            if self._waiting:
                self._start_waiting(around)
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
            wait = None if timeout < 0 else timeout / 1000.0
            if self._active and (wait is None or wait > _SAFETY_TICK):
                wait = _SAFETY_TICK
            if around.resolving and (wait is None or wait > _RESOLVING_TICK):
                wait = _RESOLVING_TICK
            poller.wait(wait)

    def _still_sending(self) -> bool:
        moving = False
        for slot in self._large:
            moving |= slot.is_sending()
        return moving

    def _take_inbox(self, poller: Poller) -> None:
        if not self._awake:
            return
        with self._lock:
            self._awake = False
            poller.hush()
            requests, self._inbox = self._inbox, []
            cancel, self._cancel_requested = self._cancel_requested, False
        self._waiting.extend(requests)
        if cancel and self._waiting:
            unstarted = [cancelled(request) for request in self._waiting]
            self._waiting.clear()
            self._finish(unstarted)

    def _start_waiting(self, around: Surroundings) -> None:
        waiting = self._waiting
        room = self.max_connections - len(self._active)
        if room <= 0:
            return
        now = self._clock.monotonic()
        refused: list[Exchange] = []
        while waiting and room:
            refusal = self._begin(waiting.popleft(), now, around)
            if refusal is None:
                room -= 1
            else:
                refused.append(refusal)
        if refused:
            self._finish(refused)

    def _begin(self, request: Request, now: float, around: Surroundings) -> Exchange | None:
        """Start ``request``, or say why it cannot be."""
        try:
            slot = self._free.pop() if self._free else Slot(around)
        except Exception as trouble:
            log.exception("no handle can be made")
            return not_sendable(request, trouble, local=True)
        try:
            if request.not_after < now:
                self._free.append(slot)
                return expired(request)
            slot.load(request)
            self._multi.add_handle(slot.curl)
        except Exception as trouble:
            slot.discard()
            return not_sendable(request, trouble)
        self._active[slot.curl] = slot
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
                    done.append(self._end(curl, code, message))
        finally:
            if done:
                self._finish(done)
        return bool(done)

    def _end(self, curl: pycurl.Curl, code: int | None, message: str) -> Exchange:
        """``code`` is None where libcurl is content."""
        self._multi.remove_handle(curl)
        slot = self._active.pop(curl)
        request: Request = slot.request
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

    def _abort(self, around: Surroundings, kind: FailureKind, detail: str) -> None:
        """End everything in flight and throw the multi handle away."""
        done: list[Exchange] = []
        for slot in self._active.values():
            done.append(slot.aborted(kind, detail))
            with contextlib.suppress(Exception):
                self._multi.remove_handle(slot.curl)
            with contextlib.suppress(Exception):
                slot.discard()
        self._active.clear()
        self._large.clear()
        around.resolving = 0
        if self._multi is not None:
            with contextlib.suppress(Exception):
                self._multi.close()
            self._multi = None
        if done:
            self._finish(done)

    def _new_multi(self) -> Any:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_MAXCONNECTS, self.max_connections)
        return multi
