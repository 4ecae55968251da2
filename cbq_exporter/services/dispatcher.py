"""Takes batches from one queue and sends them: the only one that claims, and only while it holds the lock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.clock import Clock, StoreClock
from cbq_exporter.config import QueueConfig
from cbq_exporter.delivery.bundles import Opened
from cbq_exporter.delivery.coalescing import Coalescer
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.engine import Engine
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.ordering import Turns
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.delivery.sender import Ended, Sender
from cbq_exporter.errors import StoreError
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import (
    Claim,
    Dead,
    Delivered,
    FlushReason,
    Held,
    Settled,
    Settlement,
)
from cbq_exporter.services.accepting import Acceptor
from cbq_exporter.services.flushing import Flushing
from cbq_exporter.services.holding import Holding
from cbq_exporter.services.judging import Judge
from cbq_exporter.services.leading import Leading
from cbq_exporter.services.pausing import LOOK_EVERY, Pausing
from cbq_exporter.services.room import MOST_GATHERED, Room
from cbq_exporter.services.settler import Settler
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)

_LONGEST_RUN = 1.0  # seconds; a backlog is drained in many runs, so that the schedule sees them end


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What one run did. ``look_again_in`` is seconds; None: nothing waits, only an arrival can change that."""

    claimed: int = 0
    leading: bool = True
    look_again_in: float | None = None


