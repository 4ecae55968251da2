"""Receivers that take their time, and bodies of a megabyte: what one daemon sends, and bare pycurl beside it."""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ours
from benchmarks.processes import BenchmarkError, Program, Sampler
from benchmarks.servers import RedisServer

_MIB = 2**20
_TIMEOUT = 180.0
_POLL = 0.05
_DELAY = 0.02  # seconds
_OPEN_TO_SLOW = 1024
_OPEN_FOR_LARGE = 16
_LARGE = _MIB  # bytes of a body
_ROOM = 64 * _MIB  # delivery.max_in_flight_bytes, as it is by default


@dataclass(frozen=True, slots=True)
class Sent:
    """``rate`` in requests a second and ``throughput`` in bytes a second, from the first answer to the last; ``cpu`` in
    seconds and ``rss`` in bytes, at its peak, children included.
    """

    count: int
    rate: float
    throughput: float
    cpu: float
    rss: int


@dataclass(frozen=True, slots=True)
class Receivers:
    """``large`` and ``bare`` have one entry a round, in turn."""

    slow: list[Sent]
    large: list[Sent]
    bare: list[Sent]

    @property
    def share(self) -> float:
        """The part of bare pycurl's bytes a second that we reach: the median of the rounds' own ratios."""
        pairs = zip(self.large, self.bare, strict=True)
        return statistics.median(mine.throughput / its.throughput for mine, its in pairs)

    @property
    def overhead(self) -> int:
        """Resident bytes beyond what may be in flight, at most."""
        return max(one.rss for one in self.large) - _ROOM


def measure(rounds: int, slow: int, large: int) -> Receivers:
    """``slow`` and ``large`` are numbers of callbacks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = Receivers([], [], [])
    for _ in range(rounds):
        found.slow.append(_daemon(slow, ours.item, delay=_DELAY, concurrency=_OPEN_TO_SLOW))
        _tell("receiver answering after 20 ms", found.slow[-1])
        found.large.append(_daemon(large, _large_item, delay=0.0, concurrency=_OPEN_FOR_LARGE))
        _tell("bodies of 1 MiB", found.large[-1])
        found.bare.append(_bare(large))
        _tell("bodies of 1 MiB, bare pycurl", found.bare[-1])
    return found


def _tell(what: str, sent: Sent) -> None:
    text = f"{sent.rate:,.0f}/s, {sent.throughput / _MIB:,.0f} MiB/s, CPU {sent.cpu:.1f} s, {sent.rss / _MIB:.0f} MiB"
    print(f"{what}: {text}", file=sys.stderr)


def _large_item(url: str, number: int) -> bytes:
    head, tail = b'{"url":"%s","task_id":"task-%d","data":"' % (url.encode(), number), b'"}'
    return head + b"R0lGODlh" * ((_LARGE - 2) // 8) + tail


def _daemon(count: int, item: Callable[[str, int], bytes], *, delay: float, concurrency: int) -> Sent:
    with tempfile.TemporaryDirectory(prefix="cbq-bench-") as name, RedisServer() as server, _receiver(delay) as port:
        folder = Path(name)
        url = f"http://127.0.0.1:{port}/"
        for first in range(0, count, 100):
            server.client.rpush(ours.PENDING, *[item(url, number) for number in range(first, min(first + 100, count))])
        command = ours.command(folder, server.url, concurrency=concurrency)
        ask = server.client.execute_command
        return _watch(command, folder / "log", port, count, lambda: ours.left(ask))


def _bare(count: int) -> Sent:
    with tempfile.TemporaryDirectory(prefix="cbq-bench-") as name, _receiver(0.0) as port:
        words = [f"http://127.0.0.1:{port}/", str(count), str(_LARGE), str(_OPEN_FOR_LARGE)]
        command = [sys.executable, "-m", "benchmarks.workers.bare_large", *words]
        return _watch(command, Path(name) / "log", port, count, lambda: 0)


def _watch(command: Sequence[str], log: Path, port: int, count: int, left: Callable[[], int]) -> Sent:
    deadline = time.monotonic() + _TIMEOUT
    with Program(command, log, folder=ours.ROOT) as program, Sampler(program.pid) as sampler:
        began = time.time()
        while (tally := _tally(port))[0] < count or left():
            program.check(may_end=True)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{tally[0]:.0f} of {count} after {_TIMEOUT:.0f} s{program.last_words()}")
            time.sleep(_POLL)
        cpu = sampler.cpu_between(began, time.time())
        rss = sampler.peak_rss
    requests, size, first, last = tally
    if requests != count:
        raise BenchmarkError(f"{requests:.0f} requests for {count} callbacks")
    elapsed = last - first
    return Sent(count, (count - 1) / elapsed, size * (count - 1) / count / elapsed, cpu, rss)


def _tally(port: int) -> tuple[float, float, float, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
        requests, size, first, last = json.load(answer)
    return requests, size, first, last


@contextlib.contextmanager
def _receiver(delay: float) -> Iterator[int]:
    """The port of a receiver, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="cbq-bench-receiver-") as name:
        log = Path(name) / "log"
        command = [sys.executable, "-m", "benchmarks.patient_receiver", str(delay)]
        with Program(command, log, folder=ours.ROOT) as program:
            deadline = time.monotonic() + 20
            while not (text := log.read_text()).endswith("\n"):
                program.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError("the receiver does not start")
                time.sleep(0.01)
            yield int(text)
