"""Takes batches from one queue and sends them: the only one that claims, and only while it holds the lock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.clock import Clock
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
    Waiting,
)
from cbq_exporter.policy import flush
from cbq_exporter.services.accepting import Acceptor
from cbq_exporter.services.holding import Holding
from cbq_exporter.services.judging import Judge
from cbq_exporter.services.pausing import LOOK_EVERY, Pausing
from cbq_exporter.services.settler import Settler
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.queue import Queue

log = logging.getLogger(__name__)

_LONGEST_RUN = 1.0  # seconds; a backlog is drained in many runs, so that the schedule sees them end
_STANDBY_LOOK = 1.0  # seconds: how often a standby looks at the lock at least
_LOOK_FOR_ROOM = 0.05  # seconds: who does not answer makes room for others within this
_SHORTEST_LOOK = 0.02  # seconds: while callbacks wait for their batch to fill
_LONGEST_LOOK = 1.0
_MOST_FOLLOWING = 1000  # callbacks that wait behind those under way; two batches at least
_MOST_GATHERED = 10_000  # callbacks held for requests that carry several


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What one run did. ``look_again_in`` is seconds; None: nothing waits, only an arrival can change that."""

    claimed: int = 0
    leading: bool = True
    look_again_in: float | None = None


class _JustClaimed:
    """What was claimed and not handed over yet. ``not_after``: see ``Request``."""

    def __init__(self, claim: Claim, not_after: float) -> None:
        self.claim = claim
        self.not_after = not_after
        self.size = 2 * sum(len(one.payload) for one in claim.items)  # bytes: as they are, and as bodies


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
        self._on_retry = on_retry
        batch = config.batch
        self._flush_rule = flush.FlushRule(
            batch.size,
            batch.max_delay,
            batch.min_interval,
            batch.early.size if batch.early else None,
            batch.early.delay if batch.early else 0.0,
        )
        self._most_in_one = receivers.largest_bundle
        # Destinations that do not answer shall not take all the room here, however large their requests are.
        places = max(1, min(config.delivery.concurrency, _MOST_GATHERED // self._most_in_one))
        self._sender: Sender
        if self._most_in_one == 1:
            self._sender = Sender(make_engine, on_ended=self._on_ended, clock=clock, places=places)
        else:
            self._sender = Coalescer(
                make_engine, on_ended=self._on_ended, clock=clock, places=places, on_opened=self._count_bundle
            )
        self._turns = Turns() if config.delivery.order_by else None
        self._holding = Holding(
            config.name, queue, breakers, self._sender, instruments, clock, self._under_way, batch.size
        )
        self._acceptor = Acceptor(receivers, self._holding, clock)
        self._judge = Judge(config.name, instruments, clock, self._holding.circuits)
        self._settler = Settler(config.name, queue, self._on_settled)
        self._held: dict[str, Parcel | None] = {}  # by lease, until it is settled; None: nothing is sent for it
        self._held_bytes = 0
        self._room_made = asyncio.Event()
        self._at_rest = asyncio.Event()  # while ``run_once`` does not run
        self._at_rest.set()
        self._reported: dict[str, int] = {}
        self._stopping = False
        self._cut_off: list[Parcel] = []
        self._lock_until = 0.0  # monotonic: the lock is ours at least until then, if nobody takes it away
        self._leading = False
        self._last_batch = float("-inf")  # monotonic
        self._just_claimed: _JustClaimed | None = None
        self._arrived = False  # something is there, as far as we know: claiming finds out cheapest
        self._waiting_since: float | None = None  # monotonic: since when callbacks are seen waiting
        self._pausing = pausing

    def start(self) -> None:
        self._sender.start()
        self._settler.start()

    @property
    def leading(self) -> bool:
        return self._leading

    @property
    def held(self) -> int:
        """Callbacks claimed and not settled."""
        return len(self._held)

    @property
    def sees_nothing_waiting(self) -> bool:
        """Whether pending was empty at the last look; while the queue is paused, nobody looks."""
        return self._waiting_since is None and not self._pausing.of_queue

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
        if not self._stopping and self._lock_until - started < self._config.lock.ttl / 3:
            standby = await self._take_lock()
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
            if not self._room:
                self._park_excess()
                if not self._room:
                    await self._wait_for_room()
                    continue
            let_go = await self._holding.let_go()
            decision = await self._decide(last, now)
            if decision.reason is None:
                return FlushReport(claimed, look_again_in=self._or_sooner(self._next_look(decision)))
            last = await self._claim(decision.reason)
            if last is None:
                self._instruments.fenced["claim"].inc()
                self._lose_lock()
                return FlushReport(claimed, leading=False, look_again_in=0.0)
            claimed += len(last.items)
            if not last.pending_left and not let_go:
                return FlushReport(claimed, look_again_in=self._or_sooner(_until_due(last)))
        return FlushReport(claimed, leading=self._leading)

    async def _take_lock(self) -> float | None:
        """None where the lock is ours now; else the seconds until it is worth looking again."""
        before = self._clock.monotonic()
        state = await self._queue.keep_lock(self._config.lock.ttl)
        if state.ours:
            self._lock_until = before + self._config.lock.ttl
            if not self._leading:
                self._leading = True
                self._instruments.leader.set(1)
                log.info("dispatching: the send lock is ours", extra={"queue": self._config.name})
            return None
        self._lose_lock()
        return _STANDBY_LOOK if state.ttl is None else min(_STANDBY_LOOK, state.ttl + 0.01)

    def _lose_lock(self) -> None:
        self._lock_until = 0.0
        self._waiting_since = None
        self._holding.forget()
        if self._leading:
            self._leading = False
            self._instruments.leader.set(0)
            log.warning("standing by: the send lock is somebody else's", extra={"queue": self._config.name})

    async def _decide(self, last: Claim | None, now: float) -> flush.FlushDecision:
        rule = self._flush_rule
        since_last_batch = now - self._last_batch
        if last is not None and last.pending_left >= rule.size:
            waiting = Waiting(0.0, last.pending_left, None, None, None)
        elif (last is not None or self._arrived) and rule.max_delay <= 0 and rule.min_interval <= since_last_batch:
            # What is there goes at once: the claim itself finds out whether there is anything.
            return flush.FlushDecision(FlushReason.AGE)
        else:
            waiting = await self._queue.waiting(rule.early_size)
        if not waiting.pending:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        seen_for = 0.0 if self._waiting_since is None else now - self._waiting_since
        return flush.decide(waiting, rule, seen_for=seen_for, since_last_batch=since_last_batch)

    def _next_look(self, decision: flush.FlushDecision) -> float | None:
        """Arrivals are seen only while pending is empty: until then the batch may fill up unseen."""
        if decision.look_again_in is None or self._waiting_since is None:
            return decision.look_again_in
        look = min(max(self._flush_rule.max_delay / 20, _SHORTEST_LOOK), _LONGEST_LOOK)
        return min(decision.look_again_in, look)

    def _or_sooner(self, look: float | None) -> float | None:
        """Where something that is held back may go before."""
        held = self._holding.next_look()
        return look if held is None else held if look is None else min(look, held)

    async def _claim(self, reason: FlushReason) -> Claim | None:
        delivery = self._config.delivery
        before = self._clock.monotonic()
        count = min(self._flush_rule.size, self._room)
        claim = await self._queue.claim(
            count=count,
            # What was held back and may go now goes first: as long as there is any, fresh ones are put behind it.
            from_pending=max(count // 2, count - self._holding.coming),
            # Each payload is held as it is and as a body.
            max_bytes=max(1, (delivery.max_in_flight_bytes - self._held_bytes) // 2),
            lease=delivery.lease,
            lock_ttl=self._config.lock.ttl,
            order_by=delivery.order_by,
        )
        if claim is None:
            return None
        self._lock_until = before + self._config.lock.ttl
        self._last_batch = before
        self._arrived = False
        self._waiting_since = before if claim.pending_left else None
        if claim.new:
            self._instruments.enqueued.inc(claim.new)
        if not claim.items:
            return claim
        self._just_claimed = _JustClaimed(claim, before + delivery.lease - delivery.timeout)
        self._held_bytes += self._just_claimed.size
        if self._holding:
            self._hand_over()  # what comes of it has a say in the next claim
        else:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._instruments.flushes[reason].inc()
        self._instruments.batch_size.observe(len(claim.items))
        return claim

    @property
    def _window(self) -> int:
        """How many may be held: those that are sent, and batches that wait, are being claimed or being settled.
        Where they are too few, a fast receiver's connections stand idle meanwhile. With 64 of them and batches of 200,
        two make 31 thousand a second, three 42 and four 43, measured.
        """
        requests, batch = self._config.delivery.concurrency, self._flush_rule.size
        following = max(2 * batch, min(4 * batch, _MOST_FOLLOWING))
        return max(requests, min(requests * self._most_in_one, _MOST_GATHERED)) + following

    @property
    def _room(self) -> int:
        if self._held_bytes >= self._config.delivery.max_in_flight_bytes:
            return 0
        just_claimed = 0 if self._just_claimed is None else len(self._just_claimed.claim.items)
        room = self._window - len(self._held) - just_claimed
        # Small claims cost as much as large ones: wait until a whole batch fits.
        return room if room >= min(self._flush_rule.size, self._window // 2) else 0

    async def _wait_for_room(self) -> None:
        self._room_made.clear()
        try:
            async with asyncio.timeout(_LOOK_FOR_ROOM):
                await self._room_made.wait()
        except TimeoutError:
            return

    def _hand_over(self) -> None:
        """Hand over what was claimed last. Meanwhile the next claim is on its way, where one follows at once: so the
        store works at the same time.
        """
        last, self._just_claimed = self._just_claimed, None
        if last is not None:
            self._held_bytes -= last.size
            self._accept(last.claim, last.not_after)

    def _accept(self, claim: Claim, not_after: float) -> None:
        accepted = self._acceptor.accept(claim, not_after, self._pausing.destinations)
        self._held.update([(one.claimed.lease, one) for one in accepted.parcels])
        self._held_bytes += sum([one.size for one in accepted.parcels])
        for settlement in accepted.not_sent:
            self._held[settlement.claimed.lease] = None
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

    def _under_way(self) -> Counter[str]:
        """The callbacks that are on their way, by destination."""
        return Counter(parcel.destination for parcel in self._held.values() if parcel is not None)

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
        parcels = [self._held.pop(one.claimed.lease, None) for one in settlements]
        self._held_bytes -= sum([one.size for one in parcels if one is not None])
        self._holding.stored(settlements)
        soonest = self._judge.count(settlements, settled)
        if self._turns is not None:
            soonest = 0.0  # the store may have made due what waited for its turn
        if soonest is not None:
            self._on_retry(soonest)
        self._room_made.set()

    # --- keeping -----------------------------------------------------------------------------

    async def keep(self) -> int:
        """Prolong the lock and the leases of all that is held; returns how many leases. Raises StoreError."""
        if self._leading:
            if self._clock.monotonic() >= self._lock_until:
                self._lose_lock()
            await self._take_lock()
        leases = list(self._held)
        if not leases:
            return 0
        delivery = self._config.delivery
        before = self._clock.monotonic()
        kept = await self._queue.extend(leases, delivery.lease)
        not_after = before + delivery.lease - delivery.timeout
        for lease, ours in zip(leases, kept, strict=True):
            parcel = self._held.get(lease)
            if parcel is None:
                continue
            if ours:
                parcel.prolong(not_after)
            elif not parcel.lost:
                # Given to somebody else: what was not started must not start; what was cannot be settled.
                parcel.withdraw()
                self._instruments.fenced["extend"].inc()
        return sum(kept)

    async def wait_for_arrival(self, seconds: float) -> bool:
        """Sleep until pending is not empty; only where this daemon leads."""
        self._arrived = await self._queue.wait_for_arrival(seconds)
        return self._arrived

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
        self._room_made.set()

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
        leading, self._leading = self._leading, False  # before the lock is freed: ``keep`` would take it again
        try:
            async with asyncio.timeout(settle_timeout):
                await self._queue.put_back([parcel.claimed for parcel in unsent])
                if leading and free_lock:
                    await self._queue.free_lock()
                await self._pausing.save()
        except (StoreError, TimeoutError) as error:
            left += len(unsent)
            log.warning("the lock may be left to expire", extra={"queue": self._config.name, "error": str(error)})
        self._instruments.leader.set(0)
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
