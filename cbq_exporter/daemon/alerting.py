"""Alerts in the daemon: the webhook that receives them, and the job that does what they ask for."""

from __future__ import annotations

from cbq_exporter.clock import Clock
from cbq_exporter.config import Config
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.services.alert_responder import AlertResponder
from cbq_exporter.services.operations import Operations
from cbq_exporter.store.opening import Store
from cbq_exporter.web.alerts import AlertWebhook

_TASK = "alerts"
_LONGEST_SLEEP = 10.0  # seconds: what another daemon has left is found after this


class Alerting:
    """The job runs in every daemon, for what others have left; without routes it does nothing."""

    def __init__(
        self,
        config: Config,
        store: Store,
        operations: Operations,
        instruments: Instruments,
        schedule: Schedule,
        clock: Clock,
    ) -> None:
        self._instruments = instruments
        self._schedule = schedule
        self._clock = clock
        self._responder = self._make(config, store, operations)
        self.webhook = AlertWebhook(
            config.alerts.auth.bearer_token_file,
            self._responder,
            count=instruments.alert_received,
            count_truncated=instruments.alerts_truncated,
        )

    def start(self) -> None:
        self._schedule.again(_TASK, self._act, longest_sleep=_LONGEST_SLEEP)

    def reconfigure(self, config: Config, store: Store, operations: Operations) -> None:
        """From the next request and the next action on; what has begun ends as it began."""
        self._responder = self._make(config, store, operations)
        self.webhook.reconfigure(config.alerts.auth.bearer_token_file, self._responder)

    def _make(self, config: Config, store: Store, operations: Operations) -> AlertResponder:
        return AlertResponder(
            config,
            store,
            operations,
            count=self._instruments.alert_received,
            wake=self._wake,
            clock=self._clock,
        )

    def _wake(self) -> None:
        self._schedule.wake(_TASK)

    async def _act(self) -> float | None:
        await self._responder.run_once()
        return None
