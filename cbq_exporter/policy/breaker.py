"""When a receiver that fails is left alone. Pure: a circuit goes in and comes out, time and dice are handed in.

    closed --(too large a part of the attempts failed)--> open --(its time is over)--> half-open
      ^                                                    ^                              |
      |                                                    +---(a probe failed: longer)---+
      +------------------(so many probes in a row succeeded)------------------------------+

Times are seconds of any one clock that never leaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from cbq_exporter.model import FailureKind

_MOST_DOUBLINGS = 40
_ROW = 10  # windows without an attempt end a row of failures
_JITTER = 0.2  # of the open time: receivers that failed together are not probed together
_TOO_MANY_REQUESTS = 429
_FORGOTTEN_AFTER = 600.0  # seconds without a use for it

# The receiver cannot be reached, does not answer, or says that it cannot do its work.
_FAILURES = frozenset(
    {
        FailureKind.TIMEOUT,
        FailureKind.CONNECT,
        FailureKind.DNS,
        FailureKind.TLS,
        FailureKind.PROTOCOL,
        FailureKind.HTTP_5XX,
    }
)
# Nothing was heard from it, by no fault of its own.
_SILENT = frozenset({FailureKind.LOCAL, FailureKind.BLOCKED, FailureKind.EXPIRED, FailureKind.CANCELLED})


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """Opens when ``failure_ratio`` of at least ``min_attempts`` in the ``window`` failed; or so many in a row, where
    fewer are made in that time, such as to a receiver that lets each of few wait for its timeout.

    It stays open for ``open_for``, twice as long each time that a probe fails, up to ``longest_open``; then ``probes``
    successes in a row close it.
    """

    failure_ratio: float
    min_attempts: int
    window: float
    open_for: float
    longest_open: float
    probes: int


class Phase(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Circuit(msgspec.Struct, frozen=True, gc=False):
    """The circuit of one receiver.

    Closed, it counts in two halves of the window: the one that began at ``half_began``, and the one before it; and
    failures ``in_a_row``.
    Open, it is so until ``until``, for the ``openings``-th time in a row. Half-open, ``succeeded`` probes have, the
    last of them at ``until``.
    """

    phase: Phase = Phase.CLOSED
    half_began: float = 0.0
    attempts: int = 0
    failures: int = 0
    attempts_before: int = 0
    failures_before: int = 0
    openings: int = 0
    until: float = 0.0
    succeeded: int = 0
    in_a_row: int = 0


def failed(kind: FailureKind | None, status: int) -> bool | None:
    """Whether an attempt counts as a failure of its receiver; None where it says nothing about it.

    A 4xx is an answer of a receiver that lives, except 429: sending on is what it asks not to do, and would use up
    the attempts of all that follow.
    """
    if kind in _SILENT:
        return None
    return kind in _FAILURES or status == _TOO_MANY_REQUESTS


def record(circuit: Circuit, rule: BreakerRule, *, succeeded: int, failed: int, now: float, roll: float) -> Circuit:
    """After attempts have ended; ``roll`` is from [0, 1).

    What ends while it is open was begun before: it tells nothing new.
    """
    circuit = probing(circuit, now)
    if circuit.phase is Phase.OPEN:
        return circuit
    if circuit.phase is Phase.HALF_OPEN:
        if failed:
            return _opened(circuit.openings + 1, rule, now, roll)
        if circuit.succeeded + succeeded >= rule.probes:
            return Circuit(half_began=now)
        return Circuit(Phase.HALF_OPEN, openings=circuit.openings, until=now, succeeded=circuit.succeeded + succeeded)
    half = rule.window / 2
    if now - circuit.half_began < half:
        before, began = circuit, circuit.half_began
        attempts_before, failures_before = before.attempts_before, before.failures_before
        attempts, failures = before.attempts + succeeded + failed, before.failures + failed
    else:
        recent = now - circuit.half_began < rule.window
        attempts_before, failures_before = (circuit.attempts, circuit.failures) if recent else (0, 0)
        began = circuit.half_began + half if recent else now
        attempts, failures = succeeded + failed, failed
    of_all, bad = attempts + attempts_before, failures + failures_before
    goes_on = not succeeded and now - circuit.half_began < _ROW * rule.window
    in_a_row = failed + (circuit.in_a_row if goes_on else 0)
    if failed and of_all >= rule.min_attempts and bad >= rule.failure_ratio * of_all:
        return _opened(1, rule, now, roll)
    if failed and bad == of_all and in_a_row >= rule.min_attempts:
        return _opened(1, rule, now, roll)
    return Circuit(
        Phase.CLOSED, began, attempts, failures, attempts_before, failures_before, in_a_row=0 if succeeded else in_a_row
    )


def probing(circuit: Circuit, now: float) -> Circuit:
    """Half-open where it was open and its time is over."""
    if circuit.phase is Phase.OPEN and now >= circuit.until:
        return Circuit(Phase.HALF_OPEN, openings=circuit.openings, until=circuit.until)
    return circuit


def places(circuit: Circuit, rule: BreakerRule) -> int | None:
    """How many may be under way; None: as many as there are."""
    match circuit.phase:
        case Phase.CLOSED:
            return None
        case Phase.OPEN:
            return 0
        case Phase.HALF_OPEN:
            return rule.probes - circuit.succeeded


def says_nothing(circuit: Circuit, rule: BreakerRule, now: float) -> bool:
    """Whether a new one in its place would be the same from now on."""
    kept = _ROW * rule.window if circuit.in_a_row else rule.window
    return circuit.phase is Phase.CLOSED and now - circuit.half_began >= kept


def forgotten_in(circuit: Circuit, now: float) -> float:
    """In how many seconds one that is not closed is forgotten, where nothing waits for it to close."""
    return max(0.0, circuit.until + _FORGOTTEN_AFTER - now)


def _opened(openings: int, rule: BreakerRule, now: float, roll: float) -> Circuit:
    longest = max(rule.longest_open, rule.open_for)
    length = min(rule.open_for * 2.0 ** min(openings - 1, _MOST_DOUBLINGS), longest)
    return Circuit(Phase.OPEN, openings=openings, until=now + length * (1.0 + _JITTER * roll))
