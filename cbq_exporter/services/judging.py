"""From the ends of sends to settlements, and the counting of both."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cbq_exporter.clock import Clock
from cbq_exporter.delivery.bundles import of_request
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.exchange import Exchange
from cbq_exporter.delivery.receivers import Receiver
from cbq_exporter.delivery.sender import Ended
from cbq_exporter.delivery.shaping import webhook_id
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.metrics.series import Observed
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
from cbq_exporter.services.few_lines import FewLines

log = logging.getLogger(__name__)

_DELIVERED = Delivered()
_NOT_MADE = frozenset({FailureKind.EXPIRED, FailureKind.CANCELLED})
_RETRIED_KINDS = frozenset(kind.value for kind in FailureKind)


@dataclass(frozen=True, slots=True)
class Judged:
    """Each callback whose send has ended is in exactly one of the first two. ``gone``: destinations to be paused, and
    why.

    ``delivered`` are among the settled. ``attempts`` says how long those took (seconds) that were made, by receiver.
    """

    settlements: list[Settlement] = field(default_factory=list)
    cut_off: list[Parcel] = field(default_factory=list)
    gone: dict[str, str] = field(default_factory=dict)
    delivered: list[Parcel] = field(default_factory=list)
    attempts: dict[Receiver, list[float]] = field(default_factory=dict)


class Judge:
    """Of one queue. Ages are by ``store_clock``: the store has dated the first claim."""

    def __init__(
        self, queue: str, instruments: QueueInstruments, clock: Clock, store_clock: Clock, circuits: Circuits
    ) -> None:
        self._queue = queue
        self._instruments = instruments
        self._clock = clock
        self._store_clock = store_clock
        self._circuits = circuits
        self._deaths = FewLines(clock)

    def judge(self, ended: Sequence[Ended], *, stopping: bool) -> Judged:
        """Count the attempts, and tell the circuits.

        While ``stopping``, what was cut off is not settled but to be put back.
        """
        now, store_now = self._clock.now(), self._store_clock.now()
        judged = Judged()
        delivered = judged.delivered
        receiver: Receiver | None = None  # of the one before: as a rule it is that of all
        durations: list[float] = []
        for parcel, exchange in ended:
            if parcel.receiver is not receiver:
                receiver = parcel.receiver
                durations = judged.attempts.setdefault(receiver, [])
            if exchange.failure is not None:
                if exchange.failure is FailureKind.CANCELLED and stopping:
                    judged.cut_off.extend(parcel.members or [parcel])
                else:
                    self._judge_failed(parcel, exchange, store_now, judged)
            elif parcel.members:
                delivered += parcel.members
                durations += [exchange.duration] * len(parcel.members)
            else:
                delivered.append(parcel)
                durations.append(exchange.duration)
        self._count_attempts(judged.attempts, ended, now)
        self._circuits.tell(ended)
        self._count_lag(delivered, now)
        judged.settlements.extend([Settlement(one.claimed, _DELIVERED) for one in delivered])
        return judged

    def _judge_failed(self, parcel: Parcel, exchange: Exchange, now: float, judged: Judged) -> None:
        """Its answer was no 2xx, which the table of statuses may take for delivered, or there was none."""
        kind = exchange.failure
        assert kind is not None
        members = parcel.members or [parcel]
        was_made = kind not in _NOT_MADE
        if was_made:
            judged.attempts[parcel.receiver] += [exchange.duration] * len(members)
        for one in members:
            outcome = self._outcome(one, exchange, now)
            if outcome is _DELIVERED:
                judged.delivered.append(one)
                continue
            judged.settlements.append(Settlement(one.claimed, outcome, one.url, one.destination))
            if was_made:
                self._instruments.destination(one.destination).failures[kind].inc()
                status = of_request(exchange).status
                if retry.meaning_of(status, one.receiver.retry) == "pause":
                    judged.gone[one.destination] = f"it answered HTTP {status}"

    def _count_attempts(self, attempts: Mapping[Receiver, Sequence[float]], ended: Sequence[Ended], now: float) -> None:
        longest = 0.0
        of_all: Observed | None = None  # it is that of the whole queue, whichever destination is asked
        for receiver, durations in attempts.items():
            if durations:
                destination = self._instruments.destination(receiver.name)
                destination.attempts.inc(len(durations))
                of_all = destination.duration
                of_all.observe(*durations)
                longest = max(longest, *durations)
        if of_all is not None and longest >= of_all.exemplars_from:
            slowest = next(parcel for parcel, exchange in ended if exchange.duration == longest)
            of_all.exemplify(longest, {"webhook_id": webhook_id(slowest.claimed)}, now)

    def _count_lag(self, delivered: Sequence[Parcel], now: float) -> None:
        """From the producers' clocks, where the items say."""
        queued_at = [one.queued_at for one in delivered if one.queued_at is not None]
        if not queued_at:
            return
        lag, first = self._instruments.lag, min(queued_at)
        lag.observe(*[now - at if at < now else 0.0 for at in queued_at])
        if now - first >= lag.exemplars_from:
            latest = next(one for one in delivered if one.queued_at == first)
            lag.exemplify(now - first, {"webhook_id": webhook_id(latest.claimed)}, now)

    def _outcome(self, parcel: Parcel, exchange: Exchange, now: float) -> Outcome:
        """What the table of statuses takes for delivered is ``_DELIVERED``."""
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
        """Count what the store has taken; in how many seconds the first of the new retries is due.

        What somebody else has moved to pending meanwhile is there, and neither in retry nor dead.
        """
        delivered = 0
        soonest = math.inf
        for settlement, result in zip(settlements, settled, strict=True):
            if result is Settled.FENCED:
                self._instruments.fenced["settle"].inc()
                continue
            if settlement.outcome is _DELIVERED:
                delivered += 1
            if result is Settled.MISSING:
                self._instruments.taken_away.inc()
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
        about_lines = self._deaths.next()
        if about_lines is None:
            return
        log.warning(
            "given up: it is in the dead letters now",
            extra={
                "queue": self._queue,
                "reason": outcome.reason.value,
                "destination": settlement.destination,
                "detail": outcome.failure.detail,
                "id": settlement.claimed.fingerprint,
                **about_lines,
            },
        )