class Dispatcher:
    """``run_once`` is called again and again by a schedule; ``keep`` prolongs what is held meanwhile."""

    def __init__(
        self,
        config: QueueConfig,
        queue: Queue,
        receivers: Receivers,
        instruments: QueueInstruments,
        make_engine: Callable[[Callable[[list[Exchange]], None]], Engine],
        clock: Clock,
        on_retry: Callable[[float], None],
        breakers: Breakers,
        pausing: Pausing,
    ) -> None:
        """``on_retry`` is told in how many seconds a retry that was just stored will be due."""
        self._config = config
        self._queue = queue
        self._instruments = instruments
        self._clock = clock
        self._store_clock = StoreClock(clock)
        self._on_retry = on_retry
        self._flushing = Flushing(config.batch, queue)
        self._leading = Leading(config.name, queue, config.lock.ttl, instruments, clock, self._on_lost)
        largest_bundle = receivers.largest_bundle
        self._room = Room(config, largest_bundle)
        # Destinations that do not answer shall not take all the room here, however large their requests are.
        places = max(1, min(config.delivery.concurrency, MOST_GATHERED // largest_bundle))
        self._sender: Sender
        if largest_bundle == 1:
            self._sender = Sender(make_engine, on_ended=self._on_ended, clock=clock, places=places)
        else:
            self._sender = Coalescer(
                make_engine, on_ended=self._on_ended, clock=clock, places=places, on_opened=self._count_bundle
            )
        self._turns = Turns() if config.delivery.order_by else None
        self._holding = Holding(
            config.name,
            queue,
            breakers,
            self._sender,
            instruments,
            self._store_clock,
            self._room.under_way,
            config.batch.size,
        )
        self._acceptor = Acceptor(receivers, self._holding, self._store_clock)
        self._judge = Judge(config.name, instruments, clock, self._store_clock, self._holding.circuits)
        self._settler = Settler(config.name, queue, self._on_settled)
        self._at_rest = asyncio.Event()  # while ``run_once`` does not run
        self._at_rest.set()
        self._reported: dict[str, int] = {}
        self._stopping = False
        self._cut_off: list[Parcel] = []
        self._just_claimed: tuple[Claim, float] | None = None  # not handed over yet; until when it may be begun
        self._pausing = pausing

    def start(self) -> None:
        self._sender.start()
        self._settler.start()

    @property
    def sees_nothing_waiting(self) -> bool:
        """Whether pending was empty at the last look; while the queue is paused, nobody looks."""
        return self._flushing.sees_nothing_waiting and not self._pausing.of_queue

    @property
    def trouble(self) -> str | None:
        """Why the ends of sends cannot be stored now, or None."""
        if not self._settler.is_alive and not self._stopping:
            return "the settling of finished sends has stopped"
        return str(self._settler.trouble) if self._settler.trouble else None

    # --- claiming ----------------------------------------------------------------------------

    async def run_once(self) -> FlushReport:
        """Claim and hand over what is due, for a second at most; raises StoreError."""
        self._at_rest.clear()
        try:
            return await self._run()
        finally:
            self._hand_over()
            self._at_rest.set()

    async def _run(self) -> FlushReport:
        started = self._clock.monotonic()
        if not self._stopping and self._leading.is_to_be_prolonged:
            standby = await self._leading.take()
            if standby is not None:
                return FlushReport(leading=False, look_again_in=standby)
        await self._pausing.look()
        if self._pausing.of_queue:
            return FlushReport(look_again_in=LOOK_EVERY)
        await self._holding.look(self._pausing.destinations)
        claimed = 0
        last: Claim | None = None
        while not self._stopping:
            now = self._clock.monotonic()
            if now - started > _LONGEST_RUN:
                return FlushReport(claimed, look_again_in=0.0)
            if not self._room.left:
                self._park_excess()
                if not self._room.left:
                    await self._room.wait()
                    continue
            let_go = await self._holding.let_go()
            decision = await self._flushing.decide(last, now)
            if decision.reason is None:
                return FlushReport(claimed, look_again_in=self._or_sooner(decision.look_again_in))
            last = await self._claim(decision.reason)
            if last is None:
                self._instruments.fenced["claim"].inc()
                self._leading.lose()
                return FlushReport(claimed, leading=False, look_again_in=0.0)
            claimed += len(last.items)
            if not last.pending_left and not let_go:
                return FlushReport(claimed, look_again_in=self._or_sooner(_until_due(last)))
        return FlushReport(claimed, leading=self._leading.leads)

    def _on_lost(self) -> None:
        self._flushing.forget()
        self._holding.forget()

    def _or_sooner(self, look: float | None) -> float | None:
        """Where something that is held back may go before."""
        held = self._holding.next_look()
        return look if held is None else held if look is None else min(look, held)

    async def _claim(self, reason: FlushReason) -> Claim | None:
        delivery = self._config.delivery
        before = self._clock.monotonic()
        count = min(self._config.batch.size, self._room.left)
        claim = await self._queue.claim(
            count=count,
            # What was held back and may go now goes first: as long as there is any, fresh ones are put behind it.
            from_pending=max(count // 2, count - self._holding.coming),
            max_bytes=self._room.bytes_left,
            lease=delivery.lease,
            lock_ttl=self._config.lock.ttl,
            order_by=delivery.order_by,
        )
        if claim is None:
            return None
        self._store_clock.set(claim.at_ms / 1000)
        self._leading.prolonged(before)
        self._flushing.claimed(claim, before)
        if claim.new:
            self._instruments.enqueued.inc(claim.new)
        if not claim.items:
            return claim
        self._room.expect(claim)
        self._just_claimed = claim, before + delivery.lease - delivery.timeout
        if self._holding:
            self._hand_over()  # what comes of it has a say in the next claim
        else:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._instruments.flushes[reason].inc()
        self._instruments.batch_size.observe(len(claim.items))
        return claim

    def _hand_over(self) -> None:
        """Hand over what was claimed last. Meanwhile the next claim is on its way, where one follows at once: so the
        store works at the same time.
        """
        last, self._just_claimed = self._just_claimed, None
        if last is not None:
            self._accept(*last)

    def _accept(self, claim: Claim, not_after: float) -> None:
        """``not_after``: see ``Request``."""
        accepted = self._acceptor.accept(claim, not_after, self._pausing.destinations)
        self._room.take_in(accepted)
        self._settler.add(accepted.not_sent)
        if self._stopping:  # the claim was on its way already
            self._cut_off += accepted.parcels
            return
        parcels = accepted.parcels
        if self._turns is not None:
            put_off = [one.claimed for one in accepted.not_sent if not isinstance(one.outcome, Dead)]
            parcels, held_back = self._turns.begin(parcels, put_off)
            self._settler.add(_held(held_back))
        self._sender.send(parcels, spread=self._config.batch.spread)

    def _park_excess(self) -> None:
        """Give back what waits for slow destinations, so that others get their turn. No attempt is used."""
        self._settle(self._holding.put_off_excess())

    # --- the ends of sends -------------------------------------------------------------------

    def _on_ended(self, ended: list[Ended]) -> None:
        judged = self._judge.judge(ended, stopping=self._stopping)
        self._cut_off += judged.cut_off  # put back with the rest, in order
        self._settle(judged.settlements)
        if judged.gone:
            self._pause(judged.gone)
        if not self._stopping and self._holding:
            self._settle(self._holding.put_off_behind_opened())
            matters = self._holding.have_ended(parcel.destination for parcel, _ in ended)
            if matters and self._at_rest.is_set():
                self._on_retry(0.0)  # what has ended makes room for what waits, or tells the store of a circuit

    def _count_bundle(self, opened: Opened) -> None:
        self._instruments.bundle_size.observe(opened.size)
        if opened.again:
            self._instruments.bundle_splits.inc()
        elif opened.is_partial:
            self._instruments.bundle_partial_results.inc()

    def _pause(self, gone: Mapping[str, str]) -> None:
        """Send nothing more to these destinations; the store is told with the next run."""
        for name in self._pausing.add(gone):
            self._settle(self._holding.put_off_paused(name))
        self._on_retry(0.0)

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        """Of what was handed to the sender; those that waited behind go now, or come back later too."""
        self._settler.add(settlements)
        if self._turns is None:
            return
        following: list[Parcel] = []
        held_back: list[Parcel] = []
        for settlement in settlements:
            if isinstance(settlement.outcome, Delivered | Dead):
                after = self._turns.pass_on(settlement.claimed)
                if after is not None:
                    following.append(after)
            else:
                held_back += self._turns.stop(settlement.claimed)
        self._settler.add(_held(held_back))
        if self._stopping:
            self._cut_off += following
        else:
            self._sender.send(following)

    def _on_settled(self, settlements: Sequence[Settlement], settled: Sequence[Settled]) -> None:
        self._room.let_out(settlements)
        self._holding.stored(settlements)
        soonest = self._judge.count(settlements, settled)
        if self._turns is not None:
            soonest = 0.0  # the store may have made due what waited for its turn
        if soonest is not None:
            self._on_retry(soonest)

    # --- keeping -----------------------------------------------------------------------------

    async def keep(self) -> int:
        """Prolong the lock and the leases of all that is held; returns how many leases. Raises StoreError."""
        await self._leading.keep()
        leases = list(self._room.held)
        if not leases:
            return 0
        delivery = self._config.delivery
        before = self._clock.monotonic()
        kept = await self._queue.extend(leases, delivery.lease)
        not_after = before + delivery.lease - delivery.timeout
        for lease, ours in zip(leases, kept, strict=True):
            parcel = self._room.held.get(lease)
            if parcel is None:
                continue
            if ours:
                parcel.prolong(not_after)
            elif not parcel.lost:
                # Given to somebody else: what was not started must not start; what was cannot be settled.
                parcel.withdraw()
                self._instruments.fenced["extend"].inc()
        return sum(kept)

    async def step_down(self) -> None:
        """Leave sending to others at once, what is under way excepted; raises StoreError."""
        if self._leading.leads:
            self._leading.lose("the send lock is freed for others")
            await self._queue.free_lock()

    async def wait_for_arrival(self, seconds: float) -> bool:
        """Sleep until pending is not empty; only where this daemon leads."""
        return await self._flushing.wait_for_arrival(seconds)

    def report_in_flight(self) -> None:
        """Bring the gauges of sends under way up to date; before a scrape, not at each send."""
        now = self._sender.in_flight()
        for name in self._reported.keys() | now.keys():
            change = now.get(name, 0) - self._reported.get(name, 0)
            if change:
                self._instruments.destination(name).in_flight.inc(change)
        self._reported = now

    # --- stopping ----------------------------------------------------------------------------

    def stop_claiming(self) -> None:
        """From now on nothing new is taken or started."""
        self._stopping = True
        self._cut_off += self._sender.give_back_unstarted()
        self._room.wake()

    async def close(self, grace: float, settle_timeout: float = 5.0, *, free_lock: bool = True) -> None:
        """Let sends finish for ``grace`` seconds, put back what was not sent, free the lock where it is ours.

        Without ``free_lock`` it stays, with its TTL, for whoever goes on with the same value.
        """
        self.stop_claiming()
        await self._sender.close(grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle_timeout):
                await self._at_rest.wait()
        unsent = self._cut_off
        if self._turns is not None:
            unsent += self._turns.take_all()
        unsent.sort(key=lambda parcel: parcel.number)
        left = await self._settler.close(settle_timeout)
        led = self._leading.resign()  # before the lock is freed: ``keep`` would take it again
        try:
            async with asyncio.timeout(settle_timeout):
                await self._queue.put_back([parcel.claimed for parcel in unsent])
                if led and free_lock:
                    await self._queue.free_lock()
                await self._pausing.save()
        except (StoreError, TimeoutError) as error:
            left += len(unsent)
            log.warning("the lock may be left to expire", extra={"queue": self._config.name, "error": str(error)})
        if left:
            log.warning(
                "the store did not take the ends of some sends: their leases will run out and they will be sent again",
                extra={"queue": self._config.name, "callbacks": left},
            )


def _held(parcels: Sequence[Parcel]) -> list[Settlement]:
    return [Settlement(one.claimed, Held(), one.url, one.destination) for one in parcels]


def _until_due(claim: Claim) -> float | None:
    if claim.next_due_ms is None:
        return None
    return max(0.0, (claim.next_due_ms - claim.at_ms) / 1000)
