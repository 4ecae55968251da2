"""What waits in retry, for operators: seen, and made due. In pages, so that their number does not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cbq_exporter.errors import CbqError
from cbq_exporter.model import WAITS_FOR_TURN, PutOff, WaitingRetry
from cbq_exporter.store.queue import Queue

PAGE = 500  # callbacks

# Why something waits that has not failed: the daemon brings it forward as soon as it can be sent (hasten.lua).
_PUT_OFF = frozenset({*PutOff, WAITS_FOR_TURN})


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be made due. ``at`` is the store's clock when it was made, in epoch seconds.

    ``put_off`` are those that wait for something else than their next attempt, and are left.
    """

    destination: str | None
    at: float
    count: int = 0
    by_kind: Mapping[str, int] = field(default_factory=dict)
    put_off: int = 0

    def has(self, one: WaitingRetry) -> bool:
        """Not what was claimed since: it would be tried again and again."""
        return (
            self._is_meant(one) and one.failure.kind not in _PUT_OFF and one.id[:13] <= f"{round(self.at * 1000):013}"
        )

    def leaves(self, one: WaitingRetry) -> bool:
        return self._is_meant(one) and one.failure.kind in _PUT_OFF

    def _is_meant(self, one: WaitingRetry) -> bool:
        return one.due_at > self.at and self.destination in (None, one.destination)


async def soonest(
    queue: Queue, destination: str | None = None, *, offset: int = 0, limit: int = 50
) -> list[WaitingRetry]:
    """Up to ``limit`` callbacks after the first ``offset``, the soonest due first; of one ``destination``, or all."""
    if destination is None:
        return await queue.retries.read(await queue.retries.ids(offset=offset, count=limit))
    found: list[WaitingRetry] = []
    left_out = 0
    async for page in queue.retries.pages(PAGE):
        fitting = [one for one in page if one.destination == destination]
        skipped = min(offset - left_out, len(fitting))
        left_out += skipped
        found += fitting[skipped:]
        if len(found) >= limit:
            break
    return found[:limit]


async def plan(queue: Queue, destination: str | None, show: Callable[[int], None] = lambda done: None) -> Plan:
    """Look at all that waits; ``show`` is told how many were looked at."""
    empty = Plan(destination, await queue.store_now_ms() / 1000)
    kinds: Counter[str] = Counter()
    put_off = looked_at = 0
    async for page in queue.retries.pages(PAGE):
        kinds.update(one.failure.kind or "unknown" for one in page if empty.has(one))
        put_off += sum(empty.leaves(one) for one in page)
        looked_at += len(page)
        show(looked_at)
    return Plan(destination, empty.at, kinds.total(), dict(kinds.most_common()), put_off)


async def execute(queue: Queue, made: Plan, show: Callable[[int], None] = lambda done: None) -> int:
    """Make due what the plan has and is not yet, the soonest first; returns how many those were.

    ``show`` is told how many are done.
    """
    done = 0
    # What is claimed while we walk moves what we have not seen to where we have been: so again, until all are done or
    # a whole walk finds nothing. Which are done is not remembered, they may be a million: one that a claim lets wait
    # again, because an earlier one of its key is under way, is made due again and counts again, up to what was planned.
    while done < made.count:
        before = done
        async for page in queue.retries.pages(PAGE):
            done += sum(await queue.retries.hasten([one.id for one in page if made.has(one)]))
            show(min(done, made.count))
        if done == before:
            break
    return min(done, made.count)


async def one(queue: Queue, retry_id: str) -> WaitingRetry:
    """A callback with its payload; raises CbqError where none of that id waits."""
    found = await queue.retries.read([retry_id], with_payload=True)
    if not found:
        raise CbqError(f"nothing with the id {retry_id} waits in retry: retry list shows what does")
    return found[0]
