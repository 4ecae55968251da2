"""The daemon's parts and how they hang together: store, an attendant for each queue, schedule, web."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable

from cbq_exporter import __version__
from cbq_exporter.clock import Clock
from cbq_exporter.config import Config, Loaded, QueueConfig, container, warnings
from cbq_exporter.config.changes import Changes
from cbq_exporter.daemon import open_files
from cbq_exporter.daemon.alerting import Alerting
from cbq_exporter.daemon.attendant import Attendant
from cbq_exporter.daemon.attendants import Attendants
from cbq_exporter.daemon.loops import Loops
from cbq_exporter.daemon.reloading import Reloader
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.daemon.watchdog import SILENCE, watch
from cbq_exporter.errors import CbqError, ConfigError, StoreError
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Actor, Mode, Snapshot
from cbq_exporter.revision import revision
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.measurer import MEASURE_EVERY, Measurer
from cbq_exporter.services.operations import Operations
from cbq_exporter.store.answers import Answers
from cbq_exporter.store.embedded import EmbeddedServer
from cbq_exporter.store.opening import Store, make_store
from cbq_exporter.store.schema import Schema
from cbq_exporter.web.api import Api
from cbq_exporter.web.app import create_app
from cbq_exporter.web.reload import ReloadRoute
from cbq_exporter.web.server import WebServer
from cbq_exporter.web.tls import check_web_config

log = logging.getLogger(__name__)

_PROBE_EVERY = 5.0  # seconds
_PROBE = "probe"
_EXAMPLE_URL = "http://127.0.0.1:8000/"


class Application:
    """Also what the web server asks: see ``web.app.Backend``."""

    def __init__(self, loaded: Loaded, clock: Clock, on_config: Callable[[Config], None] | None = None) -> None:
        """``on_config`` is told each configuration that takes the place of the first one."""
        self.config: Config = loaded.config
        self._source = loaded.source
        self._clock = clock
        self.instruments = Instruments(
            [queue.name for queue in self.config.queues],
            max_destinations=self.config.metrics.destination_series_limit,
            revision=revision(),
        )
        self._on_config = on_config
        self._schedule = Schedule(self.instruments, clock)
        self._reloader = Reloader(
            loaded.source, lambda: self.config, self._take_over, self.instruments, clock, self._other_files
        )
        self._embedded: EmbeddedServer | None = None
        self._store: Store | None = None
        self._api: Api | None = None
        self._alerting: Alerting | None = None
        self._web: WebServer | None = None
        self._attendants = Attendants(self.instruments)
        self._loops = Loops()
        self._open_files = 0  # as many as there may be
        self._started = self._stopping = False

    # --- what the web server asks ------------------------------------------------------------

    async def snapshot(self, timeout: float) -> Snapshot:
        """What the store holds, read within ``timeout`` seconds; never raises for a store that cannot be used."""
        for attendant in self._attendants:
            attendant.report_in_flight()
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
        unreadable = {} if self._store is None else self._store.reader.errors
        for attendant in self._attendants:
            trouble = unreadable.get(attendant.name) or attendant.trouble()
            if trouble is not None:
                reasons.append(f"queue {attendant.name}: {trouble}")
        return reasons

    def not_healthy(self) -> list[str]:
        """What only a new start of the process would mend; empty where all loops are alive."""
        if not self._started or self._stopping:
            return []
        reasons = []
        if self._schedule.silent_for > SILENCE:
            reasons.append(f"the scheduler has run nothing for {self._schedule.silent_for:.0f} s")
        ended = self._loops.ended()
        for attendant in self._attendants:
            ended += attendant.ended_loops()
        return reasons + [f"{name} has ended" for name in ended]

    # --- start -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises CbqError where the daemon cannot begin its work; a Redis that is down is waited for."""
        self._open_files = open_files.raise_limit()
        for warning in (*warnings(self.config), *check_web_config(self.config)):
            log.warning(warning)
        if self.config.redis.url is None:
            self._embedded = EmbeddedServer(self.config.data_dir)
            url = await self._embedded.start()
            self._loops.add("the embedded store's watch", self._embedded.watch())
        else:
            url = self.config.redis.url.get_secret_value()
        self._store = make_store(
            self.config, url, lock_value=_lock_value(self._clock), on_error=self.instruments.redis_error
        )
        await _refuse_newer(self._store)
        web = self.config.web
        operations = self._operations(self.config, self._store)
        self._api = Api(self.config, operations, _answers(self._store))
        self._alerting = Alerting(self.config, self._store, operations, self.instruments, self._schedule, self._clock)
        reload = ReloadRoute(self._api, self._reloader.reload)
        self._alerting.start()
        app = create_app(self, self._api, self._alerting.webhook, reload)
        self._web = WebServer(app, web.host, web.port, config_file=web.config_file)
        await self._web.start()
        if container.inside(os.environ) and (hint := container.hint(web)) is not None:
            log.info(hint)
        self._schedule.every(_PROBE, _PROBE_EVERY, self._store.reader.probe)
        self._schedule.every("measure", MEASURE_EVERY, Measurer(self._store.reader).run_once)
        self._attendants.start(
            [self._attendant(queue, self.config, self._store, operations) for queue in self.config.queues]
        )
        self._schedule.start()
        self._loops.add("the scheduler's watchdog", watch(self._schedule))
        self._loops.add("reloading", self._reloader.run())
        self._started = True
        _let_go_of_garbage()
        log.info(
            "started",
            extra={
                "version": __version__,
                "revision": revision(),
                "config": str(self._source or "defaults"),
                "store": self._store.shown_as,
                "web": self._web.url,
                "queues": ",".join(f"{queue.name}:{queue.mode}" for queue in self.config.queues),
            },
        )

    def _operations(self, config: Config, store: Store) -> Operations:
        return Operations(config, store, self._audit(store))

    def _audit(self, store: Store) -> Audit:
        return Audit(store, count=self.instruments.operation_ended)

    def _attendant(self, queue: QueueConfig, config: Config, store: Store, operations: Operations) -> Attendant:
        """``operations`` are of all queues: with some of its own for each, their number would count squared."""
        instruments = self.instruments.queue(queue.name)
        if queue.mode is Mode.DISPATCH:
            for known in config.destinations:  # at zero, so that the first failure is an increase
                instruments.destination(known.name)
        try:
            return Attendant(
                queue,
                config.destinations,
                store,
                instruments,
                self._audit(store),
                operations,
                self._schedule,
                self._clock,
                open_files.idle_connections(queue, config, self._open_files),
            )
        except ConfigError as error:
            raise error.read_from(self._source or "defaults") from error

    def summary(self) -> str:
        """What it does, in one line."""
        assert self._store is not None
        queues = ", ".join(f"{queue.name} ({queue.mode})" for queue in self.config.queues)
        return f"serves {queues}; store: {self._store.shown_as}"

    def welcome(self) -> list[str]:
        """The three lines a newcomer needs."""
        assert self._web is not None
        program = "cbq-exporter" if sys.argv[0].endswith("cbq-exporter") else "python -m cbq_exporter"
        if sys.prefix != sys.base_prefix and program == "cbq-exporter":
            program = sys.argv[0]
        option = f" -c {self._source}" if self._source and self._source.name != "config.yaml" else ""
        queues = self.config.queues
        sent = next((queue for queue in queues if queue.mode is Mode.DISPATCH), queues[0])
        one = f" -q {sent.name}" if len(queues) > 1 else ""
        return [
            f"cbq-exporter {__version__} {self.summary()}",
            f"Metrics: {self._web.url}/metrics",
            f"Enqueue one callback: {program} enqueue{option}{one} --url {_EXAMPLE_URL} --data '{{\"hello\": 1}}'",
        ]

    # --- reload ------------------------------------------------------------------------------

    def ask_to_reload(self, then: Callable[[], None] | None = None) -> None:
        """Soon, once the daemon has started; what comes of it is in the log and in the metrics.

        ``then`` is called at the end, however it ended.
        """
        self._reloader.ask(then)

    async def _take_over(self, config: Config, changes: Changes, actor: Actor) -> None:
        """Raises CbqError; with the old configuration in place, unless a queue could not be started."""
        if not self._started or self._store is None:
            raise CbqError("the daemon is starting: try again in a moment")
        store = self._store.with_queues(config)
        operations = self._operations(config, store)
        new = self._successors(config, changes, store, operations)
        # Whatever depends on the configuration is told of it here.
        self.config, self._store = config, store
        store.read_queues(config)
        if self._api is not None:
            self._api.reconfigure(config, operations, _answers(store))
        if self._alerting is not None:
            self._alerting.reconfigure(config, store, operations)
        if self._on_config is not None:
            self._on_config(config)
        await self._attendants.replace(new, changes, actor, config.shutdown.grace)
        _let_go_of_garbage()

    def _other_files(self) -> list[str]:
        return [attendant.name for attendant in self._attendants if attendant.files_have_changed()]

    def _successors(self, config: Config, changes: Changes, store: Store, operations: Operations) -> list[Attendant]:
        """Those of the queues that are new or changed, not started yet."""
        try:
            return [
                self._attendant(queue, config, store, operations)
                for queue in config.queues
                if queue.name in changes.added or queue.name in changes.changed
            ]
        except Exception as error:
            for name in changes.added:
                self.instruments.forget_queue(name)
            if isinstance(error, CbqError):
                raise
            raise CbqError(f"a queue cannot be made ready: {error}") from error

    # --- stop --------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Finish what is in flight, put back the rest, and close everything in the order of need."""
        self._stopping = True
        self._reloader.refuse()
        await self._attendants.close(self.config.shutdown.grace)
        await self._reloader.end()
        await self._schedule.stop()
        await self._loops.stop()
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


def _let_go_of_garbage() -> None:
    """At a start, and when queues have been taken over: parts of a queue know each other, so that those which were
    followed would stay until Python looks through everything, which it hardly ever does here. What is left stays until
    the next time, and searches need not look at it.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _answers(store: Store) -> dict[str, Answers]:
    return {name: Answers(store.connections, queue.keys) for name, queue in store.queues.items()}


async def _refuse_newer(store: Store) -> None:
    """Raises StoreMisuse where a newer version has written to a queue. A Redis that is away is asked again later."""
    for queue in store.queues.values():
        try:
            await Schema(store.connections, queue.keys).check()
        except StoreError as error:
            if error.kind == "schema":
                raise
            return


def _lock_value(clock: Clock) -> str:
    """One of this daemon's family, and no other's: its start, its host, and chance."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-.")[:60]
    return f"cbq-exporter_{int(clock.now())}_{host}_{secrets.token_hex(8)}"
