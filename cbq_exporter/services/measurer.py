"""Measures in the background what a scrape would wait for too long, and what it may come too late to see."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cbq_exporter.store.reader import Reader

log = logging.getLogger(__name__)

MEASURE_EVERY = 45.0  # seconds: a send is seen before its time is forgotten, which is after 60


@dataclass(frozen=True, slots=True)
class MeasureReport:
    """``unknown``: queues whose memory may not be asked for."""

    unknown: int = 0


class Measurer:
    """Of all queues at once; writes nothing."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._told: set[str] = set()

    async def run_once(self) -> MeasureReport:
        """Raises StoreUnavailable."""
        errors = await self._reader.measure()
        for queue, error in errors.items():
            if queue not in self._told:
                log.warning("the memory of a queue is unknown", extra={"queue": queue, "error": str(error)})
        self._told = set(errors)
        return MeasureReport(len(errors))
