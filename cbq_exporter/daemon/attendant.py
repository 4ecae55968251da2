"""What works on one queue: made, started and closed as one, beside the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cbq_exporter import __version__
from cbq_exporter.clock import Clock
from cbq_exporter.config import DestinationConfig, QueueConfig
from cbq_exporter.config.files import Files
from cbq_exporter.daemon.arrivals import Arrivals
from cbq_exporter.daemon.loops import Loops
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.delivery.egress import policy_of
from cbq_exporter.delivery.engine import Engine
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.proxying import Proxy, proxy_of
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.errors import StoreError
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Actor, Mode, OperationName, Result
from cbq_exporter.policy.stuck import StuckRule
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.dispatcher import Dispatcher
from cbq_exporter.services.lock_keeper import LockKeeper
from cbq_exporter.services.operations import Operations
from cbq_exporter.services.pausing import Pausing
from cbq_exporter.services.recoverer import Recoverer
from cbq_exporter.services.upkeep import Upkeep
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.opening import Store, lock_rule_of
from cbq_exporter.store.pauses import Pauses
from cbq_exporter.store.schema import Schema
from cbq_exporter.store.sweeping import Sweeper
from cbq_exporter.store.trash import Trash

log = logging.getLogger(__name__)

_UPKEEP_EVERY = 60.0  # seconds
_LOOKS_MISSED = 3  # so many looks at the lock in a row may be left out before what was seen is forgotten
_LONGEST_FLUSH_SLEEP = 10.0  # seconds: should an arrival be missed, it is seen after this


class Attendant:
    """Nothing of the queue is touched before ``start``; for a queue that is only observed it never is."""

    def __init__(
        self,
        config: QueueConfig,
        destinations: Sequence[DestinationConfig],
        store: Store,
        instruments: QueueInstruments,
        audit: Audit,
        operations: Operations,
        schedule: Schedule,
        clock: Clock,
        idle_connections: int,
    ) -> None:
        """``idle_connections``: how many there is room for, of those that the configuration allows."""
        self.config = config
        self._store = store
        self._instruments = instruments
        self._audit = audit
        self._schedule = schedule
        self._loops = Loops()
        self._schema = Schema(store.connections, store.queues[config.name].keys)
        self.tasks: list[str] = []  # what is scheduled, by name, the telling ones first
        self._closing: asyncio.Task[None] | None = None
        self._dispatcher: Dispatcher | None = None
        self._files = Files()
        if config.mode is Mode.DISPATCH:
            self._dispatcher = Dispatcher(
                config,
                store.queues[config.name],
                Receivers(config, destinations, files=self._files, clock=clock),
                instruments,
                _engine_maker(config, proxy_of(config, self._files), clock, idle_connections),
                clock,
                on_retry=self._wake,
                breakers=Breakers(
                    store.connections, store.queues[config.name].keys, lock_value=store.queues[config.name].lock_value
                ),
                pausing=Pausing(
                    config.name, Pauses(store.connections, store.queues[config.name].keys), operations, clock
                ),
            )

    @property
    def name(self) -> str:
        return self.config.name

    def start(self) -> None:
        dispatches = self._dispatcher is not None
        self._instruments.batch_wait.set(self.config.batch.longest_wait if dispatches else None)
        if self.config.mode is Mode.OBSERVE:
            return
        if self._dispatcher is not None:
            self._start_dispatching(self._dispatcher)
        self._start_healing()

    async def decline(self) -> None:
        """Instead of ``start``: free the send lock, should a predecessor have left it to this one."""
        if self.config.mode is Mode.DISPATCH:
            with contextlib.suppress(StoreError):  # then it expires
                await self._store.queues[self.name].free_lock()

    def trouble(self) -> str | None:
        """Why the queue is not attended to as it should be now, or None."""
        for task in self.tasks:
            trouble = self._schedule.trouble(task)
            if trouble is not None:
                return trouble
        return None if self._dispatcher is None else self._dispatcher.trouble

    def ended_loops(self) -> list[str]:
        return self._loops.ended()

    def files_have_changed(self) -> bool:
        """Whether a template or a secret of the queue holds something else than when this was made."""
        return self._files.have_changed()

    def report_in_flight(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.report_in_flight()

    async def note_reload(self, actor: Actor, what: Mapping[str, Any]) -> None:
        """In the audit; where the store cannot take it, only the log has it."""
        if self.config.mode is Mode.OBSERVE:
            return
        try:
            await self._audit.record(self.name, actor, OperationName.RELOAD, after=what, result=Result.DONE)
        except StoreError as error:
            log.warning("a reload is not in the audit", extra={"queue": self.name, "error": str(error)})

    # --- start -------------------------------------------------------------------------------

    def _start_dispatching(self, dispatcher: Dispatcher) -> None:
        config = self.config
        dispatcher.start()
        arrivals = Arrivals(dispatcher, self._wake)
        self._loops.add(f"waiting for arrivals in {config.name}", arrivals.run())
        self._again("flush", partial(_flush_once, dispatcher, arrivals))
        every = min(config.lock.ttl, config.delivery.lease) / 3
        self._every("keep", every, self._schema.before(dispatcher.keep, or_else=dispatcher.step_down))

    def _start_healing(self) -> None:
        config, store = self.config, self._store
        queue, healing = store.queues[config.name], store.healing[config.name]
        check_every, stale, recovery = config.lock.check_every, config.lock.stale, config.recovery
        lock_keeper = LockKeeper(
            config.name,
            healing.lock,
            self._instruments,
            self._audit,
            rule=lock_rule_of(config),
            auto=stale.auto,
            forget_after=stale.no_ttl_after + _LOOKS_MISSED * check_every,
        )

        async def check_lock() -> object:
            await self._schema.look_again()
            return await lock_keeper.run_once()

        self._every("check-lock", check_every, check_lock)
        recoverer = Recoverer(
            config.name,
            healing,
            self._instruments,
            self._audit,
            rule=StuckRule(recovery.auto, recovery.stuck_after, recovery.max_recoveries),
            every=recovery.every,
        )
        self._every("recover", recovery.every, self._schema.before(_recover_once(recoverer, self._dispatcher)))
        upkeep = Upkeep(
            config.name,
            queue,
            Sweeper(store.connections, queue.keys),
            Trash(store.connections, queue.keys),
            self._audit,
            dead_max_count=config.dead.max_count,
            dead_max_age=config.dead.max_age,
        )
        self._every("upkeep", _UPKEEP_EVERY, self._schema.before(upkeep.run_once))

    def _again(self, job: str, action: Callable[[], Awaitable[float | None]]) -> None:
        self._schedule.again(self._named(job), self._schema.before(action), longest_sleep=_LONGEST_FLUSH_SLEEP)
        self.tasks.append(self._named(job))

    def _every(self, job: str, seconds: float, action: Callable[[], Awaitable[object]]) -> None:
        self._schedule.every(self._named(job), seconds, action)
        self.tasks.append(self._named(job))

    def _wake(self, delay: float = 0.0) -> None:
        self._schedule.wake(self._named("flush"), delay)

    def _named(self, job: str) -> str:
        return f"{job}:{self.config.name}"

    # --- stop --------------------------------------------------------------------------------

    def stop_claiming(self) -> None:
        """From now on no callback is taken."""
        if self._dispatcher is not None:
            self._dispatcher.stop_claiming()

    async def close(self, grace: float, *, hand_over: bool = False) -> None:
        """Finish what is in flight, for ``grace`` seconds, put back the rest, and end all that is scheduled.

        With ``hand_over`` the send lock is left to a successor in this daemon. Whoever comes second waits with the
        first.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(grace, hand_over), name=f"closing {self.config.name}")
        await asyncio.shield(self._closing)

    async def _close(self, grace: float, hand_over: bool) -> None:
        try:
            if self._dispatcher is not None:
                # First, because what is in flight meanwhile is kept by what is scheduled.
                await self._dispatcher.close(grace, free_lock=not hand_over)
                self._dispatcher.report_in_flight()
        finally:
            await self._schedule.remove(*self.tasks)
            await self._loops.stop()


