"""Which callbacks are held back from their destinations now, and when they may go. Of one queue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.sender import Sender
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Claimed, PutOff, Settlement
from cbq_exporter.services.backlogs import Backlogs
from cbq_exporter.services.circuits import Circuits
from cbq_exporter.services.pausing import LOOK_EVERY
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.queue import Queue


class Holding:
    """``under_way`` counts the callbacks that are held here, by destination; ``batch`` is the size of one."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        breakers: Breakers,
        sender: Sender,
        instruments: QueueInstruments,
        clock: Clock,
        under_way: Callable[[], Counter[str]],
        batch: int,
    ) -> None:
        self.circuits = Circuits(name, breakers, instruments, clock)
        self._backlogs = Backlogs(queue.retries, instruments, clock, batch)
        self._sender = sender
        self._under_way = under_way
        self._batch = batch
        # Of the destinations for which something is held back: where that goes now. A name may be one of an older
        # configuration, for what goes to another one today.
        self._receivers: dict[str, Receiver] = {}
        self._unknown: dict[str, None] = {}  # names for which one was made due, to find that out
        self._former: dict[str, dict[str, None]] = {}  # by a name of today, former ones
        self._paused: Collection[str] = ()
        self._left: dict[str, int] = {}  # how many more may go to each, of the batch being accepted
        self._counted: Counter[str] | None = None  # what is under way, in this batch or turn
        self._known = False  # what the store knows of circuits
        self._crowded = False  # some could take more, were it not for others

    def __bool__(self) -> bool:
        """Whether anything is held back: where not, nobody needs to ask."""
        return bool(self.circuits.unwell or self._backlogs)

    def have_ended(self, names: Iterable[str]) -> bool:
        """Sends to these have; whether that may let something go, or is to be told to the store."""
        matters = self.circuits.unsaved or self._crowded
        for name in names:
            for one in (*self._former.get(name, ()), name):
                if one in self._backlogs:
                    self._backlogs.ask_first(one)
                    matters = True
            matters = matters or name in self.circuits.unwell
        return matters

    # --- one callback ------------------------------------------------------------------------

    def begin_batch(self) -> None:
        self._left, self._counted = {}, None

    def why(self, claimed: Claimed, receiver: Receiver, at_ms: int) -> PutOff | None:
        """Why this one, claimed at ``at_ms``, cannot go now; None: it may.

        The fresh stand behind those that wait already.
        """
        name = receiver.name
        fresh = claimed.first_claimed_ms == at_ms
        if not fresh:
            self._note_came(receiver)
        if name in self.circuits.unwell and not self._may_probe(receiver):
            return PutOff.CIRCUIT_OPEN
        if fresh and name in self._backlogs:
            return PutOff.THROTTLED
        return None

    def _note_came(self, receiver: Receiver) -> None:
        """What nobody expects under the name that it has today was made due under another, or is a plain retry."""
        name = receiver.name
        if not self._backlogs.expects(name):
            expected = (one for one in [*self._former.get(name, ()), *self._unknown] if self._backlogs.expects(one))
            former = next(expected, None)
            if former is not None:
                self._former.setdefault(name, {})[former] = None
                self._came(former, receiver)
                return
        if name in self._backlogs:
            self._came(name, receiver)

    def _came(self, waited_for: str, receiver: Receiver) -> None:
        self._unknown.pop(waited_for, None)
        self._receivers[waited_for] = receiver
        self._backlogs.came(waited_for)

    def _may_probe(self, receiver: Receiver) -> bool:
        name = receiver.name
        if name not in self._left:
            places = self.circuits.places(receiver)
            if places is None:
                return True
            self._left[name] = places - self._under_way_to(name) if places else 0
        self._left[name] -= 1
        return self._left[name] >= 0

    # --- putting off -------------------------------------------------------------------------

    def put_off(self, waiting: Sequence[tuple[Claimed, str, Receiver, PutOff]]) -> list[Settlement]:
        settlements: list[Settlement] = []
        self._receivers.update((receiver.name, receiver) for _, _, receiver, _ in waiting)
        for why in PutOff:
            those = [(claimed, url, receiver) for claimed, url, receiver, its in waiting if its is why]
            if those:
                settlements += self._backlogs.put_off(those, why)
        return settlements

    def put_off_excess(self) -> list[Settlement]:
        """What slow destinations keep others from."""
        return self._put_off_parcels(self._sender.give_back_excess(), PutOff.THROTTLED)

    def put_off_behind_opened(self) -> list[Settlement]:
        """What waited for places of destinations whose circuit has opened."""
        settlements: list[Settlement] = []
        for name in self.circuits.take_opened():
            settlements += self._put_off_parcels(self._sender.give_back_waiting(name), PutOff.CIRCUIT_OPEN)
        return settlements

    def put_off_paused(self, name: str) -> list[Settlement]:
        """What waited for places of a destination that is paused now."""
        return self._put_off_parcels(self._sender.give_back_waiting(name), PutOff.PAUSED)

    def _put_off_parcels(self, parcels: Sequence[Parcel], why: PutOff) -> list[Settlement]:
        for parcel in parcels:
            self._receivers[parcel.destination] = parcel.receiver
        return self._backlogs.put_off_parcels(parcels, why)

    def stored(self, settlements: Sequence[Settlement]) -> None:
        if self._backlogs:
            self._backlogs.stored(settlements)

    # --- letting go --------------------------------------------------------------------------

    async def look(self, paused: Collection[str]) -> None:
        """Bring what the store knows and what we know together; raises StoreError."""
        self._paused = paused
        if not self._known:
            await self.circuits.load()
            for name in self.circuits.unwell:
                self._backlogs.expect(name)
            self._backlogs.begin()
            self._known = True
        await self.circuits.save()
        await self.circuits.look(self._backlogs)

    async def let_go(self) -> int:
        """Make due what destinations have an appetite for; how many these were. Raises StoreError."""
        await self._backlogs.search()
        if not self._backlogs:
            self._receivers.clear()
            self._unknown.clear()
            self._former.clear()
            return 0
        self._crowded, self._counted = False, None
        return await self._backlogs.bring_forward(self._wanted)

    @property
    def coming(self) -> int:
        """Those that were made due and are not claimed yet."""
        return self._backlogs.coming

    def next_look(self) -> float | None:
        """In how many seconds it makes sense to ``let_go`` again; None: not before something else happens."""
        if not self:
            return None
        turn = self._backlogs.next_turn()
        moments = [
            self._wanted_in(name) or (0.0 if name in self._backlogs else self.circuits.forgotten_in(name))
            for name in self.circuits.unwell
        ]
        return min([*filter(None, moments), *([] if turn is None else [turn])], default=None)

    def forget(self) -> None:
        """Somebody else sends now."""
        self.circuits.forget()
        self._known = False

    def _wanted(self, name: str) -> int:
        if self._wanted_in(name) > 0:
            return 0
        receiver = self._receivers.get(name)
        if receiver is None:
            self._unknown[name] = None
            return 1  # then we know more
        if receiver.name in self.circuits.unwell:
            places = self.circuits.places(receiver)
            if places is not None:
                return places - self._under_way_to(receiver.name)
        left, whole, crowded = self._sender.appetite(receiver)
        self._crowded = self._crowded or crowded
        # Not one by one: a script for many costs little more than for one.
        return min(left, 2 * self._batch) if 2 * left >= whole else 0

    def _under_way_to(self, name: str) -> int:
        """Counted once for all destinations that are asked for."""
        if self._counted is None:
            self._counted = self._under_way()
        return self._counted[name]

    def _wanted_in(self, name: str) -> float:
        """In how many seconds at the earliest."""
        receiver = self._receivers.get(name)
        if receiver is not None:
            if receiver.paused:
                return math.inf  # until the configuration is another
            name = receiver.name
        if name in self._paused:
            return LOOK_EVERY
        return self.circuits.may_be_probed_in(name) or 0.0
