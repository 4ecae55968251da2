"""The circuits of one queue's destinations: told what became of attempts, asked who may be sent to."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Container, Sequence

from cbq_exporter.clock import Clock
from cbq_exporter.config import BreakerConfig
from cbq_exporter.delivery.bundles import of_request
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.sender import Ended
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.policy import breaker, retry
from cbq_exporter.policy.breaker import BreakerRule, Circuit, Phase
from cbq_exporter.store.breakers import Breakers

log = logging.getLogger(__name__)

_SHOWN = {Phase.CLOSED: 0, Phase.HALF_OPEN: 1, Phase.OPEN: 2}
_LOOK = 1.0  # seconds: how often is looked whether a person has closed one
_CLEANED_AT = 1000  # circuits that say nothing are forgotten where there are more than this


class Circuits:
    """It says at once what is so; the store hears of changes with ``save``, and only of changes."""

    def __init__(self, queue: str, breakers: Breakers, instruments: QueueInstruments, clock: Clock) -> None:
        self._queue = queue
        self._breakers = breakers
        self._instruments = instruments
        self._clock = clock
        self._closed: dict[str, Circuit] = {}  # with what they count
        self._unwell: dict[str, Circuit] = {}  # open or half-open
        self._rules: dict[int, tuple[BreakerConfig, BreakerRule]] = {}  # by the identity of what they are made of
        self._unsaved: set[str] = set()
        self._opened: list[str] = []
        self._clean_at = _CLEANED_AT
        self._looked = float("-inf")  # monotonic

    @property
    def unwell(self) -> Collection[str]:
        """Destinations whose circuit is not closed."""
        return self._unwell.keys()

    @property
    def unsaved(self) -> bool:
        return bool(self._unsaved)

    def tell(self, ended: Sequence[Ended]) -> None:
        """Sends have ended. Callbacks that went in one request count once."""
        counts: dict[Receiver, list[int]] = {}  # of those that succeeded, and of those that failed
        receiver: Receiver | None = None  # of the one before: as a rule it is that of all
        count = [0, 0]
        bundle: object = None
        for parcel, exchange in ended:
            failed: bool | None = False
            if exchange.failure is not None or exchange.tag is not parcel:
                spoken = of_request(exchange)
                if spoken is not exchange:
                    if exchange.tag is bundle:
                        continue
                    bundle = exchange.tag
                failed = spoken.failure is not None and breaker.failed(spoken.failure, spoken.status)
                if failed is None:
                    continue
                if failed and retry.meaning_of(spoken.status, parcel.receiver.retry) == "delivered":
                    failed = False
            if parcel.receiver is not receiver:
                receiver = parcel.receiver
                count = counts.setdefault(receiver, [0, 0])
            count[1 if failed else 0] += 1
        for receiver, (succeeded, failures) in counts.items():
            if receiver.breaker is not None:
                self.record(receiver, succeeded=succeeded, failed=failures)

    def record(self, receiver: Receiver, *, succeeded: int, failed: int) -> None:
        """Attempts have ended; those that say nothing about the receiver are not among them."""
        rule = self._rule(receiver)
        if rule is None or not succeeded + failed:
            return
        name, now = receiver.name, self._clock.monotonic()
        before = self._unwell.get(name) or self._closed.get(name)
        if before is None:
            self._clean(rule, now)
            before = Circuit(half_began=now)
        before = self._probing(name, before, now)
        after = breaker.record(before, rule, succeeded=succeeded, failed=failed, now=now, roll=random.random())
        if after is not before:
            self._note(name, before.phase, after)

    def places(self, receiver: Receiver) -> int | None:
        """How many callbacks to it may be under way; None: no circuit limits it."""
        name = receiver.name
        circuit = self._unwell.get(name)
        if circuit is None:
            return None
        rule = self._rule(receiver)
        if rule is None:  # by a configuration that came later
            self._note(name, circuit.phase, Circuit())
            return None
        return breaker.places(self._probing(name, circuit, self._clock.monotonic()), rule)

    def may_be_probed_in(self, name: str) -> float | None:
        """Seconds; 0 where probes may go, None where the circuit is closed."""
        circuit = self._unwell.get(name)
        return None if circuit is None else max(0.0, circuit.until - self._clock.monotonic())

    def take_opened(self) -> list[str]:
        """Those that have opened since this was asked last."""
        opened, self._opened = self._opened, []
        return opened

    # --- the store ---------------------------------------------------------------------------

    async def load(self) -> None:
        """Go on where whoever sent before us has stopped. Raises StoreError."""
        now = self._clock.monotonic()
        for name, kept in (await self._breakers.current()).items():
            if name not in self._unwell:
                circuit = Circuit(Phase.OPEN, openings=max(1, kept.openings), until=now + kept.left)
                self._note(name, Phase.CLOSED, circuit)
        self._unsaved.clear()
        self._opened.clear()
        self._looked = now

    async def save(self) -> None:
        """Tell the store what has changed; raises StoreError, and what it did not hear it is told the next time."""
        now = self._clock.monotonic()
        while self._unsaved:
            name = next(iter(self._unsaved))
            circuit = self._unwell.get(name)
            if circuit is None:
                await self._breakers.close(name)
            else:
                await self._breakers.keep(name, circuit.phase, max(0.0, circuit.until - now), circuit.openings)
            if self._unwell.get(name) is circuit:
                self._unsaved.discard(name)

    def forgotten_in(self, name: str) -> float:
        """In how many seconds ``look`` forgets one that is not closed, where nothing waits for it."""
        return max(_LOOK, breaker.forgotten_in(self._unwell[name], self._clock.monotonic()))

    async def look(self, waiting: Container[str] = ()) -> None:
        """Close what a person has closed in the store, and what nobody will probe: ``waiting`` are the destinations
        for which something waits. Raises StoreError.
        """
        now = self._clock.monotonic()
        if not self._unwell or self._unsaved or now - self._looked < _LOOK:
            return
        kept = await self._breakers.among(self._unwell)
        self._looked = now
        for name, circuit in list(self._unwell.items()):
            if name not in kept and name not in self._unsaved:
                log.info("a circuit was closed by hand", extra={"queue": self._queue, "destination": name})
                self._note(name, circuit.phase, Circuit())
                self._unsaved.discard(name)
            elif name not in waiting and not breaker.forgotten_in(circuit, now):
                log.info(
                    "a circuit is forgotten: nothing waits for it", extra={"queue": self._queue, "destination": name}
                )
                self._note(name, circuit.phase, Circuit())

    def forget(self) -> None:
        """Somebody else sends now, and knows better."""
        for name in self._unwell:
            self._show(name, Phase.CLOSED)
        self._closed.clear()
        self._unwell.clear()
        self._unsaved.clear()
        self._opened.clear()

    # --- inside ------------------------------------------------------------------------------

    def _rule(self, receiver: Receiver) -> BreakerRule | None:
        config = receiver.breaker
        if config is None or not config.enabled:
            return None
        known = self._rules.get(id(config))
        if known is None:
            rule = BreakerRule(
                config.failure_ratio,
                config.min_attempts,
                config.window,
                config.open_for,
                config.longest_open,
                config.probes,
            )
            known = self._rules[id(config)] = config, rule
        return known[1]

    def _probing(self, name: str, circuit: Circuit, now: float) -> Circuit:
        after = breaker.probing(circuit, now)
        if after is not circuit:
            self._note(name, circuit.phase, after)
        return after

    def _note(self, name: str, before: Phase, after: Circuit) -> None:
        if after.phase is Phase.CLOSED:
            self._unwell.pop(name, None)
            self._closed[name] = after
        else:
            self._closed.pop(name, None)
            self._unwell[name] = after
        if after.phase is before:
            return
        self._unsaved.add(name)
        self._show(name, after.phase)
        about = {"queue": self._queue, "destination": name}
        if after.phase is Phase.OPEN:
            self._opened.append(name)
            left = round(after.until - self._clock.monotonic(), 1)
            log.warning("a circuit is open: nothing is sent", extra={**about, "seconds": left, "times": after.openings})
        elif after.phase is Phase.HALF_OPEN:
            log.info("a circuit is half-open: a few are sent to see", extra=about)
        else:
            log.info("a circuit is closed again", extra=about)

    def _show(self, name: str, phase: Phase) -> None:
        circuit = self._instruments.destination(name).circuit
        if circuit is not None:
            circuit.set(_SHOWN[phase])

    def _clean(self, rule: BreakerRule, now: float) -> None:
        """Amortized: each time twice as many are known as were left."""
        if len(self._closed) < self._clean_at:
            return
        self._closed = {
            name: circuit for name, circuit in self._closed.items() if not breaker.says_nothing(circuit, rule, now)
        }
        self._clean_at = max(_CLEANED_AT, 2 * len(self._closed))
