"""Who may send now: each destination has so many places and its pace, and its callbacks wait in their order.

Of a fast one, a few more than it has places are handed over (``pacing.ahead``): the engine sees to the places.

A destination that cannot soon begin what waits for it here would take all the room that others need. Then part of
it is given back (``excess``), to be kept in retry and claimed again when there is an ``appetite`` for it.

One that has not answered lately may never do so, and then each of its places is gone until a timeout. So it begins
with few, and each answer adds one, until it has them all: the slow start of TCP. All that have not answered together
leave a part of the places to those that do.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from cbq_exporter.delivery import pacing
from cbq_exporter.delivery.exchange import Request
from cbq_exporter.delivery.pacing import Pace, PaceRule
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.shaping import webhook_id
from cbq_exporter.model import Claimed

_UNPACED = Pace()
_MEASURED_FOR = 1.0  # seconds, or until:
_MANY = 1000  # sends have ended
_AHEAD = 1.0  # seconds: what a destination will begin within this may wait here
_KEPT_FREE = 4  # a fourth of all places is for those that answer
_PATIENCE_WITH_SILENT = 0.05  # seconds, while others answer
_HEARD_FOR = 300.0  # seconds that an idle one which has answered is known
_MOST_HEARD = 10_000  # of these


class Parcel(msgspec.Struct, eq=False):
    """One claimed callback on its way. ``number`` is its place in the order of claiming.

    ``url``, ``body`` and ``not_after``: see ``Request``; ``headers`` are those that its shaper does not make for each
    request. ``size`` is how many bytes are held in memory for it. ``offered_monotonic`` is when it began to wait here.
    ``lost``: its lease is not ours any more. ``bundle`` is what it goes in while it goes together with others, and the
    ``members`` of a bundle are those; else there are none.
    ``request`` is there from its start until its end is told: the two hold each other.
    """

    number: int
    claimed: Claimed
    receiver: Receiver
    url: str
    body: bytes
    headers: list[str]
    not_after: float
    queued_at: float | None = None
    size: int = 0
    offered_monotonic: float = 0.0
    lost: bool = False
    bundle: Parcel | None = None
    members: Sequence[Parcel] = ()
    request: Request | None = None

    @property
    def destination(self) -> str:
        return self.receiver.name

    @property
    def request_id(self) -> str:
        return webhook_id(self.claimed)

    @property
    def answer_bytes(self) -> int:
        """See ``Request``."""
        return 0

    def make_request(self) -> Request:
        """What to send, made and signed now."""
        receiver, body = self.receiver, self.body
        self.request = request = Request(
            self.url,
            body,
            self.headers + receiver.shaper.headers_for(self.request_id, body),
            receiver.timeout,
            receiver.connect_timeout,
            self.not_after,
            self,
            receiver.gzip_from is not None and len(body) >= receiver.gzip_from,
            receiver.tls,
            self.answer_bytes,
            receiver.name,
            receiver.places,
        )
        return request

    def prolong(self, not_after: float) -> None:
        """``not_after``: see ``Request``."""
        for one in (self, self.bundle):
            if one is not None and not one.lost:
                one._end_at(not_after)

    def withdraw(self) -> None:
        """Its lease is not ours any more: if it was not started, it must not start, nor what it goes in."""
        self.lost = True
        for one in (self, self.bundle):
            if one is not None:
                one.lost = True
                one._end_at(float("-inf"))

    def _end_at(self, not_after: float) -> None:
        self.not_after = not_after
        if self.request is not None:
            self.request.not_after = not_after


@dataclass(slots=True)
class _Destination:
    """``allowed`` of its places may be used now, ``first`` of them until it answers. ``heard``: it has answered lately;
    ``silent`` sends since have not.
    """

    concurrency: int
    first: int
    allowed: int
    paced: PaceRule | None
    pace: Pace = _UNPACED
    timed: bool = False  # it stands among those that wait for a moment
    heard: bool = False
    silent: int = 0
    in_flight: int = 0
    ahead: int = 0  # how many may be handed over beyond those
    waiting: deque[Parcel] = field(default_factory=deque)
    speed: float | None = None  # sends that ended per second, as seen lately
    ended: int = 0
    measured_monotonic: float = 0.0


class Appetite(NamedTuple):
    """How many more callbacks a destination could begin soon, and how many in all where none were here.

    ``crowded``: it could begin more, were it not for others that have not answered either.
    """

    left: int
    whole: int
    crowded: bool = False


class Destinations:
    """``places`` is how many requests can be under way, to all together. Idle destinations cost nothing: they are
    forgotten, but for how many places those had that have answered lately.
    """

    def __init__(self, *, places: int = 10_000, patience: float = 0.5) -> None:
        self._patience = patience
        self._most_unheard = places - places // _KEPT_FREE
        self._unheard = 0  # sends under way to destinations that have not answered lately
        self._kept_out: dict[str, None] = {}  # those that could begin something were it not for that
        self._heard: dict[str, tuple[int, float]] = {}  # idle ones: places, and until when that holds
        self._answered_monotonic = float("-inf")  # whoever it was
        self._all: dict[str, _Destination] = {}
        self._moments: list[tuple[float, str]] = []  # a heap: when the next of a destination may begin
        self.waiting = 0

    def in_flight(self) -> dict[str, int]:
        """Sends under way, by destination; only those that have any."""
        return {name: min(one.in_flight, one.concurrency) for name, one in self._all.items() if one.in_flight}

    @property
    def next_moment(self) -> float | None:
        """When ``due`` has something again, monotonic; None: not before something is offered or ends."""
        return self._moments[0][0] if self._moments else None

    def offer(self, parcel: Parcel, now: float) -> bool:
        """Take a place for ``parcel`` (True: start it), or let it wait."""
        receiver = parcel.receiver
        destination = self._all.get(receiver.name)
        if destination is None:
            destination = self._all[receiver.name] = self._meet(receiver, now)
        if (
            destination.in_flight < destination.allowed + destination.ahead
            and not destination.waiting
            and (destination.heard or self._unheard < self._most_unheard)
            and (destination.paced is None or pacing.ready_at(destination.pace) <= now)
        ):
            self._begin(destination, parcel, now)
            return True
        parcel.offered_monotonic = now
        destination.waiting.append(parcel)
        self.waiting += 1
        self._note_what_for(receiver.name, destination)
        return False

    def ended(self, name: str, now: float, *, answered: bool, count: int = 1) -> Sequence[Parcel]:
        """So many sends have ended, by answers of any kind or without any; those to start now."""
        destination = self._all[name]
        destination.in_flight -= count
        if not destination.heard:
            self._unheard -= count
        if answered:
            self._answered_monotonic = now
            destination.silent = 0
            if destination.allowed < destination.concurrency:
                destination.allowed = min(destination.allowed + count, destination.concurrency)
            if not destination.heard:
                destination.heard = True
                self._unheard -= destination.in_flight
        elif destination.heard:
            destination.silent += count
            if destination.silent >= destination.first:
                destination.heard = False
                destination.allowed, destination.ahead = destination.first, 0
                self._unheard += destination.in_flight
        destination.ended += count
        elapsed = now - destination.measured_monotonic
        if elapsed >= _MEASURED_FOR or (destination.ended >= _MANY and elapsed > 0):
            destination.speed = destination.ended / elapsed
            destination.ended = 0
            destination.measured_monotonic = now
            if destination.paced is None:
                destination.ahead = (
                    pacing.ahead(destination.speed, destination.concurrency)
                    if destination.allowed == destination.concurrency
                    else 0
                )
        following: Sequence[Parcel] = ()
        if destination.waiting:
            following = self._begin_waiting(name, destination, now)
        elif not destination.in_flight:
            self._forget_idle(name, destination, now)
        if self._kept_out and self._unheard < self._most_unheard:
            following = [*following, *self._begin_kept_out(now)]
        return following

    def due(self, now: float) -> list[Parcel]:
        """Those whose moment has come: to be started."""
        started: list[Parcel] = []
        while self._moments and self._moments[0][0] <= now:
            _, name = heapq.heappop(self._moments)
            destination = self._all.get(name)
            if destination is None:
                continue
            destination.timed = False
            started += self._begin_waiting(name, destination, now)
            if not destination.waiting and not destination.in_flight:
                self._forget_idle(name, destination, now)
        return started

    def excess(self, now: float) -> list[Parcel]:
        """What is to be given back: of destinations whose first waiting callback has lost patience.

        As many as will begin soon stay, so that no place is ever empty; of those that have not answered, none.
        """
        given_back: list[Parcel] = []
        for name, destination in list(self._all.items()):
            waiting = destination.waiting
            if not waiting:
                if not destination.in_flight:
                    self._forget_idle(name, destination, now)
                continue
            since = waiting[0].offered_monotonic
            # It is not we who are slow, where others have answered meanwhile.
            asked = destination.in_flight > 0  # else it only waits for a place, as thousands may that all are well
            is_the_silent_one = asked and not destination.heard and self._answered_monotonic > since
            if now - since < (_PATIENCE_WITH_SILENT if is_the_silent_one else self._patience):
                continue
            kept = self._soon(destination, now) if destination.heard else 0
            given_back += [waiting.pop() for _ in range(len(waiting) - kept)][::-1]
            if not waiting:
                self._kept_out.pop(name, None)
                if not destination.in_flight:
                    self._forget_idle(name, destination, now)
        self.waiting -= len(given_back)
        return given_back

    def appetite(self, receiver: Receiver, now: float) -> Appetite:
        destination = self._all.get(receiver.name)
        if destination is None:
            destination = self._meet(receiver, now)
        if not destination.heard:
            free = max(0, self._most_unheard - self._unheard)
            left = destination.allowed - destination.in_flight - len(destination.waiting)
            return Appetite(max(0, min(left, free)), destination.allowed, crowded=left > free)
        whole = destination.allowed + self._soon(destination, now)
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
            return destination.allowed
        return max(1, math.ceil(min(speed * _AHEAD, 1e6)))

    def _begin_waiting(self, name: str, destination: _Destination, now: float) -> list[Parcel]:
        """What waits there and may begin."""
        waiting = destination.waiting
        if destination.heard and destination.paced is None:
            count = max(0, min(len(waiting), destination.allowed + destination.ahead - destination.in_flight))
            destination.in_flight += count
            self.waiting -= count
            return [waiting.popleft() for _ in range(count)]
        begun: list[Parcel] = []
        while waiting and destination.in_flight < destination.allowed + destination.ahead:
            if (not destination.heard and self._unheard >= self._most_unheard) or (
                destination.paced is not None and pacing.ready_at(destination.pace) > now
            ):
                self._note_what_for(name, destination)
                break
            parcel = waiting.popleft()
            self.waiting -= 1
            self._begin(destination, parcel, now)
            begun.append(parcel)
        return begun

    def _begin_kept_out(self, now: float) -> list[Parcel]:
        """Each comes to its turn, and behind the others where it has more."""
        begun: list[Parcel] = []
        for name in list(self._kept_out):
            if self._unheard >= self._most_unheard:
                break
            del self._kept_out[name]
            destination = self._all.get(name)
            if destination is not None:
                begun += self._begin_waiting(name, destination, now)
        return begun

    def _begin(self, destination: _Destination, parcel: Parcel, now: float) -> None:
        destination.in_flight += 1
        if not destination.heard:
            self._unheard += 1
        if destination.paced is not None:
            destination.pace = pacing.begun(destination.pace, destination.paced, len(parcel.body), now)

    def _note_what_for(self, name: str, destination: _Destination) -> None:
        """What the first that waits there waits for, where it is not the end of a send to it."""
        if destination.in_flight >= destination.allowed + destination.ahead:
            return
        if not destination.heard and self._unheard >= self._most_unheard:
            self._kept_out[name] = None
        elif destination.paced is not None:
            self._note_moment(name, destination)

    def _note_moment(self, name: str, destination: _Destination) -> None:
        if not destination.timed and destination.in_flight < destination.allowed:
            destination.timed = True
            heapq.heappush(self._moments, (pacing.ready_at(destination.pace), name))

    def _meet(self, receiver: Receiver, now: float) -> _Destination:
        unlimited = receiver.rate is None and receiver.bandwidth is None
        paced = None if unlimited else PaceRule(receiver.rate, receiver.bandwidth)
        allowed, known_until = self._heard.get(receiver.name, (0, 0.0))
        first = receiver.first_concurrency
        heard = known_until > now
        allowed = min(max(first, allowed), receiver.concurrency) if heard else first
        return _Destination(receiver.concurrency, first, allowed, paced, heard=heard, measured_monotonic=now)

    def _forget_idle(self, name: str, destination: _Destination, now: float) -> None:
        """One that has a pace is known until what it has sent no longer counts."""
        if destination.timed or pacing.ready_at(destination.pace) > now:
            self._note_moment(name, destination)
            return
        del self._all[name]
        self._heard.pop(name, None)
        if destination.heard:
            if len(self._heard) >= _MOST_HEARD:
                del self._heard[next(iter(self._heard))]
            self._heard[name] = destination.allowed, now + _HEARD_FOR
