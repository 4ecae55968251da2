"""From the ends of sends to settlements, and the counting of both."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.bundles import of_request
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.sender import Ended
from cbq_exporter.delivery.shaping import webhook_id
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import (
    Dead,
    Delivered,
    FailureKind,
    Outcome,
    Retry,
    Settled,
    Settlement,
)
from cbq_exporter.policy import retry
from cbq_exporter.services.circuits import Circuits

log = logging.getLogger(__name__)

_DELIVERED = Delivered()
_RETRIED_KINDS = frozenset(kind.value for kind in FailureKind)


@dataclass(frozen=True, slots=True)
class Judged:
    """Each send that ended is in exactly one of the first two. ``gone``: destinations to be paused, and why."""

    settlements: list[Settlement]
    cut_off: list[Parcel]
    gone: dict[str, str]


class Judge:
    """Of one queue."""

    def __init__(self, queue: str, instruments: QueueInstruments, clock: Clock, circuits: Circuits) -> None:
        self._queue = queue
        self._instruments = instruments
        self._clock = clock
        self._circuits = circuits

    def judge(self, ended: Sequence[Ended], *, stopping: bool) -> Judged:
        """Count the attempts, and tell the circuits.

        While ``stopping``, what was cut off is not settled but to be put back.
        """
        now = self._clock.now()
        settlements: list[Settlement] = []
        cut_off: list[Parcel] = []
        gone: dict[str, str] = {}
        attempts: dict[Receiver, list[float]] = {}  # how long each took
        lags: list[float] = []
        longest = longest_lag = 0.0  # of this batch, and whose they are: they may become exemplars
        slowest: Parcel | None = None
        latest: Parcel | None = None
        for parcel, exchange in ended:
            kind = exchange.failure
            if kind is None:
                outcome: Outcome = _DELIVERED
            elif kind is FailureKind.CANCELLED and stopping:
                cut_off.append(parcel)
                continue
            else:
                outcome = self._outcome(parcel, exchange, now)
            if outcome is _DELIVERED:
                settlements.append(Settlement(parcel.claimed, _DELIVERED))
                if parcel.queued_at is not None:
                    lag = max(0.0, now - parcel.queued_at)
                    lags.append(lag)
                    if lag > longest_lag:
                        longest_lag, latest = lag, parcel
            elif kind is not None:
                settlements.append(Settlement(parcel.claimed, outcome, parcel.request.url, parcel.destination))
                if kind in (FailureKind.EXPIRED, FailureKind.CANCELLED):
                    continue
                self._instruments.destination(parcel.destination).failures[kind].inc()
                status = of_request(exchange).status
                if retry.meaning_of(status, parcel.receiver.retry) == "pause":
                    gone[parcel.destination] = f"it answered HTTP {status}"
            duration = exchange.duration
            attempts.setdefault(parcel.receiver, []).append(duration)
            if duration > longest:
                longest, slowest = duration, parcel
        for receiver, durations in attempts.items():
            destination = self._instruments.destination(receiver.name)
            destination.attempts.inc(len(durations))
            destination.duration.observe(*durations)
        self._circuits.tell(ended)
        self._instruments.lag.observe(*lags)
        if slowest is not None:
            durations_of_all = self._instruments.destination(slowest.destination).duration
            durations_of_all.exemplify(longest, {"webhook_id": webhook_id(slowest.claimed)}, now)
        if latest is not None:
            self._instruments.lag.exemplify(longest_lag, {"webhook_id": webhook_id(latest.claimed)}, now)
        return Judged(settlements, cut_off, gone)

    def _outcome(self, parcel: Parcel, exchange: Exchange, now: float) -> Outcome:
        """Of an attempt whose answer was no 2xx. What the table of statuses takes for delivered is ``_DELIVERED``."""
        claimed, rule = parcel.claimed, parcel.receiver.retry
        attempt = retry.Attempt(
            exchange.status,
            exchange.failure,
            exchange.retry_after,
            exchange.detail,
            exchange.sample.decode("utf-8", "replace"),
            now,
        )
        outcome = retry.judge(
            attempt,
            rule,
            attempts_before=claimed.attempts,
            age=now - claimed.first_claimed_ms / 1000,
            roll=random.random(),
        )
        if isinstance(outcome, Delivered):
            return _DELIVERED
        log.debug(
            "an attempt failed",
            extra={
                "queue": self._queue,
                "destination": parcel.destination,
                "kind": str(exchange.failure),
                "status": exchange.status,
                "detail": exchange.detail,
                "id": claimed.fingerprint,
            },
        )
        return outcome

    def count(self, settlements: Sequence[Settlement], settled: Sequence[Settled]) -> float | None:
        """Count what the store has taken; in how many seconds the first of the new retries is due."""
        delivered = 0
        soonest = math.inf
        for settlement, result in zip(settlements, settled, strict=True):
            if result is Settled.FENCED:
                self._instruments.fenced["settle"].inc()
                continue
            if settlement.outcome is _DELIVERED:
                delivered += 1
                continue
            match settlement.outcome:
                case Dead(reason=reason):
                    self._instruments.dead[reason].inc()
                    self._tell_of_death(settlement)
                case Retry(delay=delay, failure=failure):
                    soonest = min(soonest, delay)
                    if failure.kind in _RETRIED_KINDS:
                        self._instruments.retried[FailureKind(failure.kind)].inc()
                case _:
                    pass
        if delivered:
            self._instruments.delivered.inc(delivered)
        return soonest if soonest < math.inf else None

    def _tell_of_death(self, settlement: Settlement) -> None:
        outcome = settlement.outcome
        assert isinstance(outcome, Dead)
        log.warning(
            "given up: it is in the dead letters now",
            extra={
                "queue": self._queue,
                "reason": outcome.reason.value,
                "destination": settlement.destination,
                "detail": outcome.failure.detail,
                "id": settlement.claimed.fingerprint,
            },
        )
