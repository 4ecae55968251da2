"""Counters, gauges and histograms with many series, of which few change between two scrapes.

A sample is made anew only where its number has changed; else a scrape gets the very same object again, and whoever
writes it can tell by that. The client library's own children make each sample anew, at 3 µs each. All of it may be
used from any thread, except where it says otherwise.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import Exemplar, Metric, Sample
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from cbq_exporter.metrics.catalogue import Definition

_Labels = dict[str, str]


_Series = TypeVar("_Series")


class _News:
    """Whether something of a family has changed since it was last collected, and the lock for changing it."""

    __slots__ = ("lock", "there_are")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.there_are = False


class _Family(Collector, Generic[_Series]):
    """The series of one metric, by the values of their labels."""

    def __init__(self, of: Definition, registry: CollectorRegistry) -> None:
        self._of = of
        # The client library writes a counter's suffix itself.
        self._name = of.full_name.removesuffix("_total")
        self._series: dict[tuple[str, ...], _Series] = {}
        self._news = _News()
        self._collecting = threading.Lock()
        self._samples: list[Sample] = []
        registry.register(self)

    def labels(self, *values: str) -> _Series:
        """The same one for the same values."""
        found = self._series.get(values)
        if found is None:
            plain = tuple(map(str, values))  # members of enums would be looked at by the garbage collector
            with self._news.lock:
                found = self._series.setdefault(plain, self._make(dict(zip(self._of.labels, plain, strict=True))))
            self._news.there_are = True
        return found

    def forget(self, label: str, value: str) -> None:
        """All series whose ``label`` is ``value``, from the next scrape on; none where there is no such label."""
        if label in self._of.labels:
            place = self._of.labels.index(label)
            with self._news.lock:
                self._series = {key: one for key, one in self._series.items() if key[place] != value}
            self._news.there_are = True

    def describe(self) -> Iterable[Metric]:
        return [Metric(self._name, self._of.help, self._of.type, self._of.unit)]

    def collect(self) -> Iterable[Metric]:
        (family,) = self.describe()
        with self._collecting:
            if self._news.there_are:
                self._news.there_are = False  # before reading: what comes meanwhile is for the next scrape
                self._samples = self._current(list(self._series.values()))
            family.samples = self._samples
        return [family]

    @abstractmethod
    def _make(self, labels: _Labels) -> _Series: ...

    @abstractmethod
    def _current(self, all_series: Sequence[_Series]) -> list[Sample]: ...


class Numbers(_Family["Number"]):
    """A counter or a gauge. Its series are 0 from the beginning, that without labels is there from the beginning;
    ``late`` ones are absent until they are set: what is not known yet must not read as 0.
    """

    def __init__(self, of: Definition, registry: CollectorRegistry, *, late: bool = False) -> None:
        super().__init__(of, registry)
        self._first = None if late else 0.0
        if not of.labels:
            self.labels()

    def _make(self, labels: _Labels) -> Number:
        return Number(self._of.full_name, labels, self._first, self._news)

    def _current(self, all_series: Sequence[Number]) -> list[Sample]:
        return [sample for number in all_series if (sample := number.sample()) is not None]


class Number:
    """One series of Numbers."""

    __slots__ = ("_labels", "_name", "_news", "_sample", "_value")

    def __init__(self, name: str, labels: _Labels, value: float | None, news: _News) -> None:
        self._name = name
        self._labels = labels
        self._value = value
        self._news = news
        self._sample: Sample | None = None

    def set(self, value: float | None) -> None:
        """None: it is not known any more."""
        self._value = value
        self._news.there_are = True

    def inc(self, amount: float = 1.0) -> None:
        with self._news.lock:
            self._value = (self._value or 0.0) + amount
        self._news.there_are = True

    def sample(self) -> Sample | None:
        value, last = self._value, self._sample
        if value is None:
            last = None
        elif last is None or last.value != value:
            last = Sample(self._name, self._labels, float(value))
        self._sample = last
        return last


class Distribution(_Family["Observed"]):
    """A histogram of many observations at once: some are made for each callback, and the library's costs 2 µs each."""

    def _make(self, labels: _Labels) -> Observed:
        return Observed(self._of, labels, self._news)

    def _current(self, all_series: Sequence[Observed]) -> list[Sample]:
        return [sample for observed in all_series for sample in observed.samples()]


class Observed:
    """One series of a Distribution. Written from one thread only, the event loop's.

    Each bucket keeps the latest exemplar of what was no less than the definition's ``exemplars_from``.
    """

    __slots__ = ("_bounds", "_changed", "_counts", "_exemplars", "_news", "_samples", "_sum", "exemplars_from")

    def __init__(self, of: Definition, labels: _Labels, news: _News) -> None:
        self._bounds = of.buckets
        self._counts = [0] * (len(of.buckets) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}  # by the place of the bucket
        self.exemplars_from = of.exemplars_from
        self._news = news
        self._changed = False
        name = of.full_name
        bounds = [*map(floatToGoString, of.buckets), "+Inf"]
        self._samples = [Sample(f"{name}_bucket", {**labels, "le": bound}, 0.0) for bound in bounds]
        self._samples += [Sample(f"{name}_count", labels, 0.0), Sample(f"{name}_sum", labels, 0.0)]

    def observe(self, *amounts: float) -> None:
        """``amounts`` in the unit of the metric."""
        bounds, counts = self._bounds, self._counts
        for amount in amounts:
            counts[bisect_left(bounds, amount)] += 1
        self._sum += math.fsum(amounts)
        self._changed = self._news.there_are = True

    def exemplify(self, amount: float, labels: _Labels, at: float) -> None:
        """Whose an observed ``amount`` was, and when (epoch seconds). Not kept where it was small."""
        if amount >= self.exemplars_from:
            self._exemplars[bisect_left(self._bounds, amount)] = Exemplar(labels, amount, at)
            self._changed = self._news.there_are = True

    def samples(self) -> Sequence[Sample]:
        """Cumulated, as the format has it."""
        if self._changed:
            self._changed = False  # before reading, as above
            counts = [float(count) for count in accumulate(self._counts)]
            values = [*counts, counts[-1], self._sum]
            self._samples = [
                self._current(sample, value, self._exemplars.get(place))
                for place, (sample, value) in enumerate(zip(self._samples, values, strict=True))
            ]
        return self._samples

    @staticmethod
    def _current(last: Sample, value: float, exemplar: Exemplar | None) -> Sample:
        if last.value == value and last.exemplar is exemplar:
            return last
        return Sample(last.name, last.labels, value, exemplar=exemplar)
