"""The daemon's own events, counted as they happen.

Children are bound once, so that an event costs no look-up of labels, and every known label set starts at zero, so
that the first event is seen by ``rate()``. All of it may be used from any thread.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cbq_exporter import __version__
from cbq_exporter.metrics.catalogue import Definition, definition
from cbq_exporter.model import (
    Actor,
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


class LateGauge(Collector):
    """A gauge that is absent until it is set: what is not known yet must not read as 0."""

    def __init__(self, of: Definition, registry: CollectorRegistry) -> None:
        self._of = of
        self._values: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def labels(self, *values: str) -> LateValue:
        return LateValue(self._values, values)

    def set(self, value: float) -> None:
        """For the one without labels."""
        self._values[()] = value

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._of.full_name, self._of.help, labels=self._of.labels, unit=self._of.unit)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        (family,) = self.describe()
        for values, value in self._values.copy().items():
            family.add_metric(values, value)
        return [family]


@dataclass(frozen=True, slots=True)
class LateValue:
    """One series of a LateGauge."""

    _all: dict[tuple[str, ...], float]
    _labels: tuple[str, ...]

    def set(self, value: float) -> None:
        self._all[self._labels] = value


class Distribution(Collector):
    """A histogram of many observations at once: some are made for each callback, and the library's costs 2 µs each.

    Written from one thread only, the event loop's.
    """

    def __init__(self, of: Definition, registry: CollectorRegistry) -> None:
        self._of = of
        self._series: dict[tuple[str, ...], Observed] = {}
        registry.register(self)

    def labels(self, *values: str) -> Observed:
        """The same one for the same labels; it starts at zero."""
        return self._series.setdefault(values, Observed(self._of.buckets))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._of.full_name, self._of.help, labels=self._of.labels, unit=self._of.unit)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        (family,) = self.describe()
        for values, observed in self._series.copy().items():
            family.add_metric(values, observed.cumulated(), observed.sum)
        return [family]


class Observed:
    """One series of a Distribution."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, *amounts: float) -> None:
        """``amounts`` in the unit of the metric."""
        bounds, counts = self._bounds, self._counts
        for amount in amounts:
            counts[bisect_left(bounds, amount)] += 1
        self.sum += math.fsum(amounts)

    def cumulated(self) -> list[tuple[str, float]]:
        """Upper bounds, as text, and how many were observed up to there."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


@dataclass(frozen=True, slots=True)
class DestinationInstruments:
    """One destination of one queue.

    ``attempts`` counts what has ended, delivered or failed. ``duration`` (seconds) is that of the whole queue.
    ``in_flight`` may be shared with other destinations: use ``inc`` and ``dec``, never ``set``.
    """

    attempts: Counter
    failures: Mapping[FailureKind, Counter]
    duration: Observed
    in_flight: Gauge
    throttled: Counter


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
        )


@dataclass(frozen=True, slots=True)
class QueueInstruments:
    """One queue. ``lag`` is in seconds, never negative; ``fenced`` is by operation: claim, settle, extend."""

    enqueued: Counter
    delivered: Counter
    dead: Mapping[DeadReason, Counter]
    retried: Mapping[FailureKind, Counter]
    flushes: Mapping[FlushReason, Counter]
    batch_size: Observed
    lag: Observed
    recovered: Mapping[Trigger, Counter]
    recovery_ineffective: LateValue
    lock_releases: Mapping[ReleaseReason, Counter]
    lock_release_aborts: Counter
    fenced: Mapping[str, Counter]
    leader: Gauge
    _destinations: _Destinations

    def destination(self, name: str) -> DestinationInstruments:
        """Bounded: beyond the bound all further destinations share the series ``other``, as do unprintable names."""
        return self._destinations[name]


@dataclass(frozen=True, slots=True)
class TaskInstruments:
    """One scheduled task. ``last_success`` is epoch seconds, the other times are seconds.

    The two of them can only be ``set``, and are absent until then.
    """

    runs: Counter
    failures: Counter
    missed: Counter
    skipped: Counter
    duration: Observed
    last_success: LateValue
    interval: LateValue


class Instruments:
    """Everything the daemon counts, in a registry of its own, the process's metrics included."""

    def __init__(self, queues: Sequence[str], *, max_destinations: int = 100, revision: str = "unknown") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._families = families = _Families(self.registry)
        families.build_info.labels(__version__, revision).set(1)
        families.destination_series_limit.set(max_destinations)
        self._redis_errors = {kind: families.redis_errors.labels(kind) for kind in (*ERROR_KINDS, OTHER)}
        self._queues = {name: families.queue(name, max_destinations) for name in queues}
        self._tasks: dict[str, TaskInstruments] = {}
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def queue(self, name: str) -> QueueInstruments:
        return self._queues[name]

    def task(self, name: str) -> TaskInstruments:
        """The same one for the same name; its series begin with the first call."""
        if name not in self._tasks:
            self._tasks[name] = self._families.task(name)
        return self._tasks[name]

    def operation_ended(self, operation: str, actor: Actor, result: Result) -> None:
        """One of an operation's name that is not known is not counted."""
        if operation in _OPERATION_NAMES:
            self._families.operations.labels(operation, actor.trigger, result).inc()

    def redis_error(self, kind: str) -> None:
        self._redis_errors.get(kind, self._redis_errors[OTHER]).inc()

    def config_reloaded(self, ok: bool, at: float) -> None:
        """``at`` in epoch seconds. Reading it at the start counts too."""
        self._families.reload_successful.set(float(ok))
        if ok:
            self._families.reload_success_at.set(at)


class _Families:
    """One family of the client library for each instrument of the catalogue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str) -> Counter:
            of = definition(name)
            return Counter(of.full_name, of.help, of.labels, registry=registry)

        def gauge(name: str) -> Gauge:
            of = definition(name)
            return Gauge(of.full_name, of.help, of.labels, unit=of.unit, registry=registry)

        def histogram(name: str) -> Distribution:
            return Distribution(definition(name), registry)

        def late(name: str) -> LateGauge:
            return LateGauge(definition(name), registry)

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
        self.in_flight = gauge("destination_in_flight")
        self.throttled = counter("destination_throttled_total")
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
        self.fenced = counter("fenced_total")
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

    def queue(self, name: str, max_destinations: int) -> QueueInstruments:
        def each(family: Counter, words: type[_Word]) -> dict[_Word, Counter]:
            return {word: family.labels(name, word) for word in words}

        self.duration.labels(name)
        return QueueInstruments(
            enqueued=self.enqueued.labels(name),
            delivered=self.delivered.labels(name),
            dead=each(self.dead, DeadReason),
            retried=each(self.retried, FailureKind),
            flushes=each(self.flushes, FlushReason),
            batch_size=self.batch_size.labels(name),
            lag=self.lag.labels(name),
            recovered=each(self.recovered, Trigger),
            recovery_ineffective=self.recovery_ineffective.labels(name),
            lock_releases=each(self.lock_releases, ReleaseReason),
            lock_release_aborts=self.lock_release_aborts.labels(name),
            fenced={operation: self.fenced.labels(name, operation) for operation in OPERATIONS},
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
