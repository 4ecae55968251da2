"""The closed loop on real programs, with the shipped rules: what breaks is healed in time, and once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop import shipped
from loop.chapters import CHAPTERS, Chapter
from loop.story import Event, Story
from loop.world import World, item, running
from tests.support.daemons import until
from tests.support.leftovers import needs_proc, processes_of
from tests.support.prometheus import Prometheus, program

ROOT = Path(__file__).resolve().parents[2]
(STUCK,) = [chapter for chapter in CHAPTERS if chapter.alert == "CbqStuckItems"]


# --- what is shipped, made quick ----------------------------------------------------------------------


def test_only_durations_of_the_shipped_rules_are_changed(tmp_path: Path) -> None:
    for name, quick in shipped.rules().items():
        original = yaml.safe_load((shipped.DEPLOY / "prometheus" / name).read_text())
        assert _without_durations(quick) == _without_durations(original)
        (tmp_path / name).write_text(json.dumps(quick))
        checked = [program("promtool"), "check", "rules", str(tmp_path / name)]
        subprocess.run(checked, check=True, capture_output=True, timeout=60)
    rule = {"expr": "max(x:rate10m[10m] offset 1h) > sum(y[1h:1m])", "for": "5m", "labels": {"severity": "10m"}}
    assert shipped.quick(rule) == {**rule, "expr": "max(x:rate10m[20s] offset 120s) > sum(y[120s:2s])", "for": "10s"}


def _without_durations(rules: dict[str, Any]) -> str:
    return re.sub(r'(?<=\[|"|:)\d+[smhd](?=\]|"|:)|(?<=offset )\d+[smhd]', "?", json.dumps(rules))


# --- the loop -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories() -> Iterator[Mapping[str, Future[Story]]]:
    """All chapters at once, by their queues: two daemons, and one Alertmanager that posts to both."""
    with running(*(chapter.settings for chapter in CHAPTERS)) as world, ThreadPoolExecutor() as pool:
        yield {chapter.name: pool.submit(chapter.play, world, _nobody) for chapter in CHAPTERS}


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_what_breaks_is_healed_in_time_and_once(stories: Mapping[str, Future[Story]], chapter: Chapter) -> None:
    """What is done twice is in the audit twice."""
    assert chapter.wrong(stories[chapter.name].result(120)) == []


@pytest.mark.slow
def test_an_alert_is_acted_on_once_though_redis_is_away_at_first_and_it_is_repeated_afterwards() -> None:
    """Prometheus stands still meanwhile: to Alertmanager the alert goes on."""

    def change(config: dict[str, Any]) -> None:
        config["route"]["routes"][0] |= {"group_wait": "3s", "group_interval": "1s", "repeat_interval": "1s"}

    with running(STUCK.settings, change=change) as world:
        client: Any = world.client
        client.rpush(f"{STUCK.name}:processing", item(world.receiver.url("/after"), 1))
        until(lambda: STUCK.alert in _alerts(world), timeout=60)
        with _standing_still(world.prometheus):
            world.server.kill()
            until(lambda: _received(world, "failed") >= 4, timeout=60)  # 503 of each, and they are asked again
            assert _received(world, "accepted") == 0
            world.server.start()
            until(lambda: not world.unsettled(STUCK.name), timeout=30, what=lambda: world.audited(STUCK.name))
            nothing = ("duplicate", "cooldown", "not_needed")
            until(lambda: sum(_received(world, outcome) for outcome in nothing) >= 5, timeout=30)
        assert _received(world, "accepted") == 1
        assert [entry["operation"] for entry in world.audited(STUCK.name) if entry["result"] == "done"] == ["recover"]
        assert [one.path for one in world.receiver.requests if one.path == "/after"] == ["/after"]


def _alerts(world: World) -> set[str]:
    """Those that Alertmanager has."""
    return {one["labels"]["alertname"] for one in world.alertmanager.alerts()}


def _received(world: World, outcome: str) -> float:
    return world.counted("cbq_alerts_received_total", outcome=outcome)


@contextmanager
def _standing_still(prometheus: Prometheus) -> Iterator[None]:
    assert prometheus.process is not None
    prometheus.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        prometheus.process.send_signal(signal.SIGCONT)


# --- the command --------------------------------------------------------------------------------------


@needs_proc
@pytest.mark.slow
def test_the_command_tells_the_story() -> None:
    with tempfile.TemporaryDirectory(prefix="cbq-") as folder:
        with _loop(folder, "orders") as process:
            shown, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), shown
        assert re.search(r"s  daemon +unlock by schedule: done\n.* s  receiver +has 3 callbacks\n", shown, re.DOTALL)
        assert re.search(r"^orders +- +- +\d\.\d s +2\.5 s +schedule, unlock *$", shown, re.MULTILINE)
        assert (os.listdir(folder), processes_of(folder)) == ([], [])


@needs_proc
@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="cbq-") as folder:
        process = _loop(folder, "invoices")
        try:
            assert process.stdout is not None
            assert any("fault" in line for line in process.stdout)
            assert len(processes_of(folder)) >= 5  # a store, two daemons, Alertmanager, Prometheus
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, errors.count("\n")) == (130, 1), errors
        assert (os.listdir(folder), processes_of(folder)) == ([], [])


def test_a_queue_that_is_in_no_chapter_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="cbq-") as folder, _loop(folder, "bills") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no such queue: bills; there are orders, invoices," in errors


def _loop(folder: str, *names: str) -> subprocess.Popen[str]:
    program("prometheus")
    program("prometheus-alertmanager")
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "loop", *names],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _nobody(event: Event) -> None:
    """It is told to nobody."""
