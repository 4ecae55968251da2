"""Counting: from zero, bounded, and without a number for what has not happened."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import DeadReason, FailureKind, FlushReason, Trigger
from cbq_exporter.store.connections import ERROR_KINDS


def value(instruments: Instruments, name: str, **labels: str) -> float | None:
    return instruments.registry.get_sample_value(f"cbq_{name}", labels)


def test_every_known_label_set_starts_at_zero() -> None:
    instruments = Instruments(["a", "b"])
    instruments.queue("b").destination("host")
    instruments.task("flush")
    for queue in ("a", "b"):
        known: list[tuple[str, Mapping[str, str]]] = [
            ("callbacks_enqueued_total", {}),
            ("callbacks_delivered_total", {}),
            *[("callbacks_dead_total", {"reason": reason}) for reason in DeadReason],
            *[("callbacks_retried_total", {"reason": kind}) for kind in FailureKind],
            *[("batch_flushes_total", {"reason": reason}) for reason in FlushReason],
            *[("recovered_callbacks_total", {"trigger": trigger}) for trigger in Trigger],
            *[("fenced_total", {"operation": operation}) for operation in ("claim", "settle", "extend")],
            *[(f"{name}_count", {}) for name in ("delivery_duration_seconds", "delivery_lag_seconds")],
            ("batch_size_callbacks_count", {}),
            ("bundle_size_callbacks_count", {}),
            ("bundle_splits_total", {}),
            ("bundle_partial_results_total", {}),
            ("dispatch_leader", {}),
        ]
        for name, labels in known:
            assert value(instruments, name, queue=queue, **labels) == 0.0, name
    for kind in FailureKind:
        assert value(instruments, "delivery_failures_total", queue="b", destination="host", kind=kind) == 0.0
    for word in ERROR_KINDS:
        assert value(instruments, "redis_errors_total", kind=word) == 0.0
    for name in ("runs", "failures", "missed", "skipped"):
        assert value(instruments, f"task_{name}_total", task="flush") == 0.0


def test_what_has_not_happened_yet_is_absent() -> None:
    instruments = Instruments(["a"])
    task = instruments.task("flush")
    late = [
        ("task_last_success_timestamp_seconds", {"task": "flush"}),
        ("task_interval_seconds", {"task": "flush"}),
        ("config_last_reload_successful", {}),
        ("config_last_reload_success_timestamp_seconds", {}),
    ]
    assert [value(instruments, name, **labels) for name, labels in late] == [None] * 4
    instruments.config_reloaded(False, 5.0)
    assert [value(instruments, name, **labels) for name, labels in late] == [None, None, 0.0, None]
    task.last_success.set(7.0)
    instruments.task("flush").interval.set(2.0)
    instruments.config_reloaded(True, 6.0)
    assert [value(instruments, name, **labels) for name, labels in late] == [7.0, 2.0, 1.0, 6.0]


def test_destinations_beyond_the_bound_share_one_series() -> None:
    instruments = Instruments(["a", "b"], max_destinations=2)
    queue = instruments.queue("a")
    for name in ("one", "two", "three", "four", "three", "one"):
        queue.destination(name).attempts.inc()
    attempts = {
        name: value(instruments, "delivery_attempts_total", queue="a", destination=name)
        for name in ("one", "two", "three", "four", "other")
    }
    assert attempts == {"one": 2.0, "two": 1.0, "three": None, "four": None, "other": 3.0}
    assert value(instruments, "destination_series", queue="a") == 2.0
    assert value(instruments, "destination_series_limit") == 2.0
    assert value(instruments, "destination_series_refused", queue="a") == 2.0
    instruments.queue("b").destination("three").attempts.inc()
    assert value(instruments, "delivery_attempts_total", queue="b", destination="three") == 1.0, (
        "the bound is a queue's"
    )


@pytest.mark.parametrize("name", ["", "other", "a\nb", "\ud800", "nul\0"])
def test_a_name_that_no_label_can_hold_counts_as_other(name: str) -> None:
    instruments = Instruments(["a"])
    instruments.queue("a").destination(name).attempts.inc()
    assert value(instruments, "delivery_attempts_total", queue="a", destination="other") == 1.0
    assert value(instruments, "destination_series", queue="a") == 0.0


def test_an_unknown_kind_of_error_is_counted_as_other() -> None:
    instruments = Instruments(["a"])
    instruments.redis_error("from a later version")
    assert value(instruments, "redis_errors_total", kind="other") == 1.0


def test_threads_lose_no_event_and_keep_the_bound() -> None:
    instruments = Instruments(["a"], max_destinations=5)
    queue = instruments.queue("a")
    start = threading.Barrier(4)

    def count() -> None:
        start.wait()
        for number in range(2000):
            queue.destination(f"host{number % 20}").attempts.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = [
        sample
        for metric in instruments.registry.collect()
        if metric.name == "cbq_delivery_attempts"
        for sample in metric.samples
    ]
    assert sum(sample.value for sample in samples) == 8000
    assert len(samples) == 6


def test_each_scrape_sees_what_has_happened_since_the_one_before() -> None:
    instruments = Instruments(["a"])
    queue = instruments.queue("a")
    task = instruments.task("flush")

    def seen() -> list[float | None]:
        names = ["callbacks_delivered_total", "dispatch_leader", "recovery_ineffective_callbacks"]
        names += ["delivery_lag_seconds_count", "delivery_lag_seconds_sum"]
        found = [value(instruments, name, queue="a") for name in names]
        return [*found, value(instruments, "task_runs_total", task="flush")]

    assert seen() == [0, 0, None, 0, 0, 0]
    queue.delivered.inc(2)
    queue.leader.set(1)
    queue.recovery_ineffective.set(3)
    queue.lag.observe(0.5, 20)
    task.runs.inc()
    assert seen() == [2, 1, 3, 2, 20.5, 1]
    queue.delivered.inc()
    queue.leader.set(0)
    queue.recovery_ineffective.set(None)
    queue.lag.observe(1)
    assert seen() == [3, 0, None, 3, 21.5, 1]
    queue.lag.exemplify(20, {"webhook_id": "msg_1"}, 7.0)
    queue.lag.exemplify(1, {"webhook_id": "msg_2"}, 7.0)
    (lags,) = [metric for metric in instruments.registry.collect() if metric.name == "cbq_delivery_lag_seconds"]
    assert [sample.labels["le"] for sample in lags.samples if sample.exemplar] == ["30.0"], "only of the slow one"
    instruments.forget_queue("a")
    instruments.forget_task("flush")
    assert seen() == [None] * 6
    instruments.queue("a").delivered.inc()
    assert seen() == [1, 0, None, 0, 0, None], "one that comes again begins anew"
