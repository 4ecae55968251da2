"""Gathers callbacks for one URL into one request, where the settings of their receiver say so; on the event loop.

Callbacks wait for others until there are enough, or until the first has waited for ``linger``. Limits of a
destination, such as its concurrency, count requests. One that is gathered with no other goes as it would without this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cbq_exporter.clock import Clock
from cbq_exporter.config import CoalesceConfig
from cbq_exporter.delivery import bundles
from cbq_exporter.delivery.bundles import Bundle, Opened
from cbq_exporter.delivery.destinations import Appetite, Parcel
from cbq_exporter.delivery.engine import Engine
from cbq_exporter.delivery.exchange import Exchange, cancelled
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.sender import Ended, Sender


@dataclass(slots=True)
class _Gathering:
    kind: tuple[object, ...]
    coalesce: CoalesceConfig
    members: list[Parcel] = field(default_factory=list)
    size: int = 0  # bytes
    timer: asyncio.TimerHandle | None = None


class Coalescer(Sender):
    """A sender of parcels, some of which go together. Each comes back for itself, exactly once."""

    def __init__(
        self,
        make_engine: Callable[[Callable[[list[Exchange]], None]], Engine],
        *,
        on_ended: Callable[[list[Ended]], None],
        clock: Clock,
        places: int,
        on_opened: Callable[[Opened], None] = lambda _: None,
    ) -> None:
        """``on_opened`` is told what came of each request that carried several."""
        super().__init__(make_engine, on_ended=self._on_requests_ended, clock=clock, places=places)
        self._tell = on_ended
        self._on_opened = on_opened
        self._gatherings: dict[tuple[object, ...], _Gathering] = {}  # by kind
        self._stopping = False

    @property
    def unstarted(self) -> int:
        """Requests that wait for a place, and parcels that wait for others."""
        return super().unstarted + sum(len(one.members) for one in self._gatherings.values())

    def send(self, parcels: Sequence[Parcel], *, spread: float = 0.0) -> None:
        """With ``spread``, so many seconds between the starts of two that go alone."""
        alone: list[Parcel] = []
        ready: list[Parcel] = []
        gathering: _Gathering | None = None
        for parcel in parcels:
            coalesce = parcel.receiver.coalesce
            size = None if coalesce is None else bundles.size_in(parcel, coalesce)
            if coalesce is None or size is None:
                alone.append(parcel)
            else:
                gathering = self._gather(parcel, size, coalesce, gathering, ready)
        for gathering in list(self._gatherings.values()):
            if gathering.timer is None:
                self._wait_for_others(gathering, ready)
        super().send(ready)
        super().send(alone, spread=spread)

    def appetite(self, receiver: Receiver) -> Appetite:
        requests = super().appetite(receiver)
        many = 1 if receiver.coalesce is None else receiver.coalesce.size
        return Appetite(requests.left * many, requests.whole * many, requests.crowded)

    def give_back_excess(self) -> list[Parcel]:
        return _apart(super().give_back_excess())

    def give_back_waiting(self, destination: str) -> list[Parcel]:
        return [*_apart(super().give_back_waiting(destination)), *self._take_gathered(destination)]

    def give_back_unstarted(self) -> list[Parcel]:
        self._stopping = True
        return [*_apart(super().give_back_unstarted()), *self._take_gathered()]

    # --- gathering ---------------------------------------------------------------------------

    def _gather(
        self, parcel: Parcel, size: int, coalesce: CoalesceConfig, last: _Gathering | None, ready: list[Parcel]
    ) -> _Gathering | None:
        """``last`` is what this has returned for the one before: of a run of one kind only the first is looked up."""
        gathering = last
        if gathering is None or not bundles.looks_like(parcel, gathering.members[0]):
            kind = bundles.kind_of(parcel)
            gathering = self._gatherings.get(kind) or self._begin(kind, coalesce)
        if gathering.members and gathering.size + size > coalesce.max_bytes:
            ready.append(self._take(gathering))
            gathering = self._begin(gathering.kind, coalesce)
        gathering.members.append(parcel)
        gathering.size += size
        if len(gathering.members) < coalesce.size:
            return gathering
        ready.append(self._take(gathering))
        return None

    def _begin(self, kind: tuple[object, ...], coalesce: CoalesceConfig) -> _Gathering:
        gathering = self._gatherings[kind] = _Gathering(kind, coalesce)
        return gathering

    def _wait_for_others(self, gathering: _Gathering, ready: list[Parcel]) -> None:
        linger = gathering.coalesce.linger
        if linger > 0:
            gathering.timer = asyncio.get_running_loop().call_later(linger, self._waited, gathering)
        else:
            ready.append(self._take(gathering))

    def _waited(self, gathering: _Gathering) -> None:
        super().send([self._take(gathering)])

    def _take(self, gathering: _Gathering) -> Parcel:
        del self._gatherings[gathering.kind]
        if gathering.timer is not None:
            gathering.timer.cancel()
        return _together(gathering.members)

    def _take_gathered(self, destination: str | None = None) -> list[Parcel]:
        taken: list[Parcel] = []
        for gathering in list(self._gatherings.values()):
            if destination is None or gathering.members[0].destination == destination:
                taken += _apart([self._take(gathering)])
        return taken

    # --- the ends of requests ----------------------------------------------------------------

    def _on_requests_ended(self, ended: list[Ended]) -> None:
        told: list[Ended] = []
        again: list[Parcel] = []
        for parcel, exchange in ended:
            if not isinstance(parcel, Bundle):
                told.append((parcel, exchange))
                continue
            result = bundles.opened(parcel, exchange)
            self._on_opened(result)
            told += result.ended
            again += map(_together, result.again)
        if again and self._stopping:
            told += [(parcel, cancelled(parcel)) for parcel in _apart(again)]
        elif again:
            super().send(again)
        if told:
            self._tell(told)


def _together(members: Sequence[Parcel]) -> Parcel:
    coalesce = members[0].receiver.coalesce
    if len(members) == 1 or coalesce is None:
        (alone,) = members
        return alone
    return bundles.bundle(members, coalesce)


def _apart(parcels: Sequence[Parcel]) -> list[Parcel]:
    apart: list[Parcel] = []
    for parcel in parcels:
        if isinstance(parcel, Bundle):
            apart += bundles.taken_apart(parcel)
        else:
            apart.append(parcel)
    return apart
