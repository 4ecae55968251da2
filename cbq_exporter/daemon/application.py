"""The daemon's parts and how they hang together: store, an attendant for each queue, schedule, web."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys

from cbq_exporter import __version__
from cbq_exporter.clock import Clock
from cbq_exporter.config import Config, Loaded, QueueConfig, warnings
from cbq_exporter.daemon.alerting import Alerting
from cbq_exporter.daemon.attendant import Attendant
from cbq_exporter.daemon.loops import Loops
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.daemon.watchdog import SILENCE, watch
from cbq_exporter.errors import CbqError
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Snapshot
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import Operations
from cbq_exporter.store.answers import Answers
from cbq_exporter.store.embedded import EmbeddedServer
from cbq_exporter.store.opening import Store, make_store
from cbq_exporter.web.api import Api
from cbq_exporter.web.app import create_app
from cbq_exporter.web.server import WebServer
from cbq_exporter.web.tls import check_web_config

log = logging.getLogger(__name__)

_PROBE_EVERY = 5.0  # seconds
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
        self._attendants: dict[str, Attendant] = {}
        self._loops = Loops()
        self._started = self._stopping = False

    # --- what the web server asks ------------------------------------------------------------

    async def snapshot(self, timeout: float) -> Snapshot:
        for attendant in self._attendants.values():
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
        for name, attendant in self._attendants.items():
            trouble = attendant.trouble()
            if trouble is not None:
                reasons.append(f"queue {name}: {trouble}")
        return reasons

    def not_healthy(self) -> list[str]:
        """What only a new start of the process would mend; empty where all loops are alive."""
        if not self._started or self._stopping:
            return []
        reasons = []
        if self._schedule.silent_for > SILENCE:
            reasons.append(f"the scheduler has run nothing for {self._schedule.silent_for:.0f} s")
        ended = self._loops.ended()
        for attendant in self._attendants.values():
            ended += attendant.ended_loops()
        return reasons + [f"{name} has ended" for name in ended]

    # --- start -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises CbqError where the daemon cannot begin its work; a Redis that is down is waited for."""
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
        web = self.config.web
        alerting = self._alerting(self._store)
        app = create_app(self, self._api(self._store), alerting.webhook)
        self._web = WebServer(app, web.host, web.port, config_file=web.config_file)
        await self._web.start()
        self._schedule.every(_PROBE, _PROBE_EVERY, self._store.reader.probe)
        for queue in self.config.queues:
            self._attendants[queue.name] = self._attendant(queue, self._store)
        for attendant in self._attendants.values():
            attendant.start()
        alerting.start()
        self._schedule.start()
        self._loops.add("the scheduler's watchdog", watch(self._schedule))
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
        answers = {name: Answers(store.connections, queue.keys) for name, queue in store.queues.items()}
        return Api(self.config, Operations(self.config, store, self._audit(store)), answers)

    def _alerting(self, store: Store) -> Alerting:
        operations = Operations(self.config, store, self._audit(store))
        return Alerting(self.config, store, operations, self.instruments, self._schedule, self._clock)

    def _audit(self, store: Store) -> Audit:
        return Audit(store, count=self.instruments.operation_ended)

    def _attendant(self, config: QueueConfig, store: Store) -> Attendant:
        instruments = self.instruments.queue(config.name)
        return Attendant(config, store, instruments, self._audit(store), self._schedule, self._clock)

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
        attendants = self._attendants.values()
        for attendant in attendants:
            attendant.stop_claiming()
        grace = self.config.shutdown.grace
        results = await asyncio.gather(*(attendant.close(grace) for attendant in attendants), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("a queue could not be closed in order", exc_info=result)
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


def _lock_value(clock: Clock) -> str:
    """One of this daemon's family, and no other's: its start, its host, and chance."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-.")[:60]
    return f"cbq-exporter_{int(clock.now())}_{host}_{secrets.token_hex(8)}"
