"""What waits in retry for its destination alone: put there, and made due again when there is an appetite for it.

It costs the store a bounded number of commands for each callback, however long its destination is away and however many
destinations there are: it is put there once, and brought forward in bulk by its id, which is remembered here. What is
more than can be remembered, and what somebody else has put there, is found by a walk through retry, one for all
destinations. Should nobody bring it forward, it is due by itself after ``HELD_FOR``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.errors import StoreError
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Claimed, Dead, DeadReason, Failure, PutOff, Retry, Settlement
from cbq_exporter.store.kept import Retries

HELD_FOR = 600.0  # seconds
_PAGE = 500  # callbacks that one step of a walk looks at
_PAGES = 4  # in one turn
_TURN = 0.05  # seconds until a walk goes on
_ASKED = 200  # destinations that are asked for their appetite in one turn
_NEXT_ASKED = 0.02  # seconds until others are
_LONGEST_TURN = 1.0  # seconds
_LEAST_COMING = 500  # callbacks that are due and not claimed, of all destinations together
_COMING_FOR = 5.0  # seconds that what was made due is expected to be claimed within
_MOST_REMEMBERED = 100_000  # ids, of all destinations together
_MOST_OF_ONE = 10_000
_LEAST_OF_ONE = 50  # whatever the others have

_DETAIL = {
    PutOff.THROTTLED: "its destination is busy",
    PutOff.CIRCUIT_OPEN: "its destination fails, and is left alone for a while",
    PutOff.PAUSED: "its destination is paused",
}


@dataclass(slots=True)
class _Backlog:
    """``unstored`` are on their way to the store, ``coming`` on their way back from it. ``known`` are the ids of the
    first that wait there, in their order. ``more``: there may be others, due at ``after`` or later, in epoch
    milliseconds. ``missed``: some were stored since the last walk began, and it may not have seen them.
    """

    unstored: int = 0
    coming: int = 0
    asked: float = 0.0  # monotonic
    known: list[str] = field(default_factory=list)
    more: bool = False
    after: float = 0.0
    missed: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.known or self.more or self.unstored or self.coming)


@dataclass(slots=True)
class _Walk:
    """Through retry, in the order of due times, for the destinations ``names``; None: for all that there are.

    ``seen`` are those that it has looked at of all that are due at ``due_from``. ``full`` are destinations of which
    there are more than can be remembered.
    """

    names: set[str] | None
    due_from: float = 0.0  # epoch milliseconds
    seen: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)


class Backlogs:
    """Of one queue, as far as this daemon knows. ``batch`` is the size of one."""

    def __init__(self, retries: Retries, instruments: QueueInstruments, clock: Clock, batch: int) -> None:
        self._retries = retries
        self._instruments = instruments
        self._clock = clock
        self._most_coming = max(_LEAST_COMING, 2 * batch)
        self._all: OrderedDict[str, _Backlog] = OrderedDict()  # the first is asked next
        self._unasked = 0  # how many were not asked yet in this round
        self._walk: _Walk | None = None
        self._hungry: set[str] = set()  # they want what only a walk can find
        self._remembered = 0  # ids
        self.coming = 0  # those that were made due and are not claimed yet

    def __contains__(self, destination: object) -> bool:
        return destination in self._all

    def __len__(self) -> int:
        return len(self._all)

    def expect(self, destination: str) -> None:
        """There may be one."""
        self._backlog(destination)

    def ask_first(self, destination: str) -> None:
        """It may have an appetite again."""
        if destination in self._all:
            self._all.move_to_end(destination, last=False)

    def begin(self) -> None:
        """Somebody else may have sent before, and put off what we do not know of."""
        self._walk = _Walk(None)
        self._hungry.clear()
        for backlog in self._all.values():
            self._forget(backlog)

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
                self._backlog(receiver.name).unstored += 1
                if why is not PutOff.PAUSED:
                    self._instruments.destination(receiver.name).throttled.inc()
            settlements.append(Settlement(claimed, outcome, url, receiver.name))
        return settlements

    def put_off_parcels(self, parcels: Iterable[Parcel], why: PutOff) -> list[Settlement]:
        return self.put_off([(one.claimed, one.url, one.receiver) for one in parcels], why)

    def stored(self, settlements: Sequence[Settlement]) -> None:
        """The store has them; those that were not put off do not matter."""
        for settlement in settlements:
            outcome = settlement.outcome
            if not isinstance(outcome, Retry) or outcome.failure.kind not in _DETAIL:
                continue
            backlog = self._all.get(settlement.destination)
            if backlog is not None:
                backlog.unstored = max(0, backlog.unstored - 1)
                # It is the last that waits there.
                if backlog.more:
                    backlog.missed = True
                elif not self._remember(backlog, settlement.claimed.kept_as):
                    backlog.more, backlog.after = True, 0.0

    def expects(self, destination: str) -> bool:
        """Whether some were made due for it and are not claimed yet."""
        backlog = self._all.get(destination)
        return backlog is not None and backlog.coming > 0

    def came(self, destination: str) -> None:
        """One was claimed again."""
        backlog = self._all.get(destination)
        if backlog is not None and backlog.coming:
            backlog.coming -= 1
            self.coming -= 1
            if backlog.is_empty:
                del self._all[destination]

    async def search(self) -> None:
        """Walk on, where something is to be found; raises StoreError."""
        if self._walk is None:
            self._walk = self._walk_for_hungry()
        for _ in range(_PAGES):
            if self._walk is None:
                return
            await self._walk_on(self._walk)

    async def bring_forward(self, wanted: Callable[[str], int]) -> int:
        """Make due what is ``wanted`` for each destination, and returns how many there were; raises StoreError.

        Not all are asked at once, nor is more made due than can be claimed soon.
        """
        now = self._clock.monotonic()
        chosen: list[str] = []
        owners: list[_Backlog] = []
        if not self._unasked:
            self._unasked = len(self._all)
        for name in list(islice(self._all, _ASKED)):
            backlog = self._all[name]
            self._all.move_to_end(name)
            if backlog.coming and now - backlog.asked > _COMING_FOR:
                self.coming -= backlog.coming
                backlog.coming = 0
            room = self._most_coming - self.coming - len(chosen)
            if room <= 0:
                continue
            self._unasked = max(0, self._unasked - 1)
            if backlog.is_empty:
                del self._all[name]
                continue
            want = min(room, wanted(name) - backlog.coming)
            if want <= 0:
                continue
            if backlog.known:
                ids = backlog.known[:want]
                del backlog.known[:want]
                self._remembered -= len(ids)
                chosen += ids
                owners += [backlog] * len(ids)
                backlog.asked = now
            elif backlog.more:
                self._hungry.add(name)
        return await self._hasten(chosen, owners)

    def next_turn(self) -> float | None:
        """In how many seconds there may be more to find; None: nothing waits."""
        if self._walk is not None or self._hungry:
            return _TURN
        if not self._all:
            return None
        return _NEXT_ASKED if self._unasked else _LONGEST_TURN

    # --- inside ------------------------------------------------------------------------------

    def _backlog(self, name: str) -> _Backlog:
        backlog = self._all.get(name)
        if backlog is None:
            searching = self._walk is not None and self._walk.names is None
            backlog = self._all[name] = _Backlog(more=searching)
        return backlog

    def _remember(self, backlog: _Backlog, retry_id: str) -> bool:
        """Behind those that are known; False where there is no room for it."""
        count = len(backlog.known)
        if count >= _LEAST_OF_ONE and (count >= _MOST_OF_ONE or self._remembered >= _MOST_REMEMBERED):
            return False
        backlog.known.append(retry_id)
        self._remembered += 1
        return True

    def _forget(self, backlog: _Backlog) -> None:
        """What is in the store has to be found."""
        self._remembered -= len(backlog.known)
        backlog.known.clear()
        backlog.more, backlog.after, backlog.missed = True, 0.0, False

    async def _hasten(self, ids: Sequence[str], owners: Sequence[_Backlog]) -> int:
        """``owners`` are the backlogs that each is of."""
        if not ids:
            return 0
        try:
            made = await self._retries.hasten(ids)
        except StoreError:
            for backlog in owners:  # which of them it made due nobody knows
                self._forget(backlog)
            raise
        for backlog, is_due in zip(owners, made, strict=True):
            backlog.coming += is_due
        brought = sum(made)
        self.coming += brought
        if brought < len(ids):  # they went another way: what stands behind them is wanted as well
            self._unasked = max(1, self._unasked)
        return brought

    def _walk_for_hungry(self) -> _Walk | None:
        names = {name for name in self._hungry if (one := self._all.get(name)) and one.more and not one.known}
        self._hungry.clear()
        if not names:
            return None
        for backlog in (self._all[name] for name in names):
            if backlog.missed:  # due times are not quite in the order of storing
                backlog.after, backlog.missed = 0.0, False
        return _Walk(names, min(self._all[name].after for name in names))

    async def _walk_on(self, walk: _Walk) -> None:
        # From the last due time on again: of those that are due at the same, some may have gone meanwhile.
        count = _PAGE + len(walk.seen)
        page = await self._retries.put_aside(tuple(PutOff), due_from=walk.due_from, count=count)
        if self._walk is not walk:  # begun anew meanwhile
            return
        for retry_id, due, name in page:
            if name is not None and retry_id not in walk.seen and (walk.names is None or name in walk.names):
                self._found(walk, name, retry_id, due)
        if len(page) < count or (walk.names is not None and walk.names <= walk.full):
            self._end(walk)
            return
        last = page[-1][1]
        if last > walk.due_from:
            walk.due_from = last
            walk.seen.clear()
        walk.seen.update(retry_id for retry_id, due, _ in page if due == last)

    def _found(self, walk: _Walk, name: str, retry_id: str, due: float) -> None:
        backlog = self._backlog(name)
        if name in walk.full:
            return
        if self._remember(backlog, retry_id):
            backlog.after = due
        else:
            walk.full.add(name)

    def _end(self, walk: _Walk) -> None:
        """Of those that are not full all is known now, but for what was stored meanwhile."""
        self._walk = None
        for name in (self._all.keys() if walk.names is None else walk.names) - walk.full:
            backlog = self._all.get(name)
            if backlog is not None:
                backlog.more = backlog.missed
