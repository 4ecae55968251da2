"""What waits in retry for its destination alone: put there, and made due again when there is an appetite for it.

It costs the store a bounded number of commands for each callback, however long its destination is away: it is put
there once, and brought forward in bulk. Should nobody bring it forward, it is due by itself after ``HELD_FOR``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Claimed, Dead, DeadReason, Failure, PutOff, Retry, Settlement
from cbq_exporter.store.queue import Queue

HELD_FOR = 600.0  # seconds
_TURN = 0.25  # seconds until it is looked again for more than was found
_TURNS_AT_ONCE = 50  # destinations in one go
_LONGEST_TURN = 1.0  # seconds
_PAGE = 500  # callbacks that one script looks at
_PAGES = 4  # in one turn
_COMING_FOR = 5.0  # seconds that what was made due is expected to be claimed within

_DETAIL = {
    PutOff.THROTTLED: "its destination is busy",
    PutOff.CIRCUIT_OPEN: "its destination fails, and is left alone for a while",
    PutOff.PAUSED: "its destination is paused",
}


@dataclass(slots=True)
class _Backlog:
    """``unstored`` are on their way to the store, ``coming`` on their way back from it. ``passed`` is how far the walk
    through retry is, ``found`` what it has found so far, and ``grown`` whether some were stored since it began.
    """

    unstored: int = 0
    coming: int = 0
    passed: int = 0
    found: int = 0
    grown: bool = True
    turn_at: float = 0.0  # monotonic
    asked: float = 0.0  # monotonic


class Backlogs:
    """Of one queue, as far as this daemon knows."""

    def __init__(self, queue: Queue, instruments: QueueInstruments, clock: Clock) -> None:
        self._queue = queue
        self._instruments = instruments
        self._clock = clock
        self._all: dict[str, _Backlog] = {}
        self._searched: int | None = None  # how far; None: to the end
        self._search_to: int | None = None  # what was put off since stands behind this; None: not known yet

    def __contains__(self, destination: str) -> bool:
        return destination in self._all

    def __len__(self) -> int:
        return len(self._all)

    def expect(self, destination: str) -> None:
        """There may be one."""
        self._all.setdefault(destination, _Backlog())

    def begin(self) -> None:
        """Somebody else may have sent before, and put off what we do not know of."""
        self._searched, self._search_to = 0, None

    async def search(self) -> None:
        """Look at one more page for what was put off before we began; raises StoreError."""
        if self._searched is None:
            return
        if self._search_to is None:
            self._search_to = await self._queue.retries()
        names, looked = await self._queue.waiting_for(tuple(PutOff), self._searched, _PAGE)
        for name in names:
            self.expect(name)
        # What is made due meanwhile moves the others by less than half a page.
        there_is_more = looked == _PAGE and self._searched < self._search_to
        self._searched = self._searched + looked // 2 if there_is_more else None

    def put_off(self, waiting: Sequence[tuple[Claimed, str, Receiver]], why: PutOff) -> list[Settlement]:
        """Each with its URL. No attempt is used; but who has waited past its age for an open circuit is given up."""
        now = self._clock.now()
        failure = Failure(why.value, detail=_DETAIL[why], at=now)
        settlements = []
        for position, (claimed, url, receiver) in enumerate(waiting):
            age = now - claimed.first_claimed_ms / 1000
            outcome: Retry | Dead
            if why is PutOff.CIRCUIT_OPEN and age > receiver.retry.max_age:
                outcome = Dead(DeadReason.MAX_AGE, failure, attempt_used=False)
            else:
                # A millisecond apart: that is the order in which they come back.
                outcome = Retry(HELD_FOR + position / 1000, failure, attempt_used=False)
                self._all.setdefault(receiver.name, _Backlog()).unstored += 1
                if why is not PutOff.PAUSED:
                    self._instruments.destination(receiver.name).throttled.inc()
            settlements.append(Settlement(claimed, outcome, url, receiver.name))
        return settlements

    def put_off_parcels(self, parcels: Iterable[Parcel], why: PutOff) -> list[Settlement]:
        return self.put_off([(one.claimed, one.request.url, one.receiver) for one in parcels], why)

    def stored(self, settlements: Sequence[Settlement]) -> None:
        """The store has them; those that were not put off do not matter."""
        for settlement in settlements:
            outcome = settlement.outcome
            if not isinstance(outcome, Retry) or outcome.failure.kind not in _DETAIL:
                continue
            backlog = self._all.get(settlement.destination)
            if backlog is not None:
                backlog.unstored = max(0, backlog.unstored - 1)
                backlog.grown = True

    def came(self, destination: str) -> None:
        """One was claimed again."""
        backlog = self._all.get(destination)
        if backlog is not None and backlog.coming:
            backlog.coming -= 1

    async def bring_forward(self, wanted: Callable[[str], int]) -> int:
        """Make due what is ``wanted`` for each destination, and returns how many there were; raises StoreError."""
        now = self._clock.monotonic()
        brought = turns = 0
        for name in [name for name, backlog in self._all.items() if backlog.turn_at <= now]:
            backlog = self._all[name]
            if backlog.coming and now - backlog.asked > _COMING_FOR:
                backlog.coming = 0
            want = wanted(name) - backlog.coming
            if want <= 0:
                continue
            backlog.asked = now
            found = await self._take_turn(name, backlog, want)
            if found < want:
                backlog.turn_at = now + _TURN
            brought += found
            turns += 1
            if turns >= _TURNS_AT_ONCE:
                break
        return brought

    async def _take_turn(self, name: str, backlog: _Backlog, want: int) -> int:
        brought = 0
        for _ in range(_PAGES):
            if not backlog.passed:
                backlog.found, backlog.grown = 0, backlog.unstored > 0
            made, looked = await self._queue.hasten(
                name, tuple(PutOff), want - brought, passed=backlog.passed, most=_PAGE
            )
            backlog.coming += made
            backlog.found += made
            brought += made
            if brought >= want:
                backlog.passed += looked - made
                break
            if looked < _PAGE:  # the end
                backlog.passed = 0
                if not backlog.found and not backlog.grown and self._all.get(name) is backlog:
                    del self._all[name]
                break
            backlog.passed += looked - made
        return brought

    @property
    def coming(self) -> int:
        """Those that were made due and are not claimed yet."""
        return sum(backlog.coming for backlog in self._all.values())

    def next_turn(self) -> float | None:
        """In how many seconds there may be more to find; None: nothing waits."""
        if self._searched is not None:
            return _TURN
        now = self._clock.monotonic()
        turns = [backlog.turn_at - now for backlog in self._all.values() if backlog.turn_at > now]
        return min(turns, default=_LONGEST_TURN) if self._all else None