async def _flush_once(dispatcher: Dispatcher, arrivals: Arrivals) -> float | None:
    arrivals.expect(False)
    report = await dispatcher.run_once()
    # With a retry due later, an arrival may still come first.
    idle = report.leading and dispatcher.sees_nothing_waiting
    arrivals.expect(idle)
    return report.look_again_in


def _recover_once(recoverer: Recoverer, dispatcher: Dispatcher | None) -> Callable[[], Awaitable[object]]:
    async def run() -> object:
        if dispatcher is not None:
            await dispatcher.keep()  # after an outage: what is still in flight here is not stuck
        return await recoverer.run_once()

    return run


def _engine_maker(
    config: QueueConfig, proxy: Proxy | None, clock: Clock, idle_connections: int
) -> Callable[[Callable[[list[Exchange]], None]], Engine]:
    delivery = config.delivery
    if idle_connections < delivery.idle_connections:
        log.info(
            "the limit of open files leaves room for fewer idle connections than configured",
            extra={"queue": config.name, "room": idle_connections, "configured": delivery.idle_connections},
        )
    loop = asyncio.get_running_loop()

    def make(on_done: Callable[[list[Exchange]], None]) -> Engine:
        return Engine(
            egress=policy_of(delivery.egress),
            on_done=on_done,
            loop=loop,
            clock=clock,
            max_response_bytes=delivery.max_response_bytes,
            ca_file=str(delivery.ca_file) if delivery.ca_file else None,
            user_agent=delivery.user_agent or f"cbq-exporter/{__version__}",
            max_connections=delivery.concurrency,
            idle_connections=idle_connections,
            own_process=delivery.own_process,
            proxy=proxy,
        )

    return make
