"""Whether what was seen before can still be dated: the store's clock may leap, after a failover for one."""

from __future__ import annotations

from dataclasses import dataclass

from cbq_exporter.clock import Clock

_LEAP_MS = 2000  # by so much the store's clock may differ from ours between two looks


@dataclass(slots=True)
class Ledger:
    """Times by the store's clock, held against our own elapsed time."""

    clock: Clock
    _ahead_ms: float | None = None

    def has_leapt(self, store_ms: float, began_monotonic: float) -> bool:
        """Since the last call. ``store_ms`` is the store's time, asked for after ``began_monotonic`` (in seconds)."""
        ended = self.clock.monotonic()
        ahead = store_ms - ended * 1000
        before, self._ahead_ms = self._ahead_ms, ahead
        return before is not None and abs(ahead - before) > _LEAP_MS + (ended - began_monotonic) * 1000
