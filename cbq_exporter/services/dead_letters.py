"""What operators do with dead letters: choose some, see how many they are, and retry or purge exactly those.

Everything walks in pages, so that the number of letters does not matter. A plan carries the moment it was made
at: what dies later, the retried ones that die again included, is no part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cbq_exporter.errors import CbqError, PreconditionChanged
from cbq_exporter.model import DeadLetter
from cbq_exporter.store.paging import chunks
from cbq_exporter.store.queue import Queue

PAGE = 500  # letters

Action = Callable[[Sequence[str]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: all that fit every condition. ``ids`` are without repetition; ``older_than`` in seconds."""

    ids: tuple[str, ...] = ()
    reason: str | None = None
    destination: str | None = None
    older_than: float | None = None

    def fits(self, letter: DeadLetter, now: float) -> bool:
        """``now`` is the store's clock, in epoch seconds."""
        return (
            (not self.ids or letter.id in self.ids)
            and (self.reason is None or letter.reason == self.reason)
            and (self.destination is None or letter.destination == self.destination)
            and (self.older_than is None or letter.died_at < now - self.older_than)
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a selection comes to. ``at`` is the store's clock when it was made; ``size`` in bytes of payload."""

    selection: Selection
    at: float
    count: int = 0
    size: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


async def newest(queue: Queue, selection: Selection, *, offset: int = 0, limit: int = 50) -> list[DeadLetter]:
    """Up to ``limit`` letters of the selection after the first ``offset`` of it, the last to die first."""
    now = await queue.store_now_ms() / 1000
    if selection == Selection():
        ids = await queue.dead.ids(offset=offset, count=limit, latest_first=True)
        return await queue.dead.read(ids)
    found: list[DeadLetter] = []
    left_out = 0
    async for page in _pages(queue, selection, latest_first=True):
        fitting = [letter for letter in page if selection.fits(letter, now)]
        skipped = min(offset - left_out, len(fitting))
        left_out += skipped
        found += fitting[skipped:]
        if len(found) >= limit:
            break
    return found[:limit]


async def plan(queue: Queue, selection: Selection, show: Callable[[int], None] = lambda done: None) -> Plan:
    """Look at every letter and count those of the selection; ``show`` is told how many were looked at."""
    now = await queue.store_now_ms() / 1000
    count = size = looked_at = 0
    reasons: Counter[str] = Counter()
    seen = set()
    async for page in _pages(queue, selection):
        for letter in page:
            if letter.died_at <= now and selection.fits(letter, now):
                count += 1
                size += letter.size
                reasons[letter.reason] += 1
                if selection.ids:
                    seen.add(letter.id)
        looked_at += len(page)
        show(looked_at)
    missing = tuple(one for one in selection.ids if one not in seen)
    return Plan(selection, now, count, size, dict(reasons.most_common()), missing)


async def execute(queue: Queue, made: Plan, action: Action, show: Callable[[int], None] = lambda done: None) -> int:
    """Do ``action`` (``queue.dead.retry`` or ``queue.dead.purge``) to the letters of the plan, oldest first.

    ``show`` is told how many are done. Returns that number; raises PreconditionChanged where it is not the planned
    one, because somebody else was at the same letters: what could be done has been done then.
    """
    done = 0
    # Others may take letters away while we walk, which moves what we have not seen to where we have been: so
    # again, until all are done or a whole walk finds nothing.
    while done < made.count:
        before = done
        done = await _walk(queue, made, action, done, show)
        if done == before:
            raise PreconditionChanged(
                f"{made.count} dead letters were planned and {done} were done: "
                "the others are gone, somebody else was faster; look again with dead list"
            )
    return done


async def _walk(queue: Queue, made: Plan, action: Action, done: int, show: Callable[[int], None]) -> int:
    if made.selection.ids:
        for ids in chunks(made.selection.ids, PAGE):
            done += await action(ids)
            show(done)
        return done
    offset = 0
    while ids := await queue.dead.ids(offset=offset, count=PAGE):
        letters = await queue.dead.read(ids)
        chosen = [one.id for one in letters if one.died_at <= made.at and made.selection.fits(one, made.at)]
        moved = await action(chosen) if chosen else 0
        done += moved
        offset += len(ids) - moved
        show(done)
        if letters and letters[-1].died_at > made.at:
            break
    return done


async def _pages(
    queue: Queue, selection: Selection, *, latest_first: bool = False
) -> AsyncIterator[Sequence[DeadLetter]]:
    if selection.ids:
        for ids in chunks(selection.ids, PAGE):
            yield await queue.dead.read(ids)
        return
    async for page in queue.dead.pages(PAGE, latest_first=latest_first):
        yield page


async def one(queue: Queue, letter_id: str) -> DeadLetter:
    """A letter with its payload; raises CbqError where there is none of that id."""
    letters = await queue.dead.read([letter_id], with_payload=True)
    if not letters:
        raise CbqError(f"no dead letter has the id {letter_id}: dead list shows those that there are")
    return letters[0]
