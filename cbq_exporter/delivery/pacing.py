"""How many requests, and how many of their bytes, go to one destination in a time. Pure: the time is handed in."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 0.025  # seconds' worth that may go at once: a loop wakes late, and what it was late by is made good
_AHEAD = 0.003  # seconds
_HEAD = 300  # bytes of a request besides its body, about


@dataclass(frozen=True, slots=True)
class PaceRule:
    """``rate`` is requests a second, ``bandwidth`` bits a second; None: no limit."""

    rate: float | None
    bandwidth: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """A moment each by which all that was begun would be through at exactly the limit; monotonic seconds."""

    requests_until: float = float("-inf")
    bits_until: float = float("-inf")


def ahead(speed: float, places: int) -> int:
    """How many requests may be handed over beyond those that have a place, where ``speed`` of them end in a second.

    So the places do not stand empty until the event loop has heard of an end and has brought the next request. They
    wait for milliseconds: where requests take long, there are none.
    """
    return min(places, int(speed * _AHEAD))


def ready_at(pace: Pace) -> float:
    """When the next request may begin, whatever its size: one that is larger than a burst is paid for afterwards."""
    return max(pace.requests_until, pace.bits_until) - BURST


def begun(pace: Pace, rule: PaceRule, body: int, now: float) -> Pace:
    """After a request with a body of so many bytes has begun."""
    requests, bits = pace.requests_until, pace.bits_until
    if rule.rate is not None:
        requests = max(requests, now) + 1.0 / rule.rate
    if rule.bandwidth is not None:
        bits = max(bits, now) + 8.0 * (body + _HEAD) / rule.bandwidth
    return Pace(requests, bits)
