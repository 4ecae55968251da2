"""Sends one queue's claimed callbacks within the limits of each destination; on the event loop.

Each parcel handed over comes back exactly once: as ended, with its exchange, or as given back, unsent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.destinations import Appetite, Destinations, Parcel
from cbq_exporter.delivery.engine import Engine
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.receivers import Receiver

Ended = tuple[Parcel, Exchange]


class Sender:
    """``on_ended`` gets what the engine has finished, in batches. ``places`` is how many requests may be under way."""

    def __init__(
        self,
        make_engine: Callable[[Callable[[list[Exchange]], None]], Engine],
        *,
        on_ended: Callable[[list[Ended]], None],
        clock: Clock,
        places: int,
    ) -> None:
        self._engine = make_engine(self._on_done)
        self._destinations = Destinations(places=places)
        self._on_ended = on_ended
        self._clock = clock
        self._later: dict[Parcel, asyncio.TimerHandle] = {}
        self._moment: tuple[float, asyncio.TimerHandle] | None = None  # of the next that may begin by its pace
        self._started = False

    def start(self) -> None:
        self._engine.start()
        self._started = True

    @property
    def unstarted(self) -> int:
        """Parcels that wait for a place."""
        return self._destinations.waiting + len(self._later)

    def in_flight(self) -> dict[str, int]:
        """Requests that are being sent, by destination; only those that have any."""
        return self._destinations.in_flight()

    def send(self, parcels: Sequence[Parcel], *, spread: float = 0.0) -> None:
        """Send in this order; with ``spread``, so many seconds between the starts of two."""
        if spread <= 0:
            self._offer(parcels)
            return
        loop = asyncio.get_running_loop()
        for number, parcel in enumerate(parcels):
            if number == 0:
                self._offer([parcel])
            else:
                self._later[parcel] = loop.call_later(number * spread, self._spread_out, parcel)

    def appetite(self, receiver: Receiver) -> Appetite:
        """How many more callbacks to it could begin soon."""
        return self._destinations.appetite(receiver, self._clock.monotonic())

    def give_back_excess(self) -> list[Parcel]:
        """What slow destinations keep others from."""
        return self._destinations.excess(self._clock.monotonic())

    def give_back_waiting(self, destination: str) -> list[Parcel]:
        """All that waits there for a place or for its moment."""
        waiting = self._destinations.take_waiting(destination)
        spread_out = [parcel for parcel in self._later if parcel.destination == destination]
        for parcel in spread_out:
            self._later.pop(parcel).cancel()
        return waiting + spread_out

    def give_back_unstarted(self) -> list[Parcel]:
        """All that waits for a place or for its moment, in order. What the engine was given comes back as ended."""
        waiting = self._destinations.take_waiting()
        for parcel, timer in self._later.items():
            timer.cancel()
            waiting.append(parcel)
        self._later.clear()
        if self._moment is not None:
            self._moment[1].cancel()
            self._moment = None
        self._engine.cancel_unstarted()
        return waiting

    async def close(self, grace: float) -> None:
        """Give what is in flight ``grace`` seconds, then cut it off; ``on_ended`` has been told all on return."""
        if self._started:
            await self._engine.close(grace)

    def _spread_out(self, parcel: Parcel) -> None:
        del self._later[parcel]
        self._offer([parcel])

    def _offer(self, parcels: Sequence[Parcel]) -> None:
        now = self._clock.monotonic()
        offer = self._destinations.offer
        self._engine.submit([parcel.make_request() for parcel in parcels if offer(parcel, now)])
        self._await_moment(now)

    def _await_moment(self, now: float) -> None:
        """One timer for all destinations that have a pace and something waiting."""
        at = self._destinations.next_moment
        if at is None or (self._moment is not None and self._moment[0] <= at):
            return
        if self._moment is not None:
            self._moment[1].cancel()
        self._moment = at, asyncio.get_running_loop().call_later(max(0.0, at - now), self._begin_due)

    def _begin_due(self) -> None:
        self._moment = None
        now = self._clock.monotonic()
        self._engine.submit([parcel.make_request() for parcel in self._destinations.due(now)])
        self._await_moment(now)

    def _on_done(self, exchanges: list[Exchange]) -> None:
        now = self._clock.monotonic()
        ended: list[Ended] = []
        following: list[Parcel] = []
        for receiver, answered, those in _runs(exchanges):
            ended += those
            following += self._destinations.ended(receiver.name, now, answered=answered, count=len(those))
        # First keep the line busy, then do the books.
        if following:
            self._engine.submit([after.make_request() for after in following])
        self._await_moment(now)
        self._on_ended(ended)


def _runs(exchanges: Sequence[Exchange]) -> Iterator[tuple[Receiver, bool, list[Ended]]]:
    """As long as they are of one receiver, which has answered or has not: most of a batch are, as a rule."""
    receiver: Receiver | None = None
    answered = False
    run: list[Ended] = []
    for exchange in exchanges:
        parcel: Parcel = exchange.tag
        parcel.request = None  # they hold each other: without this only the garbage collector frees them
        if parcel.receiver is not receiver or (exchange.status > 0) is not answered:
            if receiver is not None:
                yield receiver, answered, run
            receiver, answered, run = parcel.receiver, exchange.status > 0, []
        run.append((parcel, exchange))
    if receiver is not None:
        yield receiver, answered, run
