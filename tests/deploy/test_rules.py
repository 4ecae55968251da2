"""The rules as data, and the files that are made of them: each alert fires where it must, and nowhere else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbq_exporter.metrics.catalogue import CATALOGUE
from cbq_exporter.model import FailureKind, Mode, State
from monitoring import write
from monitoring.rules import ALERTS, RECORDINGS
from tests.support.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
UNIT_TESTS = sorted((ROOT / "deploy/prometheus/tests").glob("*.test.yml"))

EXPRESSIONS = {f"{alert.name}-{alert.severity}": alert.expr for alert in ALERTS}
EXPRESSIONS |= {recording.name: recording.expr for recording in RECORDINGS}

_OF_SCRAPES = {"job", "instance"}
_LABELS = {one.full_name: {*one.labels, *_OF_SCRAPES} for one in CATALOGUE} | {"up": _OF_SCRAPES}
_LABELS |= {f"{one.full_name}_bucket": {*one.labels, *_OF_SCRAPES, "le"} for one in CATALOGUE if one.buckets}
_WORDS: dict[str, set[str]] = {"state": set(State), "mode": set(Mode), "kind": set(FailureKind)}


def test_promtool_accepts_the_files() -> None:
    for command in (["check", "rules", write.RECORDING_RULES, write.ALERTING_RULES],
                    ["check", "config", "deploy/prometheus/prometheus.yml"]):  # fmt: skip
        _promtool(*command)


@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.name)
def test_alerts_fire_where_they_must_and_nowhere_else(file: Path) -> None:
    _promtool("test", "rules", str(file))


def test_each_alert_is_tried_both_ways() -> None:
    fires: set[tuple[str, str]] = set()
    silent: set[str] = set()
    for group in _groups():
        for test in group["promql_expr_test"]:
            for sample in test.get("exp_samples", []):
                fires |= set(re.findall(r'^ALERTS\{alertname="(\w+)".*severity="(\w+)"', sample["labels"]))
            if not test.get("exp_samples"):
                silent |= set(re.findall(r"Cbq\w+", group["name"]))
    assert fires == {(alert.name, alert.severity) for alert in ALERTS}
    assert silent >= {alert.name for alert in ALERTS}


def test_the_quiet_world_has_every_series_that_an_alert_looks_at() -> None:
    """So that none is silent there for want of data."""
    (quiet,) = [file for file in UNIT_TESTS if file.name == "quiet.test.yml"]
    there = set(re.findall(r"\b(?:cbq_\w+|up)(?=\{)", quiet.read_text()))
    asked = {name for expr in EXPRESSIONS.values() for name, _ in _selectors(expr)}
    assert there == {name for name in asked if name in _LABELS}


@pytest.mark.parametrize("expr", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_rules_ask_for_metrics_and_labels_that_exist(expr: str) -> None:
    recorded = {one.name for one in RECORDINGS}
    known: set[str] = set()
    for name, matchers in _selectors(expr):
        if ":" in name:
            assert name in recorded
            known |= set(name.partition(":")[0].split("_"))
            continue
        assert name in _LABELS
        known |= _LABELS[name]
        for label, value in matchers:
            assert label in _LABELS[name], f"{name} has no label {label}"
            assert label not in _WORDS or value in _WORDS[label], f"{label} is never {value}"
    grouped = re.findall(r"\b(?:by|on|without|ignoring) \(([^)]*)\)", expr)
    assert {label for names in grouped for label in re.findall(r"\w+", names)} <= known


@pytest.mark.parametrize("expr", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_what_redis_says_is_never_summed_over_replicas(expr: str) -> None:
    counted = {one.full_name for one in CATALOGUE if one.type == "counter"} | {"cbq_dispatch_leader"}
    for summed in re.findall(r"\bsum by \([^)]*\) \((.*)", expr):
        assert {name for name, _ in _selectors(summed)} <= counted


def test_alerts_say_what_people_need() -> None:
    assert len({(alert.name, alert.severity) for alert in ALERTS}) == len(ALERTS)
    assert len({alert.name for alert in ALERTS}) >= 15
    for alert in ALERTS:
        assert re.fullmatch(r"Cbq([A-Z][a-z]+)+", alert.name)
        used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
        assert used <= set(alert.scope), f"{alert.name} speaks of labels that it does not have"


def _selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The name of each metric, and its matchers as label and value."""
    for name, matchers in re.findall(r"(?<![\w:{.])((?:[a-z_]+:)?(?:cbq_[\w:]+|up\b))(?:\{([^}]*)\})?", expr):
        yield name, re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', matchers)


def _groups() -> Iterator[dict[str, Any]]:
    for file in UNIT_TESTS:
        yield from yaml.safe_load(file.read_text())["tests"]


def _promtool(*arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
