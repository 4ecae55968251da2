"""Who may send now: each destination has so many places and its pace, and its callbacks wait in their order.

A destination that cannot soon begin what waits for it here would take all the room that others need. Then part of
it is given back (``excess``), to be kept in retry and claimed again when there is an ``appetite`` for it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from cbq_exporter.delivery import pacing
from cbq_exporter.delivery.exchange import Request
from cbq_exporter.delivery.pacing import Pace, PaceRule
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.model import Claimed

_UNPACED = Pace()
_MEASURED_FOR = 1.0  # seconds
_AHEAD = 1.0  # seconds: what a destination will begin within this may wait here


class Parcel(msgspec.Struct, eq=False):
    """One claimed callback on its way. ``number`` is its place in the order of claiming.

    ``size`` is how many bytes are held in memory for it. ``offered_monotonic`` is when it began to wait here.
    ``lost``: its lease is not ours any more. ``bundle`` is what it goes in while it goes together with others.
    """

    number: int
    claimed: Claimed
    receiver: Receiver
    request: Request
    queued_at: float | None
    size: int = 0
    offered_monotonic: float = 0.0
    lost: bool = False
    bundle: Parcel | None = None

    @property
    def destination(self) -> str:
        return self.receiver.name

    def prolong(self, not_after: float) -> None:
        """``not_after``: see ``Request``."""
        for one in (self, self.bundle):
            if one is not None and not one.lost:
                one.request.not_after = not_after

    def withdraw(self) -> None:
        """Its lease is not ours any more: if it was not started, it must not start, nor what it goes in."""
        self.lost = True
        for one in (self, self.bundle):
            if one is not None:
                one.lost = True
                one.request.not_after = float("-inf")


@dataclass(slots=True)
class _Destination:
    concurrency: int
    paced: PaceRule | None
    pace: Pace = _UNPACED
    timed: bool = False  # it stands among those that wait for a moment
    in_flight: int = 0
    waiting: deque[Parcel] = field(default_factory=deque)
    speed: float | None = None  # sends that ended per second, as seen lately
    ended: int = 0
    measured_monotonic: float = 0.0


class Appetite(NamedTuple):
    """How many more callbacks a destination could begin soon, and how many in all where none were here."""

    left: int
    whole: int


class Destinations:
    """Idle destinations cost nothing: they are forgotten."""

    def __init__(self, *, patience: float = 0.5) -> None:
        self._patience = patience
        self._all: dict[str, _Destination] = {}
        self._moments: list[tuple[float, str]] = []  # a heap: when the next of a destination may begin
        self.waiting = 0

    def in_flight(self) -> dict[str, int]:
        """Sends under way, by destination; only those that have any."""
        return {name: one.in_flight for name, one in self._all.items() if one.in_flight}

    @property
    def next_moment(self) -> float | None:
        """When ``due`` has something again, monotonic; None: not before something is offered or ends."""
        return self._moments[0][0] if self._moments else None

    def offer(self, parcel: Parcel, now: float) -> bool:
        """Take a place for ``parcel`` (True: start it), or let it wait."""
        receiver = parcel.receiver
        destination = self._all.get(receiver.name)
        if destination is None:
            destination = _new(receiver, now)
            self._all[receiver.name] = destination
        if (
            destination.in_flight < destination.concurrency
            and not destination.waiting
            and (destination.paced is None or pacing.ready_at(destination.pace) <= now)
        ):
            _begin(destination, parcel, now)
            return True
        parcel.offered_monotonic = now
        destination.waiting.append(parcel)
        self.waiting += 1
        if destination.paced is not None:
            self._note_moment(receiver.name, destination)
        return False

    def ended(self, name: str, now: float) -> Parcel | None:
        """A send has ended; the next one to start in its place, if one waits and may."""
        destination = self._all[name]
        destination.in_flight -= 1
        destination.ended += 1
        elapsed = now - destination.measured_monotonic
        if elapsed >= _MEASURED_FOR:
            destination.speed = destination.ended / elapsed
            destination.ended = 0
            destination.measured_monotonic = now
        if destination.waiting:
            if destination.paced is not None and pacing.ready_at(destination.pace) > now:
                self._note_moment(name, destination)
                return None
            parcel = destination.waiting.popleft()
            self.waiting -= 1
            _begin(destination, parcel, now)
            return parcel
        if not destination.in_flight:
            self._forget_idle(name, destination, now)
        return None

    def due(self, now: float) -> list[Parcel]:
        """Those whose moment has come: to be started."""
        started: list[Parcel] = []
        while self._moments and self._moments[0][0] <= now:
            _, name = heapq.heappop(self._moments)
            destination = self._all.get(name)
            if destination is None:
                continue
            destination.timed = False
            waiting = destination.waiting
            while waiting and destination.in_flight < destination.concurrency:
                if pacing.ready_at(destination.pace) > now:
                    self._note_moment(name, destination)
                    break
                parcel = waiting.popleft()
                self.waiting -= 1
                _begin(destination, parcel, now)
                started.append(parcel)
            if not waiting and not destination.in_flight:
                self._forget_idle(name, destination, now)
        return started

    def excess(self, now: float) -> list[Parcel]:
        """What is to be given back: of destinations whose first waiting callback has lost patience.

        As many as will begin soon stay, so that no place is ever empty.
        """
        given_back: list[Parcel] = []
        for name, destination in list(self._all.items()):
            waiting = destination.waiting
            if not waiting:
                if not destination.in_flight:
                    self._forget_idle(name, destination, now)
                continue
            if now - waiting[0].offered_monotonic < self._patience:
                continue
            kept = self._soon(destination, now)
            given_back += [waiting.pop() for _ in range(len(waiting) - kept)][::-1]
        self.waiting -= len(given_back)
        return given_back

    def appetite(self, receiver: Receiver, now: float) -> Appetite:
        destination = self._all.get(receiver.name)
        if destination is None:
            destination = _new(receiver, now)
        whole = destination.concurrency + self._soon(destination, now)
        if destination.paced is not None and destination.paced.rate is not None:
            whole = min(whole, max(1, math.ceil(destination.paced.rate * _AHEAD)))
        return Appetite(max(0, whole - destination.in_flight - len(destination.waiting)), whole)

    def take_waiting(self, name: str | None = None) -> list[Parcel]:
        """All that waits, in the order of claiming; of one destination, or of all. Nothing waits afterwards."""
        taken: list[Parcel] = []
        for destination in self._all.values() if name is None else filter(None, [self._all.get(name)]):
            taken.extend(destination.waiting)
            destination.waiting.clear()
        self.waiting -= len(taken)
        taken.sort(key=lambda parcel: parcel.number)
        return taken

    def _soon(self, destination: _Destination, now: float) -> int:
        """How many sends will end soon, by what was seen lately; 1 at least."""
        elapsed = now - destination.measured_monotonic
        speed = destination.speed
        if elapsed >= 2 * _MEASURED_FOR or (speed is None and elapsed >= self._patience):
            speed = destination.ended / elapsed  # it ended fewer than one in a while, or none yet
        if speed is None:
            return destination.concurrency
        return max(1, math.ceil(min(speed * _AHEAD, 1e6)))

    def _note_moment(self, name: str, destination: _Destination) -> None:
        """Where a place is free; where none is, the end of a send sees to it."""
        if not destination.timed and destination.in_flight < destination.concurrency:
            destination.timed = True
            heapq.heappush(self._moments, (pacing.ready_at(destination.pace), name))

    def _forget_idle(self, name: str, destination: _Destination, now: float) -> None:
        """One that has a pace is known until what it has sent no longer counts."""
        if destination.timed or pacing.ready_at(destination.pace) > now:
            self._note_moment(name, destination)
            return
        del self._all[name]


def _begin(destination: _Destination, parcel: Parcel, now: float) -> None:
    destination.in_flight += 1
    if destination.paced is not None:
        destination.pace = pacing.begun(destination.pace, destination.paced, len(parcel.request.body), now)


def _new(receiver: Receiver, now: float) -> _Destination:
    unlimited = receiver.rate is None and receiver.bandwidth is None
    paced = None if unlimited else PaceRule(receiver.rate, receiver.bandwidth)
    return _Destination(receiver.concurrency, paced, measured_monotonic=now)
