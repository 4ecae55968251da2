"""The daemon's own events, counted as they happen.

Children are bound once, so that an event costs no look-up of labels, and every known label set starts at zero, so
that the first event is seen by ``rate()``. All of it may be used from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, disable_created_metrics

from cbq_exporter import __version__
from cbq_exporter.metrics.catalogue import definition
from cbq_exporter.metrics.series import Distribution, Number, Numbers, Observed
from cbq_exporter.model import (
    Actor,
    AlertOutcome,
    DeadReason,
    FailureKind,
    FlushReason,
    OperationName,
    ReleaseReason,
    Result,
    Trigger,
)
from cbq_exporter.store.connections import ERROR_KINDS

OPERATIONS = ("claim", "settle", "extend")
OTHER = "other"  # the destination, or the kind of error, beyond the known ones

_OPERATION_NAMES = frozenset(OperationName)
_MOST_REFUSED = 10_000  # names remembered only to count them

_Word = TypeVar("_Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class DestinationInstruments:
    """One destination of one queue.

    ``attempts`` counts what has ended, delivered or failed. ``duration`` (seconds) is that of the whole queue.
    ``in_flight`` may be shared with other destinations: use ``inc`` and ``dec``, never ``set``.
    """

    attempts: Number
    failures: Mapping[FailureKind, Number]
    duration: Observed
    in_flight: Number
    throttled: Number
    circuit: Number | None  # one of its own, or none


class _Destinations:
    """The destinations of one queue, as many as may have series of their own."""

    def __init__(self, families: _Families, queue: str, most: int) -> None:
        self._families = families
        self._queue = queue
        self._most = most
        self._known: dict[str, DestinationInstruments] = {}
        self._refused: set[int] = set()
        self._lock = threading.Lock()
        self._series = families.destination_series.labels(queue)
        self._refused_series = families.destination_series_refused.labels(queue)

    def __getitem__(self, name: str) -> DestinationInstruments:
        return self._known.get(name) or self._meet(name)

    def _meet(self, name: str) -> DestinationInstruments:
        with self._lock:
            # A name comes out of a callback: what no label can hold must not break every scrape from now on.
            if name != OTHER and name and name.isprintable():
                if len(self._known) - (OTHER in self._known) < self._most:
                    self._known.setdefault(name, self._make(name))
                    self._series.set(len(self._known) - (OTHER in self._known))
                    return self._known[name]
                if len(self._refused) < _MOST_REFUSED:
                    self._refused.add(hash(name))
                    self._refused_series.set(len(self._refused))
            if OTHER not in self._known:
                self._known[OTHER] = self._make(OTHER)
            return self._known[OTHER]

    def _make(self, name: str) -> DestinationInstruments:
        of, queue = self._families, self._queue
        return DestinationInstruments(
            attempts=of.attempts.labels(queue, name),
            failures={kind: of.failures.labels(queue, name, kind) for kind in FailureKind},
            duration=of.duration.labels(queue),
            in_flight=of.in_flight.labels(queue, name),
            throttled=of.throttled.labels(queue, name),
            circuit=None if name == OTHER else of.circuit.labels(queue, name),
        )


@dataclass(frozen=True, slots=True)
class QueueInstruments:
    """One queue. ``lag`` is in seconds, never negative; ``fenced`` is by operation: claim, settle, extend."""

    enqueued: Number
    delivered: Number
    dead: Mapping[DeadReason, Number]
    retried: Mapping[FailureKind, Number]
    flushes: Mapping[FlushReason, Number]
    batch_wait: Number
    batch_size: Observed
    bundle_size: Observed
    bundle_splits: Number
    bundle_partial_results: Number
    lag: Observed
    recovered: Mapping[Trigger, Number]
    recovery_ineffective: Number
    lock_releases: Mapping[ReleaseReason, Number]
    lock_release_aborts: Number
    fenced: Mapping[str, Number]
    taken_away: Number
    leader: Number
    _destinations: _Destinations

    def destination(self, name: str) -> DestinationInstruments:
        """Bounded: beyond the bound all further destinations share the series ``other``, as do unprintable names."""
        return self._destinations[name]


@dataclass(frozen=True, slots=True)
class TaskInstruments:
    """One scheduled task. ``last_success`` is epoch seconds, the other times are seconds.

    The two of them can only be ``set``, and are absent until then.
    """

    runs: Number
    failures: Number
    missed: Number
    skipped: Number
    duration: Observed
    last_success: Number
    interval: Number


class Instruments:
    """Everything the daemon counts, in a registry of its own, the process's metrics included."""

    def __init__(self, queues: Sequence[str], *, max_destinations: int = 100, revision: str = "unknown") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._families = families = _Families(self.registry)
        families.build_info.labels(__version__, revision).set(1)
        families.destination_series_limit.labels().set(max_destinations)
        self._redis_errors = {kind: families.redis_errors.labels(kind) for kind in (*ERROR_KINDS, OTHER)}
        self._max_destinations = max_destinations
        self._queues: dict[str, QueueInstruments] = {}
        for name in queues:
            self.queue(name)
        self._tasks: dict[str, TaskInstruments] = {}
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def queue(self, name: str) -> QueueInstruments:
        """The same one for the same name; its series begin with the first call."""
        if name not in self._queues:
            self._queues[name] = self._families.queue(name, self._max_destinations)
        return self._queues[name]

    def forget_queue(self, name: str) -> None:
        """Its series end; nothing may be counted for it meanwhile."""
        self._queues.pop(name, None)
        self._families.forget("queue", name)

    def task(self, name: str) -> TaskInstruments:
        """The same one for the same name; its series begin with the first call."""
        if name not in self._tasks:
            self._tasks[name] = self._families.task(name)
        return self._tasks[name]

    def forget_task(self, name: str) -> None:
        """Its series end."""
        self._tasks.pop(name, None)
        self._families.forget("task", name)

    def operation_ended(self, operation: str, actor: Actor, result: Result) -> None:
        """One of an operation's name that is not known is not counted."""
        if operation in _OPERATION_NAMES:
            self._families.operations.labels(operation, actor.trigger, result).inc()

    def alert_received(self, outcome: AlertOutcome) -> None:
        self._families.alerts_received.labels(outcome).inc()

    def alerts_truncated(self, count: int) -> None:
        self._families.alerts_truncated.labels().inc(count)

    def redis_error(self, kind: str) -> None:
        self._redis_errors.get(kind, self._redis_errors[OTHER]).inc()

    def config_reloaded(self, ok: bool, at: float) -> None:
        """``at`` in epoch seconds. Reading it at the start counts too."""
        self._families.reload_successful.labels().set(float(ok))
        if ok:
            self._families.reload_success_at.labels().set(at)


