"""Brings callbacks back whose daemon died while it held them."""

from __future__ import annotations

import logging

from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import DeadReason, Recovery, Trigger
from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)


class Recoverer:
    """Leases that have run out: their callbacks go back to the head of pending, or to the dead letters."""

    def __init__(self, name: str, queue: Queue, instruments: QueueInstruments, *, max_recoveries: int) -> None:
        self._name = name
        self._queue = queue
        self._instruments = instruments
        self._max_recoveries = max_recoveries

    async def run_once(self) -> Recovery:
        """One look; raises StoreError."""
        recovery = await self._queue.recover_expired(self._max_recoveries)
        self._instruments.recovered[Trigger.SCHEDULE].inc(recovery.returned)
        self._instruments.dead[DeadReason.POISON].inc(recovery.dead)
        if recovery.total or recovery.leases_dropped:
            log.warning(
                "leases had run out: their callbacks are back",
                extra={
                    "queue": self._name,
                    "returned": recovery.returned,
                    "dead": recovery.dead,
                    "without_callback": recovery.leases_dropped,
                },
            )
        return recovery
