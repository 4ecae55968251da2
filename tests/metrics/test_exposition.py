"""The text of a scrape: exact, sound in both formats, and silent about what is not known."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from prometheus_client import exposition as plain
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cbq_exporter.metrics.catalogue import CATALOGUE, PREFIX, markdown
from cbq_exporter.metrics.exposition import OPENMETRICS, PLAIN, Exposition, choose
from cbq_exporter.metrics.families import families
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import LockView, Mode, QueueView, Snapshot
from tests.metrics import golden
from tests.metrics.snapshots import AT, DOWN, MIXED, counted
from tests.support.skips import skip_or_fail

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def parsed(snapshot: Snapshot, instruments: Instruments | None = None) -> dict[str, Metric]:
    """By the strict parser, which refuses clashing names, samples out of place and wrong units."""
    body = Exposition(instruments or counted()).body(snapshot, OPENMETRICS)
    metrics = text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
    return {metric.name: metric for metric in metrics}


def test_a_fixed_state_makes_exactly_the_golden_text() -> None:
    assert golden.text() == golden.FILE.read_text(), "python -m tests.metrics.golden writes it anew"


@pytest.mark.parametrize("snapshot", [MIXED, DOWN], ids=["up", "down"])
def test_promtool_has_nothing_to_say(snapshot: Snapshot) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_or_fail("promtool is needed")
    body = Exposition(counted()).body(snapshot, PLAIN)
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_is_exposed_is_the_catalogue_with_its_types_and_labels() -> None:
    found = {name: metric for name, metric in parsed(MIXED).items() if name.startswith(PREFIX)}
    # Families are named without the counters' suffix.
    assert set(found) == {one.full_name.removesuffix("_total") for one in CATALOGUE}
    for one in CATALOGUE:
        metric = found[one.full_name.removesuffix("_total")]
        assert metric.type == one.type
        assert metric.documentation == one.help
        labels = {label for sample in metric.samples for label in sample.labels}
        assert labels - {"le"} == set(one.labels), one.name
    labels = {label for one in CATALOGUE for label in one.labels}
    assert labels.isdisjoint({"job", "instance", "type", "le", "url", "error", "id", "item", "lock", "webhook_id"})


def test_the_process_is_measured_too() -> None:
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_gc_collections"} <= set(parsed(DOWN))


def test_with_redis_down_nothing_of_it_is_left_but_that() -> None:
    found = {metric.name: metric for metric in families(DOWN)}
    configured = {"cbq_queue_info"}
    assert set(found) == {"cbq_up", "cbq_scrape_duration_seconds", "cbq_scrape_collector_success"} | configured
    assert [sample.value for sample in found["cbq_up"].samples] == [0.0]
    assert {sample.value for sample in found["cbq_scrape_collector_success"].samples} == {0.0}
    assert "cbq_callbacks_delivered" in parsed(DOWN), "the daemon's own counters stay"


def test_a_queue_that_was_read_before_redis_failed_is_not_shown_either() -> None:
    stale = Snapshot(up=False, at=AT, duration=1.0, queues=MIXED.queues, memory_used=1, memory_max=2)
    assert {metric.name for metric in families(stale)} == {metric.name for metric in families(DOWN)}


def test_unknown_is_absent_and_a_free_lock_is_zero() -> None:
    def samples(view: QueueView) -> dict[str, float]:
        snapshot = Snapshot(up=True, at=AT, duration=0.1, queues=(view,), memory_used=1)
        return {
            sample.name: sample.value
            for metric in families(snapshot)
            for sample in metric.samples
            if sample.labels.get("queue") == "q" and sample.name != "cbq_queue_info"
        }

    free = samples(QueueView("q", Mode.OBSERVE))
    lock = dict.fromkeys(("cbq_lock_held", "cbq_lock_without_expiry", "cbq_lock_stale"), 0.0)
    assert free == {"cbq_scrape_collector_success": 1.0} | lock
    assert samples(QueueView("q", Mode.OBSERVE, error="no permission")) == {"cbq_scrape_collector_success": 0.0}
    endless = samples(QueueView("q", Mode.OBSERVE, lock=LockView("x", None, ours=False)))
    assert endless["cbq_lock_without_expiry"] == 1.0
    assert "cbq_lock_ttl_seconds" not in endless, "no expiry is not a number of seconds"
    assert "cbq_lock_stale" not in endless, "nobody has seen since when it is held"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text;q=0.1,text/plain;version=0.0.4;q=0.9", PLAIN),
        ("application/openmetrics-text;q=0.2,text/*;q=0.9", PLAIN),
        ("application/openmetrics-text;q=0.2,*/*", PLAIN),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.1,*/*", OPENMETRICS),
        ("application/openmetrics-text,*/*", OPENMETRICS),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=nan", PLAIN),
        ("application/openmetrics-text;version=7.7.7", PLAIN),
        ("application/openmetrics-text;version=one", PLAIN),
        (";;;===,,,;q=,\x00", PLAIN),
    ],
)
def test_the_format_is_negotiated_and_no_header_is_an_error(accept: str | None, expected: str) -> None:
    assert choose(accept) == expected


@pytest.mark.parametrize("content_type", [OPENMETRICS, PLAIN])
def test_each_format_ends_as_it_has_to(content_type: str) -> None:
    body = Exposition(counted()).body(MIXED, content_type)
    assert body.endswith(b"\n# EOF\n") == (content_type == OPENMETRICS)


@pytest.mark.parametrize("content_type", [OPENMETRICS, PLAIN])
def test_what_is_remembered_between_scrapes_changes_nothing(content_type: str) -> None:
    """Whatever came, went or was counted meanwhile, the text is what the library writes of all of it."""
    instruments, dice = counted(), random.Random(5)
    exposition = Exposition(instruments)
    for number in range(60):
        happen(instruments, dice, number)
        views = dice.sample(MIXED.queues, dice.randrange(5))
        snapshot = dice.choice([MIXED, DOWN, replace(MIXED, queues=tuple(views), duration=dice.random())])
        body = exposition.body(snapshot, content_type)
        whole = of_the_library([*families(snapshot), *instruments.registry.collect()], content_type)
        assert without_the_process(body) == without_the_process(whole)


def happen(instruments: Instruments, dice: random.Random, number: int) -> None:
    """Some of what may happen between two scrapes."""
    name = dice.choice(["callbacks", "invoices", 'new "queue"\\\n # {x="1"} 1'])
    queue = instruments.queue(name)
    destination = queue.destination(dice.choice(["one.example", "two.example", "last.example"]))
    task = f"task{dice.randrange(5)}"
    may_happen: list[Callable[[], object]] = [
        lambda: queue.lag.observe(dice.random(), 10 ** dice.uniform(-4, 6)),
        lambda: queue.lag.exemplify(10 ** dice.uniform(0, 5), {"webhook_id": f"msg_{number}"}, AT + number),
        lambda: destination.attempts.inc(10 ** dice.randrange(8)),
        lambda: destination.in_flight.set(dice.randrange(3)),
        lambda: queue.recovery_ineffective.set(dice.choice([None, 0.0, 7.0])),
        lambda: instruments.task(task).duration.observe(dice.random()),
        lambda: instruments.forget_task(task),
        lambda: instruments.forget_queue(name),
    ]
    for one in may_happen:
        if dice.random() < 0.4:
            one()


def of_the_library(metrics: list[Metric], content_type: str) -> bytes:
    if content_type == PLAIN:
        return plain.generate_latest(Together(metrics))
    body: bytes = openmetrics.generate_latest(Together(metrics))  # type: ignore[no-untyped-call]
    return body


@dataclass
class Together(Collector):
    all: list[Metric]

    def collect(self) -> list[Metric]:
        return self.all


def without_the_process(text: bytes) -> list[str]:
    """Its numbers change by the millisecond."""
    return [line for line in text.decode().split("\n") if not line.startswith(("process_", "python_"))]


def test_no_created_series() -> None:
    assert b"_created" not in Exposition(counted()).body(MIXED, OPENMETRICS)


def test_the_table_for_the_documentation_names_every_metric_once() -> None:
    rows = markdown().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [one.full_name for one in CATALOGUE]
    assert {row.count("|") for row in rows} == {6}
