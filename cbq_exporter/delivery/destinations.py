"""Who may send now: each destination has so many places, and its callbacks wait in their order for one.

A destination that can not drain what waits for it here within a moment would take all the room that others
need. Then part of what waits is given back (``excess``), to be claimed again about when its turn comes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from cbq_exporter.delivery.exchange import Request
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.model import Claimed


class Parcel(msgspec.Struct, eq=False):
    """One claimed callback on its way. ``number`` is its place in the order of claiming.

    ``offered_monotonic`` is when it began to wait here. ``lost``: its lease is not ours any more.
    """

    number: int
    claimed: Claimed
    receiver: Receiver
    request: Request
    queued_at: float | None
    offered_monotonic: float = 0.0
    lost: bool = False

    @property
    def destination(self) -> str:
        return self.receiver.name

    @property
    def size(self) -> int:
        """Bytes held in memory for it."""
        return len(self.claimed.payload) + len(self.request.body)


@dataclass(slots=True)
class _Destination:
    concurrency: int
    in_flight: int = 0
    waiting: deque[Parcel] = field(default_factory=deque)
    pace: float = 0.0  # sends that ended per second, as seen lately
    ended: int = 0
    measured_monotonic: float = 0.0
    booked_until: float = 0.0  # monotonic: when what was given back will have had its turn


class Destinations:
    """Idle destinations cost nothing: they are forgotten."""

    def __init__(self, *, patience: float = 1.0, longest_delay: float = 60.0) -> None:
        self._patience = patience
        self._longest_delay = longest_delay
        self._all: dict[str, _Destination] = {}
        self.waiting = 0

    def in_flight(self) -> dict[str, int]:
        """Sends under way, by destination; only those that have any."""
        return {name: one.in_flight for name, one in self._all.items() if one.in_flight}

    def offer(self, parcel: Parcel, now: float) -> bool:
        """Take a place for ``parcel`` (True: start it), or let it wait."""
        receiver = parcel.receiver
        destination = self._all.get(receiver.name)
        if destination is None:
            destination = _Destination(receiver.concurrency, measured_monotonic=now)
            self._all[receiver.name] = destination
        if destination.in_flight < destination.concurrency and not destination.waiting:
            destination.in_flight += 1
            return True
        parcel.offered_monotonic = now
        destination.waiting.append(parcel)
        self.waiting += 1
        return False

    def ended(self, name: str, now: float) -> Parcel | None:
        """A send has ended; the next one to start in its place, if one waits."""
        destination = self._all[name]
        destination.in_flight -= 1
        destination.ended += 1
        elapsed = now - destination.measured_monotonic
        if elapsed >= 1.0:
            destination.pace = destination.ended / elapsed
            destination.ended = 0
            destination.measured_monotonic = now
        if destination.waiting:
            self.waiting -= 1
            destination.in_flight += 1
            return destination.waiting.popleft()
        if not destination.in_flight and destination.booked_until <= now:
            del self._all[name]
        return None

    def excess(self, now: float) -> list[tuple[Parcel, float]]:
        """What is to be given back, each with the seconds until its turn may come.

        Of destinations whose first waiting callback has lost patience; as many as have places stay here,
        so that no place is ever empty.
        """
        given_back: list[tuple[Parcel, float]] = []
        for name, destination in list(self._all.items()):
            waiting = destination.waiting
            if not waiting and not destination.in_flight and destination.booked_until <= now:
                del self._all[name]
            if len(waiting) <= destination.concurrency or now - waiting[0].offered_monotonic < self._patience:
                continue
            # Measured lately, or not one ended: then the pace is at most one in the time that has passed.
            elapsed = max(now - destination.measured_monotonic, 0.001)
            pace = max(destination.pace, 0.1) if elapsed < 2.0 else max((destination.ended + 1) / elapsed, 0.1)
            turn = max(destination.booked_until, now + destination.concurrency / pace)
            kept = [waiting.popleft() for _ in range(destination.concurrency)]
            for parcel in waiting:
                turn += 1.0 / pace
                given_back.append((parcel, min(max(turn - now, self._patience), self._longest_delay)))
            destination.booked_until = min(turn, now + self._longest_delay)
            self.waiting -= len(waiting)
            waiting.clear()
            waiting.extend(kept)
        return given_back

    def take_waiting(self, name: str | None = None) -> list[Parcel]:
        """All that waits, in the order of claiming; of one destination, or of all. Nothing waits afterwards."""
        taken: list[Parcel] = []
        for destination in self._all.values() if name is None else filter(None, [self._all.get(name)]):
            taken.extend(destination.waiting)
            destination.waiting.clear()
        self.waiting -= len(taken)
        taken.sort(key=lambda parcel: parcel.number)
        return taken
