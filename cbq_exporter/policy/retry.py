"""What becomes of a callback after an attempt. Pure: the roll of the dice is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cbq_exporter.model import Dead, DeadReason, Delivered, Failure, FailureKind, Outcome, PutBack, Retry

RETRIED_STATUS = frozenset({408, 425, 429})  # of the 4xx: the others will not change by repeating
GONE = 410
_MOST_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class RetryRule:
    """Times are seconds. ``max_age`` counts from the first claim, by the store's clock.

    ``statuses`` says what a status means where it is not the usual: of one ("409") or of a class ("5xx"), each
    delivered, retry, dead or pause.
    """

    max_attempts: int
    max_age: float
    base: float
    cap: float
    retry_after_cap: float
    statuses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended. ``status`` is 0 where no usable answer came; ``retry_after`` is seconds.

    ``failure`` is None for a 2xx. ``at`` is epoch seconds.
    """

    status: int
    failure: FailureKind | None
    retry_after: float | None = None
    detail: str = ""
    sample: str = ""
    at: float = 0.0


def judge(attempt: Attempt, rule: RetryRule, *, attempts_before: int, age: float, roll: float) -> Outcome:
    """``roll`` is from [0, 1): the share of the longest wait that is waited (full jitter)."""
    kind = attempt.failure
    if kind is None:
        return Delivered()
    meaning = meaning_of(attempt.status, rule)
    if meaning == "delivered":
        return Delivered()
    failure = Failure(kind.value, attempt.status, attempt.detail, attempt.sample, attempt.at)
    if kind in (FailureKind.EXPIRED, FailureKind.CANCELLED):
        return PutBack()
    if kind is FailureKind.BLOCKED:
        return Dead(DeadReason.BLOCKED, failure, attempt_used=False)
    if kind is FailureKind.LOCAL:
        # Not the receiver's doing: it neither uses up an attempt nor ends by age.
        return Retry(roll * rule.base + 0.5 * rule.base, failure, attempt_used=False)
    if meaning in ("dead", "pause"):
        return Dead(DeadReason.REJECTED, failure)
    if attempts_before + 1 >= rule.max_attempts:
        return Dead(DeadReason.MAX_ATTEMPTS, failure)
    delay = backoff(attempts_before, rule, roll)
    if attempt.retry_after is not None:
        # A lower bound; a little jitter, so that all who were told the same do not come back together.
        delay = max(delay, min(attempt.retry_after, rule.retry_after_cap) + roll * min(rule.base, 1.0))
    if age + delay > rule.max_age:
        return Dead(DeadReason.MAX_AGE, failure)
    return Retry(delay, failure)


def meaning_of(status: int, rule: RetryRule) -> str:
    """delivered, retry, dead, or pause (dead, and nothing more is to be sent to this destination); 0 is retry."""
    if status == 0:
        return "retry"
    given = rule.statuses
    if given:
        meaning = given.get(str(status)) or given.get(f"{status // 100}xx")
        if meaning is not None:
            return meaning
    if status == GONE:
        return "pause"
    return "dead" if 400 <= status < 500 and status not in RETRIED_STATUS else "retry"


def backoff(attempts_before: int, rule: RetryRule, roll: float) -> float:
    """Seconds to wait after attempt number ``attempts_before + 1``: ``base`` doubled each time, up to ``cap``."""
    return roll * min(rule.cap, rule.base * 2.0 ** min(attempts_before, _MOST_DOUBLINGS))
