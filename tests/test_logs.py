"""What an operator or a log collector reads."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter import logs

Capture = Callable[..., list[str]]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def written() -> Iterator[Capture]:
    """Log one event under the given settings; returns the lines."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level

    def write(
        log: Callable[[logging.Logger], None],
        style: str = "json",
        *,
        level: str = "info",
        stream: io.StringIO | None = None,
    ) -> list[str]:
        stream = stream or io.StringIO()
        logs.configure(level, style, stream)
        log(logging.getLogger("cbq_exporter.example"))
        return stream.getvalue().splitlines()

    yield write
    root.handlers[:] = kept
    root.setLevel(level)


def _sent(log: logging.Logger) -> None:
    log.info("batch sent", extra={"queue": "callbacks", "count": 100, "took": 0.25, "last": None, "url": "a b\n"})


def _failing(log: logging.Logger) -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        log.exception("task failed", extra={"task": "flush"})


class _Word(StrEnum):
    SIZE = "size"


def test_json_has_the_event_and_its_fields(written: Capture) -> None:
    (line,) = written(_sent)
    fields = json.loads(line)
    assert fields.pop("ts").endswith("Z")
    assert list(fields) == ["level", "logger", "event", "queue", "count", "took", "last", "url"]
    assert fields == {
        "level": "info",
        "logger": "cbq_exporter.example",
        "event": "batch sent",
        "queue": "callbacks",
        "count": 100,
        "took": 0.25,
        "last": None,
        "url": "a b\n",
    }


def test_people_read_one_line_with_the_control_characters_escaped(written: Capture) -> None:
    (line,) = written(_sent, "human")
    assert line[12:] == r' INFO    batch sent  queue=callbacks count=100 took=0.25 last=None url="a b\n"'


def test_an_exception_is_one_string(written: Capture) -> None:
    (line,) = written(_failing)
    assert json.loads(line)["exc"].splitlines()[-1] == "way"
    (line,) = written(_failing, "human")
    assert r'task failed  task=flush exc="ValueError: no\nway (test_logs.py:' in line


def test_debug_shows_people_the_traceback(written: Capture) -> None:
    first, *rest = written(_failing, "human", level="debug")
    assert "exc=" in first
    assert rest[0] == "    Traceback (most recent call last):"


def test_a_forged_line_stays_inside_its_field(written: Capture) -> None:
    hostile = 'x"\r\n{"level":"error"}\x1b[2J\u2028\u202e\ud800'
    for style in ("json", "human"):
        lines = written(lambda log: log.info(hostile, extra={"url": hostile}), style)
        assert len(lines) == 1
        assert lines[0].isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"secret payload", "<14 bytes>"),
        (Path("/data"), "/data"),
        (_Word.SIZE, "size"),
        (float("inf"), "inf"),
        (["a", "b"], "a, b"),
        ({"a": 1}, "{'a': 1}"),
        ("x" * 5000, "x" * 2000 + "… (5000 characters)"),
    ],
)
def test_values_are_plain_and_bounded(written: Capture, value: Any, shown: str) -> None:
    (line,) = written(lambda log: log.info("e", extra={"value": value}))
    assert json.loads(line)["value"] == shown


def test_a_field_cannot_replace_what_every_line_has(written: Capture) -> None:
    (line,) = written(lambda log: log.info("e", extra={"level": "low", "ts": 1, "exc": "none"}))
    fields = json.loads(line)
    assert (fields["level"], fields["level_"], fields["ts_"], fields["exc_"]) == ("info", "low", 1, "none")


def test_auto_is_for_people_only_on_a_terminal(written: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def warn(log: logging.Logger) -> None:
        log.warning("late")

    assert written(warn, "auto")[0].startswith("{")
    assert "\x1b[33mWARNING\x1b[0m late" in written(warn, "auto", stream=_Terminal())[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(warn, "auto", stream=_Terminal())[0].endswith(" WARNING late")


def test_only_what_is_serious_enough_and_no_noise_of_libraries(written: Capture) -> None:
    def everything(log: logging.Logger) -> None:
        log.debug("detail")
        logging.getLogger("apscheduler.executors.default").info("Running job")
        logging.getLogger("aiohttp.access").info("GET /metrics")
        logging.getLogger("aiohttp.server").error("broken")

    assert [json.loads(line)["event"] for line in written(everything)] == ["broken"]
    assert [json.loads(line)["event"] for line in written(everything, level="debug")] == ["detail", "broken"]
    assert [json.loads(line)["event"] for line in written(everything, level="error")] == ["broken"]
