"""Runs the transcripts of a page: each command for real, its output held to what the page shows.

Numbers stand as they are. What differs from run to run (ids, times, ages, sizes, names of machines) is compared by
its kind, columns by their words; a line of ``…`` stands for any lines, and ``…`` in a line for any text.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.docs.pages import Block, Page, Step, steps
from tests.support.daemons import until

_ID = re.compile(r"\b\d{13}-\d+-\d+\b")

_KINDS = (
    (_ID, "ID"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "SHA1"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
    (re.compile(r"\bcbq-exporter_\d+_\w+"), "HOLDER"),
    (re.compile(r"\bcli:\S+"), "PERSON"),
    (re.compile(r"\b(redis|valkey) \d+\.\d+\.\d+"), "SERVER"),
    (re.compile(r"\bcbq-exporter[ /]\d+\.\d+\.\S+"), "PROGRAM"),
    (re.compile(r"\b[\d.,]+ ([KMG]i)?B\b"), "SIZE"),
    (re.compile(r"(?<![\w.])(\d+(\.\d+)?(ms|[smhd]))+(?!\w)|\b\d+ (ms|s)\b"), "AGE"),
    (re.compile(r"\s+"), " "),
)

# What only looks may be asked again until it shows what the page shows.
_LOOKS = re.compile(r"(cbq-exporter (status|doctor|audit|dead list|dead show|alerts list)|curl|cat) ")
_EXPORT = re.compile(r"export (\w+)=(\S+)")
_PATIENCE = 30.0  # seconds


class Console:
    """Terminals in ``folder``. Use as a context manager: what still runs is ended with it.

    ``here`` says what takes the place of addresses and commands of a page, in commands and in output.
    """

    def __init__(self, folder: Path, here: Mapping[str, str]) -> None:
        self.folder = folder
        self._here = dict(here)
        self._ids: dict[str, str] = {}
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CBQ_")}
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment["PYTHONUNBUFFERED"] = "1"
        self._environment["COLUMNS"] = "160"  # as wide as the pages show it, wherever the tests run
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self, page: Page) -> None:
        """Do what the page does, from its first transcript to its last."""
        for block in page.of("console"):
            self.do(block)

    def do(self, block: Block) -> None:
        terminal = re.search(r"\bterminal=(\w+)", block.info)
        for step in steps(block):
            if terminal:
                self._start(terminal[1], step)
            elif exported := _EXPORT.fullmatch(self._as_here(step.command)):
                self._environment[exported[1]] = self._expanded(exported[2])
            else:
                self._run(step)

    def _run(self, step: Step) -> None:
        command = self._as_here(step.command)
        deadline = time.monotonic() + _PATIENCE
        while True:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
            wrote = done.stdout.decode()
            if self._is_shown(step, wrote):
                return
            if not _LOOKS.match(f"{command} ") or time.monotonic() > deadline:
                raise AssertionError(f"{step.place}: $ {command}\nwrote:\n{wrote}\nbut the page shows:\n{_text(step)}")
            time.sleep(0.2)

    def _start(self, terminal: str, step: Step) -> None:
        """Leave it running, once it has written what the page shows; what ran in this terminal is ended first."""
        self._end(terminal)
        log = self.folder / f"{terminal}.log"
        with log.open("wb") as out:
            self._running[terminal] = subprocess.Popen(
                ["bash", "-c", f"exec {self._as_here(step.command)}"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        until(
            lambda: self._is_shown(step, log.read_text()) or self._running[terminal].poll() is not None,
            _PATIENCE,
            what=lambda: f"{step.place}: wrote:\n{log.read_text()}\nbut the page shows:\n{_text(step)}",
        )
        assert self._running[terminal].poll() is None, f"{step.place}: ended with:\n{log.read_text()}"

    def _is_shown(self, step: Step, wrote: str) -> bool:
        """Whether ``wrote`` is what the page shows. From then on its ids stand for those of the page."""
        pattern = "".join(
            r"(?:.*\n)*" if line.strip() == "…" else _pattern(self._as_here(line)) + r"\n" for line in step.output
        )
        lines = "".join(f"{_blurred(line)}\n" for line in wrote.splitlines() if line.strip())
        if re.fullmatch(pattern, lines) is None:
            return False
        self._ids.update(zip(_ID.findall(_text(step)), _ID.findall(wrote), strict=False))
        return True

    def _as_here(self, text: str) -> str:
        for shown, real in (self._here | self._ids).items():
            text = text.replace(shown, real)
        return text

    def _expanded(self, text: str) -> str:
        known = self._environment | {"PWD": str(self.folder)}
        return re.sub(r"\$(\w+)", lambda name: known[name[1]], text)

    def _end(self, terminal: str) -> None:
        process = self._running.pop(terminal, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in list(self._running):
            self._end(terminal)


def _text(step: Step) -> str:
    return "\n".join(step.output)


def _blurred(line: str) -> str:
    for pattern, kind in _KINDS:
        line = pattern.sub(kind, line)
    return line.strip()


def _pattern(line: str) -> str:
    return re.escape(_blurred(line)).replace("…", ".*")
