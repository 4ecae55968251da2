"""Whether this daemon sends for a queue: whether the send lock is its own, as far as it knows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cbq_exporter.clock import Clock
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)

_STANDBY_LOOK = 1.0  # seconds: how often a standby looks at the lock at least


class Leading:
    """Of one queue. ``ttl`` is the lock's, in seconds; ``on_lost`` is told whenever the lock is somebody else's."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        ttl: float,
        instruments: QueueInstruments,
        clock: Clock,
        on_lost: Callable[[], None],
    ) -> None:
        self._name = name
        self._queue = queue
        self._ttl = ttl
        self._instruments = instruments
        self._clock = clock
        self._on_lost = on_lost
        self._until = 0.0  # monotonic: the lock is ours at least until then, if nobody takes it away
        self.leads = False

    @property
    def is_to_be_prolonged(self) -> bool:
        return self._until - self._clock.monotonic() < self._ttl / 3

    async def take(self) -> float | None:
        """None where the lock is ours now; else the seconds until it is worth looking again. Raises StoreError."""
        before = self._clock.monotonic()
        state = await self._queue.keep_lock(self._ttl)
        if state.ours:
            self.prolonged(before)
            if not self.leads:
                self.leads = True
                self._instruments.leader.set(1)
                log.info("dispatching: the send lock is ours", extra={"queue": self._name})
            return None
        self.lose()
        return _STANDBY_LOOK if state.ttl is None else min(_STANDBY_LOOK, state.ttl + 0.01)

    async def keep(self) -> None:
        """Prolong the lock, where it is ours; raises StoreError."""
        if self.leads:
            if self._clock.monotonic() >= self._until:
                self.lose("the send lock is over, and could not be prolonged")
            await self.take()

    def prolonged(self, at: float) -> None:
        """By a claim that was sent then (monotonic)."""
        self._until = at + self._ttl

    def lose(self, why: str = "the send lock is somebody else's") -> None:
        self._until = 0.0
        self._on_lost()
        if self.leads:
            self.leads = False
            self._instruments.leader.set(0)
            log.warning("standing by: %s", why, extra={"queue": self._name})

    def resign(self) -> bool:
        """Prolong it no more; says whether it was ours, and is there to be freed."""
        led, self.leads = self.leads, False
        self._instruments.leader.set(0)
        return led
