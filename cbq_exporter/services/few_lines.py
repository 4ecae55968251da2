"""Bounds lines of the log of which there could be one for each callback."""

from __future__ import annotations

import math

from cbq_exporter.clock import Clock

_MOST = 100
_IN = 60.0  # seconds


class FewLines:
    """The first hundred of a minute are written, and say how many were not: a receiver that refuses everything would
    fill a disk.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = -math.inf
        self._count = self._left_out = 0

    def next(self) -> dict[str, str | int] | None:
        """The fields that the next line has for this; None where it is not to be written."""
        now = self._clock.monotonic()
        if now - self._since >= _IN:
            self._since, self._count = now, 0
        self._count += 1
        if self._count > _MOST:
            self._left_out += 1
            return None
        fields: dict[str, str | int] = {}
        if self._left_out:
            fields["left_out_before"], self._left_out = self._left_out, 0
        if self._count == _MOST:
            fields["more"] = f"left out for up to {_IN:.0f} s"
        return fields
