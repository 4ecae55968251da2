"""The two clocks, named apart.

Wall time (``*_at``, ``*_ms``) is for people and for timestamps that leave the process; what is kept in the store has
that of the store (``StoreClock``). Elapsed time
(``*monotonic``) is for timeouts and leases; it counts suspended time too, because a lease runs out
while the machine sleeps.
"""

from __future__ import annotations

import time
from typing import Protocol

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    def now(self) -> float:
        """Wall time, in seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds from a fixed point of no meaning; never goes back; counts suspended time."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        if _BOOTTIME is not None:
            return time.clock_gettime(_BOOTTIME)
        return time.monotonic()


class StoreClock:
    """The wall time of the store, which went on by our elapsed time since the store told it last.

    Ages of what the store has dated are measured by it: a machine's own wall time may be wrong by any amount.
    """

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._ahead: float | None = None  # of our elapsed time, in seconds

    def set(self, now: float) -> None:
        """The store has just told it, in seconds since the epoch."""
        self._ahead = now - self._own.monotonic()

    def now(self) -> float:
        """Before the store has told any it is the machine's."""
        return self._own.now() if self._ahead is None else self._own.monotonic() + self._ahead

    def monotonic(self) -> float:
        return self._own.monotonic()


SYSTEM_CLOCK = SystemClock()
