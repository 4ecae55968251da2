"""Keeps the daemon's own keys bounded, by count and by age."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)

# What went back to pending is remembered (attempts, first claim) until it is claimed again; where somebody
# else claims it, nobody tells us, and the memory goes by age.
_RETURNED_KEPT_MS = 7 * 24 * 3600 * 1000
_PAGES = 20  # of the memory of returned callbacks, each run


@dataclass(frozen=True, slots=True)
class UpkeepReport:
    """How many of each went."""

    dead_trimmed: int = 0
    orphans: int = 0
    forgotten: int = 0


class Upkeep:
    """``dead_max_age`` is seconds."""

    def __init__(self, name: str, queue: Queue, *, dead_max_count: int, dead_max_age: float) -> None:
        self._name = name
        self._queue = queue
        self._dead_max_count = dead_max_count
        self._dead_max_age = dead_max_age
        self._cursor = 0

    async def run_once(self) -> UpkeepReport:
        """One bounded round; raises StoreError."""
        trimmed = await self._queue.trim_dead(self._dead_max_count, self._dead_max_age)
        swept = await self._queue.sweep()
        old = await self._queue.store_now_ms() - _RETURNED_KEPT_MS
        forgotten = 0
        for _ in range(_PAGES):
            self._cursor, count = await self._queue.forget_returned(self._cursor, old)
            forgotten += count
            if self._cursor == 0:
                break
        report = UpkeepReport(trimmed, swept, forgotten)
        if trimmed or swept:
            log.info(
                "kept within bounds",
                extra={"queue": self._name, "dead_trimmed": trimmed, "orphans": swept, "forgotten": forgotten},
            )
        return report
