"""Starting programs and ending them by their ids, and what the kernel says of a process and its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PERIOD = 0.1  # seconds between two samples
# A look for new children reads all of /proc, which takes more than a millisecond: often while a program starts its
# workers, and seldom afterwards.
_STARTING = 5.0
_FAMILY_PERIOD = 1.0


class BenchmarkError(Exception):
    """One line: what failed and what was seen instead."""


class Program:
    """A started program. What it prints goes to ``log``; leaving the context ends it and its children."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environ or {})},
                cwd=folder,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self, *, may_end: bool = False) -> None:
        """Raises where the program has ended by itself; with ``may_end``, only where it has ended badly."""
        code = self._process.poll()
        if code is not None and not (may_end and code == 0):
            raise BenchmarkError(f"it ended with exit code {code}{self.last_words()}")

    def wait(self, timeout: float) -> None:
        """Until it has ended by itself, and well."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"it has not ended after {timeout:.0f} s{self.last_words()}") from None
        if code:
            raise BenchmarkError(f"it ended with exit code {code}{self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return "; the end of its output:\n    " + "\n    ".join(lines) if lines else " without a word"

    def stop(self, grace: float = 5.0) -> None:
        """SIGTERM; what is left of it and of its children after ``grace`` seconds gets SIGKILL."""
        members = family(self.pid)
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        for pid, began in members.items():
            if _began(pid) == began:  # the same process, not a later one with its id
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (the third); None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _began(pid: int) -> str | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else fields[19]


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process and all its threads, by its CPU clock: /proc knows them to 10 ms only.

    The clock's number is what clock_getcpuclockid(3) gives, which Python does not offer.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def family(pid: int) -> dict[int, str]:
    """The process and all that descend from it, each with its time of birth in the kernel's ticks."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None:
                children.setdefault(int(fields[1]), []).append((int(entry), fields[19]))
    own = _stat(pid)
    found = {} if own is None else {pid: own[19]}
    todo = list(found)
    while todo:
        for child, began in children.get(todo.pop(), ()):
            found[child] = began
            todo.append(child)
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """``at`` in epoch seconds, ``cpu`` in seconds since the process began, ``rss`` in bytes; children included."""

    at: float
    cpu: float
    rss: int


class Sampler:
    """Looks at a process and its children ten times a second, from a thread, while the context lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members = [pid]
        self._settled_at = time.monotonic() + _STARTING
        self._next_family = 0.0
        self._samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            self._samples.append(self._look())
            if self._stop.wait(_PERIOD):
                return

    def _look(self) -> Sample:
        if time.monotonic() >= self._next_family:
            self._members = list(family(self._pid))
            self._next_family = time.monotonic() + (_FAMILY_PERIOD if time.monotonic() > self._settled_at else 0.0)
        at, cpu, pages = time.time(), 0.0, 0
        for pid in self._members:
            fields = _stat(pid)
            if fields is not None:
                cpu += _cpu_of(pid) + sum(map(int, fields[13:15])) / _TICKS  # its own, and of children it has reaped
                pages += int(fields[21])
        return Sample(at, cpu, pages * _PAGE)

    @property
    def samples(self) -> Sequence[Sample]:
        return tuple(self._samples)

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds used from ``start`` to ``end``, in epoch seconds; between samples it is a straight line."""
        return self._cpu_at(end) - self._cpu_at(start)

    def _cpu_at(self, at: float) -> float:
        before = after = self._samples[0]
        for after in self._samples:
            if after.at >= at:
                break
            before = after
        if after.at <= before.at or at <= before.at:
            return before.cpu
        share = min(1.0, (at - before.at) / (after.at - before.at))
        return before.cpu + share * (after.cpu - before.cpu)

    @property
    def peak_rss(self) -> int:
        return max(sample.rss for sample in self._samples)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._samples.append(self._look())