class _Families:
    """One family for each instrument of the catalogue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._all: list[Numbers | Distribution] = []

        def number(name: str, *, late: bool = False) -> Numbers:
            made = Numbers(definition(name), registry, late=late)
            self._all.append(made)
            return made

        def histogram(name: str) -> Distribution:
            made = Distribution(definition(name), registry)
            self._all.append(made)
            return made

        counter = gauge = number  # the catalogue says which it is
        late = partial(number, late=True)

        self.build_info = gauge("build_info")
        self.enqueued = counter("callbacks_enqueued_total")
        self.delivered = counter("callbacks_delivered_total")
        self.dead = counter("callbacks_dead_total")
        self.retried = counter("callbacks_retried_total")
        self.attempts = counter("delivery_attempts_total")
        self.failures = counter("delivery_failures_total")
        self.duration = histogram("delivery_duration_seconds")
        self.lag = histogram("delivery_lag_seconds")
        self.batch_size = histogram("batch_size_callbacks")
        self.flushes = counter("batch_flushes_total")
        self.batch_wait = late("batch_wait_seconds")
        self.bundle_size = histogram("bundle_size_callbacks")
        self.bundle_splits = counter("bundle_splits_total")
        self.bundle_partial_results = counter("bundle_partial_results_total")
        self.in_flight = gauge("destination_in_flight")
        self.throttled = counter("destination_throttled_total")
        self.circuit = gauge("destination_circuit_state")
        self.destination_series = gauge("destination_series")
        self.destination_series_limit = gauge("destination_series_limit")
        self.destination_series_refused = gauge("destination_series_refused")
        self.recovered = counter("recovered_callbacks_total")
        self.recovery_ineffective = late("recovery_ineffective_callbacks")
        self.lock_releases = counter("lock_releases_total")
        self.lock_release_aborts = counter("lock_release_aborts_total")
        self.operations = counter("operations_total")
        for operation in OperationName:
            for trigger in Trigger:
                for result in Result:
                    if result is not Result.STARTED:
                        self.operations.labels(operation, trigger, result)
        self.alerts_received = counter("alerts_received_total")
        for outcome in AlertOutcome:
            self.alerts_received.labels(outcome)
        self.alerts_truncated = counter("alerts_truncated_total")
        self.fenced = counter("fenced_total")
        self.taken_away = counter("callbacks_taken_away_total")
        self.leader = gauge("dispatch_leader")
        self.task_runs = counter("task_runs_total")
        self.task_failures = counter("task_failures_total")
        self.task_missed = counter("task_missed_total")
        self.task_skipped = counter("task_skipped_total")
        self.task_duration = histogram("task_duration_seconds")
        self.task_last_success = late("task_last_success_timestamp_seconds")
        self.task_interval = late("task_interval_seconds")
        self.redis_errors = counter("redis_errors_total")
        self.reload_successful = late("config_last_reload_successful")
        self.reload_success_at = late("config_last_reload_success_timestamp_seconds")

    def forget(self, label: str, value: str) -> None:
        for family in self._all:
            family.forget(label, value)

    def queue(self, name: str, max_destinations: int) -> QueueInstruments:
        def each(family: Numbers, words: type[_Word]) -> dict[_Word, Number]:
            return {word: family.labels(name, word) for word in words}

        self.duration.labels(name)
        return QueueInstruments(
            enqueued=self.enqueued.labels(name),
            delivered=self.delivered.labels(name),
            dead=each(self.dead, DeadReason),
            retried=each(self.retried, FailureKind),
            flushes=each(self.flushes, FlushReason),
            batch_wait=self.batch_wait.labels(name),
            batch_size=self.batch_size.labels(name),
            bundle_size=self.bundle_size.labels(name),
            bundle_splits=self.bundle_splits.labels(name),
            bundle_partial_results=self.bundle_partial_results.labels(name),
            lag=self.lag.labels(name),
            recovered=each(self.recovered, Trigger),
            recovery_ineffective=self.recovery_ineffective.labels(name),
            lock_releases=each(self.lock_releases, ReleaseReason),
            lock_release_aborts=self.lock_release_aborts.labels(name),
            fenced={operation: self.fenced.labels(name, operation) for operation in OPERATIONS},
            taken_away=self.taken_away.labels(name),
            leader=self.leader.labels(name),
            _destinations=_Destinations(self, name, max_destinations),
        )

    def task(self, name: str) -> TaskInstruments:
        return TaskInstruments(
            runs=self.task_runs.labels(name),
            failures=self.task_failures.labels(name),
            missed=self.task_missed.labels(name),
            skipped=self.task_skipped.labels(name),
            duration=self.task_duration.labels(name),
            last_success=self.task_last_success.labels(name),
            interval=self.task_interval.labels(name),
        )
