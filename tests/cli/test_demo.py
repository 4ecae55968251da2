"""``demo``: it counts right, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cbq_exporter.cli.demo import story
from cbq_exporter.cli.demo.process import Totals
from cbq_exporter.cli.demo.reckoning import reckon
from cbq_exporter.cli.demo.view import summary
from cbq_exporter.model import DeadLetter, Failure
from tests.support.daemons import until
from tests.support.leftovers import needs_proc, processes_of

ACCEPTED = {b"one": 1, b"two": 2, b"three": 3}


def _dead(payload: bytes | None, reason: str = "rejected") -> DeadLetter:
    return DeadLetter("id", reason, "", "", 1, 0.0, 0.0, Failure("http_4xx"), 3, payload)


def test_all_accounted_for() -> None:
    result = reckon(ACCEPTED, {1: 1, 2: 3}, [_dead(b"three")])
    assert (result.exact, result.again, result.dead_by_reason) == (True, 2, {"rejected": 1})
    assert summary(result).splitlines() == [
        "",
        "accepted 3 = delivered 2 + dead 1",
        "dead     1 rejected",
        "again    2 delivered twice: the answer died with the killed daemon",
        "missing  0",
        "",
        "Nothing was lost.",
    ]


def test_one_that_is_lost_is_found() -> None:
    result = reckon(ACCEPTED, {1: 5}, [_dead(b"three"), _dead(None), _dead(b"unknown")])
    assert (result.exact, result.missing) == (False, 1)
    assert "accepted 3 is not delivered 1 + dead 1" in summary(result)


def test_one_that_is_still_on_its_way_is_told() -> None:
    result = reckon(ACCEPTED, {1: 1, 2: 1}, [], {"pending": 0, "processing": 1, "retry": 0})
    assert not result.exact
    assert "waiting  1 processing: time was up before they were settled" in summary(result)


def test_delivered_and_dead_is_one_callback() -> None:
    assert reckon(ACCEPTED, {1: 1, 2: 1, 3: 1}, [_dead(b"three")]).dead == 0


def test_counters_outlive_the_daemon() -> None:
    totals = Totals()
    for value in (5, 8, 2, 3):  # killed after 8
        totals.add(f'# TYPE x counter\nx_total{{kind="a",queue="q"}} {value}\nx_total{{kind="b",queue="q"}} 1\n')
    assert totals.of("x_total") == 12
    assert totals.by("x_total", "kind") == {"a": 11, "b": 1}


def test_the_story_is_in_order() -> None:
    begins = [scene.begins for scene in story.SCENES]
    assert begins == sorted(begins)
    assert all(len(scene.caption) <= 2 * 76 for scene in story.SCENES)  # two lines of a picture 80 columns wide
    assert story.scene_at(0.0) is story.SCENES[0]
    assert story.scene_at(7.0) is story.SCENES[-1]


def _start(folder: str, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CBQ_")}
    return subprocess.Popen(
        [sys.executable, "-m", "cbq_exporter", "demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": folder},
    )


@needs_proc
@pytest.mark.slow
def test_from_start_to_end() -> None:
    with tempfile.TemporaryDirectory(prefix="cbq-") as folder:
        with _start(folder, "--seconds", "6") as process:
            shown, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), shown
        positions = [shown.index(f"{scene.title}: {scene.caption}\n") for scene in story.SCENES]
        assert positions == sorted(positions)
        accepted, delivered, dead = re.findall(r"accepted (\d+) = delivered (\d+) \+ dead (\d+)\n", shown)[0]
        assert int(accepted) == int(delivered) + int(dead)
        assert int(accepted) > 200
        assert re.search(r"^dead .*3 invalid_json", shown, re.MULTILINE)
        assert shown.endswith("\nNothing was lost.\n")
        assert (os.listdir(folder), processes_of(folder)) == ([], [])


@needs_proc
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_end_while_the_daemon_is_dead_leaves_nothing(number: int, code: int) -> None:
    with tempfile.TemporaryDirectory(prefix="cbq-") as folder:
        process = _start(folder, "--seconds", "30")
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Callbacks arrive"):
                    break
            # The demo itself kills it in the middle of its time, and then begins another.
            (daemon,) = until(lambda: [one for one in Path("/proc").glob("[0-9]*/cmdline") if _serves(one, folder)])
            os.kill(int(daemon.parent.name), signal.SIGKILL)
            while _serves(daemon, folder):
                time.sleep(0.005)
            assert processes_of(folder)  # its store lives on
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, errors) == (code, "cbq-exporter: interrupted\n" if code == 130 else "")
        assert (os.listdir(folder), processes_of(folder)) == ([], [])


def _serves(cmdline: Path, folder: str) -> bool:
    try:
        command = cmdline.read_text()
    except OSError:
        return False
    return "\0serve\0" in command and folder in command
