"""Whether callbacks are to be brought back. Pure: the same values always give the same answer."""

from __future__ import annotations

from dataclasses import dataclass

from cbq_exporter.model import ProcessingLook


@dataclass(frozen=True, slots=True)
class StuckRule:
    """When a callback in processing counts as left behind; times are seconds.

    ``stuck_after`` is from its first sighting, not from its enqueue: a backlog is no reason. ``auto`` False: look only.
    """

    auto: bool
    stuck_after: float
    max_recoveries: int


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be brought back now: our own whose lease is over, and what others left behind."""

    own: bool = False
    others: bool = False

    def __bool__(self) -> bool:
        return self.own or self.others


def decide(look: ProcessingLook, rule: StuckRule) -> Due:
    """Nothing, where it only looks."""
    if not rule.auto:
        return Due()
    return Due(own=look.leases_over > 0, others=look.stuck > 0)
