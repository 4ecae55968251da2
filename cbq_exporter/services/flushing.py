"""When to claim the next batch: what this daemon has seen of pending, held against the rule."""

from __future__ import annotations

from dataclasses import replace

from cbq_exporter.config.models import BatchConfig
from cbq_exporter.model import Claim, FlushReason, Waiting
from cbq_exporter.policy import flush
from cbq_exporter.store.queue import Queue

_SHORTEST_LOOK = 0.02  # seconds: while callbacks wait for their batch to fill
_LONGEST_LOOK = 1.0


class Flushing:
    """Of one queue."""

    def __init__(self, batch: BatchConfig, queue: Queue) -> None:
        self._queue = queue
        self._rule = flush.FlushRule(
            batch.size,
            batch.max_delay,
            batch.min_interval,
            batch.early.size if batch.early else None,
            batch.early.delay if batch.early else 0.0,
        )
        self._look = min(max(batch.max_delay / 20, _SHORTEST_LOOK), _LONGEST_LOOK)  # seconds
        self._last_batch = float("-inf")  # monotonic
        self._arrived = False  # something is there, as far as we know: claiming finds out cheapest
        self._waiting_since: float | None = None  # monotonic: since when callbacks are seen waiting

    @property
    def sees_nothing_waiting(self) -> bool:
        """Whether pending was empty at the last look."""
        return self._waiting_since is None

    async def decide(self, last: Claim | None, now: float) -> flush.FlushDecision:
        """``last`` is the claim of just before, if there was one; ``now`` is monotonic. Raises StoreError."""
        rule = self._rule
        since_last_batch = now - self._last_batch
        if last is not None and last.pending_left >= rule.size:
            waiting = Waiting(0.0, last.pending_left, None, None, None)
        elif (last is not None or self._arrived) and rule.max_delay <= 0 and rule.min_interval <= 0:
            # What is there goes at once: the claim itself finds out whether there is anything.
            return flush.FlushDecision(FlushReason.AGE)
        else:
            waiting = await self._queue.waiting(rule.early_size, last_batch=rule.min_interval > 0)
        if not waiting.pending:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        seen_for = 0.0 if self._waiting_since is None else now - self._waiting_since
        decision = flush.decide(waiting, rule, seen_for=seen_for, since_last_batch=since_last_batch)
        if decision.look_again_in is None or self._waiting_since is None:
            return decision
        # Arrivals are seen only while pending is empty: until then the batch may fill up unseen.
        return replace(decision, look_again_in=min(decision.look_again_in, self._look))

    def claimed(self, claim: Claim, at: float) -> None:
        """A claim that was sent then (monotonic)."""
        self._last_batch = at
        self._arrived = False
        self._waiting_since = at if claim.pending_left else None

    async def wait_for_arrival(self, seconds: float) -> bool:
        """Sleep until pending is not empty; False after ``seconds``. Raises StoreError."""
        self._arrived = await self._queue.wait_for_arrival(seconds)
        return self._arrived

    def forget(self) -> None:
        """Somebody else claims now."""
        self._waiting_since = None
