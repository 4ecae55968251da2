"""The daemon's parts and how they hang together: store, dispatchers, schedule, web."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from cbq_exporter import __version__
from cbq_exporter.clock import Clock
from cbq_exporter.config import Config, Loaded, QueueConfig, warnings
from cbq_exporter.daemon.arrivals import Arrivals
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.daemon.watchdog import SILENCE, watch
from cbq_exporter.delivery.egress import EgressPolicy
from cbq_exporter.delivery.engine import Engine
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.errors import CbqError
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Mode, Snapshot
from cbq_exporter.policy.stuck import StuckRule
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.dispatcher import Dispatcher
from cbq_exporter.services.lock_keeper import LockKeeper
from cbq_exporter.services.operations import Operations
from cbq_exporter.services.recoverer import Recoverer
from cbq_exporter.services.upkeep import Upkeep
from cbq_exporter.store.answers import Answers
from cbq_exporter.store.embedded import EmbeddedServer
from cbq_exporter.store.opening import Store, lock_rule_of, make_store
from cbq_exporter.store.pauses import Pauses
from cbq_exporter.store.trash import Trash
from cbq_exporter.web.api import Api
from cbq_exporter.web.app import create_app
from cbq_exporter.web.server import WebServer

log = logging.getLogger(__name__)

_PROBE_EVERY = 5.0  # seconds
_UPKEEP_EVERY = 60.0
_LOOKS_MISSED = 3  # so many looks at the lock in a row may be left out before what was seen is forgotten
_LONGEST_FLUSH_SLEEP = 10.0  # seconds: should an arrival be missed, it is seen after this
_PROBE = "probe"
_EXAMPLE_URL = "http://127.0.0.1:8000/"


class Application:
    """Also what the web server asks: see ``web.app.Backend``."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self.config: Config = loaded.config
        self._source = loaded.source
        self._clock = clock
        self.instruments = Instruments([queue.name for queue in self.config.queues])
        self.instruments.config_reloaded(True, clock.now())
        self._schedule = Schedule(self.instruments, clock)
        self._embedded: EmbeddedServer | None = None
        self._store: Store | None = None
        self._web: WebServer | None = None
        self._dispatchers: dict[str, Dispatcher] = {}
        self._background: list[asyncio.Task[None]] = []
        self._started = self._stopping = False

    # --- what the web server asks ------------------------------------------------------------

    async def snapshot(self, timeout: float) -> Snapshot:
        for dispatcher in self._dispatchers.values():
            dispatcher.report_in_flight()
        assert self._store is not None
        return await self._store.reader.snapshot(timeout)

    def not_ready(self) -> list[str]:
        """Why this daemon can not do its work now; empty where it can."""
        if self._stopping:
            return ["stopping"]
        if not self._started:
            return ["starting"]
        reasons = self.not_healthy()
        trouble = self._schedule.trouble(_PROBE)
        if trouble is not None:
            return [*reasons, trouble]
        for queue in self.config.queues:
            for task in _tasks_of(queue):
                trouble = self._schedule.trouble(task)
                if trouble is not None:
                    reasons.append(f"queue {queue.name}: {trouble}")
                    break
            else:
                dispatcher = self._dispatchers.get(queue.name)
                if dispatcher is not None and dispatcher.trouble is not None:
                    reasons.append(f"queue {queue.name}: {dispatcher.trouble}")
        return reasons

    def not_healthy(self) -> list[str]:
        """What only a new start of the process would mend; empty where all loops are alive."""
        if not self._started or self._stopping:
            return []
        reasons = []
        if self._schedule.silent_for > SILENCE:
            reasons.append(f"the scheduler has run nothing for {self._schedule.silent_for:.0f} s")
        reasons += [f"{task.get_name()} has ended" for task in self._background if task.done()]
        return reasons

    # --- start -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises CbqError where the daemon cannot begin its work; a Redis that is down is waited for."""
        for warning in warnings(self.config):
            log.warning(warning)
        if self.config.redis.url is None:
            self._embedded = EmbeddedServer(self.config.data_dir)
            url = await self._embedded.start()
            self._spawn("the embedded store's watch", self._embedded.watch())
        else:
            url = self.config.redis.url.get_secret_value()
        self._store = make_store(
            self.config, url, lock_value=_lock_value(self._clock), on_error=self.instruments.redis_error
        )
        self._web = WebServer(create_app(self, self._api(self._store)), self.config.web.host, self.config.web.port)
        await self._web.start()
        self._schedule.every(_PROBE, _PROBE_EVERY, self._store.reader.probe)
        for queue in self.config.queues:
            self._prepare(queue, self._store)
        self._schedule.start()
        self._spawn("the scheduler's watchdog", watch(self._schedule))
        self._started = True
        log.info(
            "started",
            extra={
                "version": __version__,
                "config": str(self._source or "defaults"),
                "store": self._store.shown_as,
                "web": self._web.url,
                "queues": ",".join(f"{queue.name}:{queue.mode}" for queue in self.config.queues),
            },
        )

    def _api(self, store: Store) -> Api:
        operations = Operations(self.config, store, Audit(store, count=self.instruments.operation_ended))
        answers = {name: Answers(store.connections, queue.keys) for name, queue in store.queues.items()}
        return Api(self.config, operations, answers)

    def _prepare(self, config: QueueConfig, store: Store) -> None:
        name = config.name
        queue, instruments = store.queues[name], self.instruments.queue(name)
        if config.mode is Mode.OBSERVE:
            return
        dispatcher: Dispatcher | None = None
        if config.mode is Mode.DISPATCH:
            flush_task = _flush(name)
            wake = partial(self._schedule.wake, flush_task)
            dispatcher = Dispatcher(
                config,
                queue,
                instruments,
                self._engine_maker(config),
                self._clock,
                on_retry=wake,
                pauses=Pauses(store.connections, queue.keys),
            )
            dispatcher.start()
            self._dispatchers[name] = dispatcher
            arrivals = Arrivals(dispatcher, wake)
            self._spawn(f"waiting for arrivals in {name}", arrivals.run())
            self._schedule.again(
                flush_task, partial(_flush_once, dispatcher, arrivals), longest_sleep=_LONGEST_FLUSH_SLEEP
            )
            keep_every = min(config.lock.ttl, config.delivery.lease) / 3
            self._schedule.every(_keep(name), keep_every, dispatcher.keep)
        healing = store.healing[name]
        audit = Audit(store, count=self.instruments.operation_ended)
        check_every, stale, recovery = config.lock.check_every, config.lock.stale, config.recovery
        lock_keeper = LockKeeper(
            name,
            healing,
            instruments,
            audit,
            rule=lock_rule_of(config),
            auto=stale.auto,
            forget_after=stale.no_ttl_after + _LOOKS_MISSED * check_every,
        )
        self._schedule.every(_check_lock(name), check_every, lock_keeper.run_once)
        recoverer = Recoverer(
            name,
            queue,
            healing,
            instruments,
            audit,
            rule=StuckRule(recovery.auto, recovery.stuck_after, recovery.max_recoveries),
            every=recovery.every,
        )
        self._schedule.every(_recover(name), recovery.every, _recover_once(recoverer, dispatcher))
        upkeep = Upkeep(
            name,
            queue,
            Trash(store.connections, queue.keys),
            audit,
            dead_max_count=config.dead.max_count,
            dead_max_age=config.dead.max_age,
        )
        self._schedule.every(_upkeep(name), _UPKEEP_EVERY, upkeep.run_once)

    def _engine_maker(self, config: QueueConfig) -> Callable[[Callable[[list[Exchange]], None]], Engine]:
        delivery = config.delivery
        loop = asyncio.get_running_loop()

        def make(on_done: Callable[[list[Exchange]], None]) -> Engine:
            return Engine(
                egress=EgressPolicy(tuple(delivery.egress.allow)),
                on_done=on_done,
                loop=loop,
                clock=self._clock,
                max_response_bytes=delivery.max_response_bytes,
                ca_file=str(delivery.ca_file) if delivery.ca_file else None,
                user_agent=delivery.user_agent or f"cbq-exporter/{__version__}",
                max_connections=delivery.concurrency,
            )

        return make

    def _spawn(self, name: str, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("a loop of the daemon has ended", extra={"loop": name})

        self._background.append(asyncio.create_task(run(), name=name))

    def welcome(self) -> list[str]:
        """The three lines a newcomer needs."""
        assert self._web is not None
        assert self._store is not None
        program = "cbq-exporter" if sys.argv[0].endswith("cbq-exporter") else "python -m cbq_exporter"
        if sys.prefix != sys.base_prefix and program == "cbq-exporter":
            program = sys.argv[0]
        queues = ", ".join(f"{queue.name} ({queue.mode})" for queue in self.config.queues)
        option = f" -c {self._source}" if self._source and self._source.name != "config.yaml" else ""
        one = f" -q {self.config.queues[0].name}" if len(self.config.queues) > 1 else ""
        return [
            f"cbq-exporter {__version__} serves {queues}; store: {self._store.shown_as}",
            f"Metrics: {self._web.url}/metrics",
            f"Enqueue one callback: {program} enqueue{option}{one} --url {_EXAMPLE_URL} --data '{{\"hello\": 1}}'",
        ]

    # --- stop --------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Finish what is in flight, put back the rest, and close everything in the order of need."""
        self._stopping = True
        for dispatcher in self._dispatchers.values():
            dispatcher.stop_claiming()
        grace = self.config.shutdown.grace
        results = await asyncio.gather(
            *(dispatcher.close(grace) for dispatcher in self._dispatchers.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                log.error("a queue could not be closed in order", exc_info=result)
        await self._schedule.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._web is not None:
            await self._web.stop()
        if self._store is not None:
            await self._store.close()
        if self._embedded is not None:
            with contextlib.suppress(CbqError):
                await self._embedded.stop()

    def abandon(self) -> None:
        """Before an exit without a stop: leave no server behind."""
        if self._embedded is not None and self._embedded.pid is not None:
            os.kill(self._embedded.pid, signal.SIGTERM)


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


def _flush(queue: str) -> str:
    return f"flush:{queue}"


def _keep(queue: str) -> str:
    return f"keep:{queue}"


def _recover(queue: str) -> str:
    return f"recover:{queue}"


def _check_lock(queue: str) -> str:
    return f"check-lock:{queue}"


def _upkeep(queue: str) -> str:
    return f"upkeep:{queue}"


def _tasks_of(queue: QueueConfig) -> list[str]:
    """The scheduled tasks of a queue, the telling ones first."""
    if queue.mode is Mode.OBSERVE:
        return []
    tasks = [_flush(queue.name), _keep(queue.name)] if queue.mode is Mode.DISPATCH else []
    return [*tasks, _check_lock(queue.name), _recover(queue.name), _upkeep(queue.name)]


def _lock_value(clock: Clock) -> str:
    """One of this daemon's family, and no other's: its start, its host, and chance."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-.")[:60]
    return f"cbq-exporter_{int(clock.now())}_{host}_{secrets.token_hex(8)}"
