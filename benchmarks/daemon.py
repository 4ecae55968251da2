"""Our daemon with an empty queue and a receiver that notes arrivals: for latency, and for what idling costs."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ours
from benchmarks.processes import BenchmarkError, Program, Sampler
from benchmarks.servers import CommandCount, RedisServer

_RATE = 50  # callbacks a second
_WARM_UP = 20
_TIMEOUT = 30.0
_SETTLE = 3.0  # seconds until idling is measured: the last callback is settled and housekeeping has begun


@dataclass(frozen=True, slots=True)
class Latency:
    """From RPUSH to the request's last byte at the receiver, in milliseconds."""

    count: int
    median: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True)
class Idle:
    """``cpu`` as a share of one core, ``commands`` a second, for a daemon with one queue."""

    seconds: float
    cpu: float
    commands: float


class _Running:
    """A daemon and a receiver, both up, with open connections between them."""

    def __init__(self, server: RedisServer, receiver: Program, daemon: Program, url: str) -> None:
        self.server = server
        self.pid = daemon.pid
        self._receiver = receiver
        self._daemon = daemon
        self._url = url

    def push(self, number: int) -> int:
        """Queues a callback; the time just before that, in monotonic nanoseconds."""
        item = ours.item(self._url, number)
        at = time.monotonic_ns()
        self.server.client.rpush(ours.PENDING, item)
        return at

    def arrivals(self) -> dict[int, int]:
        """When each callback arrived; of one that is delivered twice, the first counts."""
        seen: dict[int, int] = {}
        for line in _lines(self._receiver.log)[1:]:
            number, at = map(int, line.split())
            seen.setdefault(number, at)
        return seen

    def wait_for(self, numbers: Iterable[int]) -> None:
        wanted = set(numbers)
        _until(lambda: wanted <= self.arrivals().keys(), "not all callbacks arrive", self._daemon)


@contextmanager
def _running() -> Iterator[_Running]:
    with (
        tempfile.TemporaryDirectory(prefix="cbq-bench-") as name,
        RedisServer() as server,
        Program([sys.executable, "-m", "benchmarks.receiver"], Path(name, "receiver"), folder=ours.ROOT) as receiver,
        Program(ours.command(Path(name), server.url), Path(name, "daemon"), folder=ours.ROOT) as daemon,
    ):
        _until(lambda: _lines(receiver.log), "the receiver does not start", receiver)
        running = _Running(server, receiver, daemon, f"http://127.0.0.1:{_lines(receiver.log)[0]}/callback")
        # The first one shows that the daemon is up, the others that connections are open.
        for number in range(-_WARM_UP, 0):
            running.push(number)
            running.wait_for([number])
        yield running
        daemon.check()


def latency(seconds: float) -> Latency:
    """Callbacks at an uneven pace, so that a poll of any period would show."""
    pace = random.Random(20261124)
    count = round(_RATE * seconds)
    with _running() as running:
        start = time.monotonic()
        pushed = {}
        for number in range(count):
            due = start + (number + pace.random()) / _RATE
            time.sleep(max(0.0, due - time.monotonic()))
            pushed[number] = running.push(number)
        running.wait_for(pushed)
        seen = running.arrivals()
    taken = sorted((seen[number] - at) / 1e6 for number, at in pushed.items())
    result = Latency(count, statistics.median(taken), taken[round(0.99 * count) - 1], taken[-1])
    print(
        f"latency: median {result.median:.2f} ms, p99 {result.p99:.2f} ms, worst {result.worst:.2f} ms", file=sys.stderr
    )
    return result


def idle(seconds: float) -> Idle:
    with _running() as running:
        time.sleep(_SETTLE)
        commands = CommandCount(running.server)
        with Sampler(running.pid) as sampler:
            time.sleep(seconds)
        asked, _ = commands.since()
    first, last = sampler.samples[0], sampler.samples[-1]
    taken = last.at - first.at
    result = Idle(taken, (last.cpu - first.cpu) / taken, asked / taken)
    print(f"idle: {result.cpu:.2%} of a core, {result.commands:.1f} commands/s", file=sys.stderr)
    return result


def _lines(log: Path) -> list[str]:
    """Whole lines only: the last may be half written."""
    return log.read_text().split("\n")[:-1]


def _until(condition: Callable[[], object], trouble: str, program: Program) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        program.check()
        if time.monotonic() > deadline:
            raise BenchmarkError(trouble + program.last_words())
        time.sleep(0.01)
