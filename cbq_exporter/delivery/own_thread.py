"""Transfers in a thread of the daemon: nothing is copied, but both share the interpreter's lock."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.exchange import Exchange, Request
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.surroundings import SendingOptions, Surroundings
from cbq_exporter.delivery.transfers import Transfers


class OwnThread:
    """``on_done`` is called on ``loop``."""

    def __init__(
        self,
        options: SendingOptions,
        on_done: Callable[[list[Exchange]], None],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
    ) -> None:
        self._options = options
        self._on_done = on_done
        self._loop = loop
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._poller: Poller | None = None
        self.closing = False
        self._cancelled_of_taken: int | None = None  # of the thread alone; see ``take_cancel``
        self._lock = threading.Lock()  # guards the next six
        self._inbox: list[Request] = []
        self._finished: list[Exchange] = []
        self._announced = False
        self._awake = False
        self._cancelled_of_inbox: int | None = None  # the first so many are not to begin, nor what was taken before
        self._closed = False

    # --- from the event loop -----------------------------------------------------------------

    def start(self) -> None:
        self._poller = poller = Poller()
        transfers = Transfers(Surroundings(self._options, poller), self, self._options, self._clock)
        self._thread = threading.Thread(target=transfers.run, name="cbq-delivery", daemon=True)
        self._thread.start()

    def submit(self, requests: list[Request]) -> None:
        """They begin at once, with one wake-up for all of them."""
        with self._lock:
            self._inbox.extend(requests)
        self._wake()

    def cancel_unstarted(self) -> None:
        """What has no connection yet comes back as CANCELLED."""
        with self._lock:
            self._cancelled_of_inbox = len(self._inbox)
        self._wake()

    async def stop(self) -> None:
        """Cut off what is in flight; ``on_done`` has been told all on return."""
        thread = self._thread
        if thread is None:
            return
        self.closing = True
        self._wake()
        await asyncio.to_thread(thread.join)
        self._deliver()

    def _wake(self) -> None:
        with self._lock:
            if self._awake:
                return
            self._awake = True
            if self._poller is not None and not self._closed:
                self._poller.wake()

    def _deliver(self) -> None:
        with self._lock:
            done, self._finished = self._finished, []
            self._announced = False
        if done:
            self._on_done(done)

    # --- from the thread ---------------------------------------------------------------------

    def take(self) -> Sequence[Request]:
        if not self._awake:
            return ()
        assert self._poller is not None
        with self._lock:
            self._awake = False
            self._poller.hush()
            requests, self._inbox = self._inbox, []
            self._cancelled_of_taken, self._cancelled_of_inbox = self._cancelled_of_inbox, None
        return requests

    def take_cancel(self) -> int | None:
        cancelled, self._cancelled_of_taken = self._cancelled_of_taken, None
        return cancelled

    def give(self, exchanges: list[Exchange]) -> None:
        with self._lock:
            self._finished.extend(exchanges)
            if self._announced:
                return
            self._announced = True
        # The loop may be closed already: then nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver)

    def close(self) -> Sequence[Request]:
        with self._lock:
            self._closed = True
            rest, self._inbox = self._inbox, []
            if self._poller is not None:
                self._poller.close()
        return rest
