"""The two clocks, named apart.

Wall time (``*_at``, ``*_ms``) is for people and for timestamps that leave the process. Elapsed time
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


SYSTEM_CLOCK = SystemClock()
