"""When a batch goes out. Pure: the same values always give the same answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cbq_exporter.model import FlushReason, Waiting


@dataclass(frozen=True, slots=True)
class FlushRule:
    """``early`` fires when that many callbacks have waited ``early_delay``. Times are seconds."""

    size: int
    max_delay: float
    min_interval: float = 0.0
    early_size: int | None = None
    early_delay: float = 0.0


@dataclass(frozen=True, slots=True)
class FlushDecision:
    """``reason`` is None where nothing is to be sent now.

    ``look_again_in`` is then the seconds until time alone can make it due; None where only an arrival can.
    """

    reason: FlushReason | None
    look_again_in: float | None = None


def decide(waiting: Waiting, rule: FlushRule, *, seen_for: float, since_last_batch: float) -> FlushDecision:
    """Whether a batch is due.

    ``seen_for`` is how long this daemon has seen callbacks waiting, in seconds: where a producer's clock is
    ahead, or an item does not say when it was queued, it stands in for the age. ``since_last_batch`` is the
    seconds since this daemon's last claim; what is known of others' counts as well.
    """
    held_back = rule.min_interval - min(since_last_batch, _since_any(waiting, rule))
    reason, soonest = _by_itself(waiting, rule, seen_for)
    if reason is not None:
        return FlushDecision(None, held_back) if held_back > 0 else FlushDecision(reason)
    if soonest is None:
        return FlushDecision(None)
    return FlushDecision(None, max(soonest, held_back, 0.0))


def _by_itself(waiting: Waiting, rule: FlushRule, seen_for: float) -> tuple[FlushReason | None, float | None]:
    if waiting.pending >= rule.size:
        return FlushReason.SIZE, None
    due_in: list[float] = []
    if waiting.pending:
        due_in.append(rule.max_delay - _age(waiting.at, waiting.oldest_queued_at, seen_for))
        if due_in[-1] <= 0:
            return FlushReason.AGE, None
    if rule.early_size is not None and waiting.pending >= rule.early_size and waiting.early_queued_at is not None:
        due_in.append(rule.early_delay - (waiting.at - waiting.early_queued_at))
        if due_in[-1] <= 0:
            return FlushReason.EARLY, None
    if waiting.next_due_at is not None:
        due_in.append(waiting.next_due_at - waiting.at)
        if due_in[-1] <= 0:
            return FlushReason.RETRY, None
    return None, min(due_in, default=None)


def _since_any(waiting: Waiting, rule: FlushRule) -> float:
    """Seconds since anybody's last batch. A clock that is ahead by more than the interval says nothing."""
    if waiting.last_batch_at is None:
        return math.inf
    since = waiting.at - waiting.last_batch_at
    return max(since, 0.0) if since >= -rule.min_interval else math.inf


def _age(now: float, queued_at: float | None, at_least: float) -> float:
    return at_least if queued_at is None else max(now - queued_at, at_least)
