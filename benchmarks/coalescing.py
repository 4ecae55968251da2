"""Callbacks that go by the hundred in one request, beside the same ones that go alone."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.processes import BenchmarkError, Program, Sampler
from benchmarks.servers import Nginx, RedisServer

SIZE = 100
_SETTINGS = {"size": SIZE, "linger": "50ms"}
_TIMEOUT = 180.0
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Drained:
    """``rate`` in callbacks a second from the first answer to the last; ``cpu`` in seconds for 1,000 callbacks, ``rss``
    in bytes at the peak, children included.
    """

    count: int
    requests: int
    rate: float
    cpu: float
    rss: int


@dataclass(frozen=True, slots=True)
class Coalescing:
    """One entry a round, in turn."""

    alone: list[Drained]
    together: list[Drained]

    @property
    def ratio(self) -> float:
        """How many times as many callbacks a second go together: the median of the rounds' own ratios."""
        pairs = zip(self.together, self.alone, strict=True)
        return statistics.median(together.rate / alone.rate for together, alone in pairs)


def measure(rounds: int, count: int) -> Coalescing:
    found = Coalescing([], [])
    for _ in range(rounds):
        found.alone.append(_drain(count, None))
        found.together.append(_drain(count, _SETTINGS))
        for what, one in (("alone", found.alone[-1]), ("together", found.together[-1])):
            text = f"{one.rate:,.0f}/s in {one.requests:,} requests, CPU {one.cpu:.3f} s/1k, {one.rss / 2**20:.0f} MiB"
            print(f"{what}: {text}", file=sys.stderr)
    return found


def _drain(count: int, coalesce: dict[str, Any] | None) -> Drained:
    with tempfile.TemporaryDirectory(prefix="cbq-bench-") as name, RedisServer() as server, Nginx() as nginx:
        folder = Path(name)
        ours.fill(server.client, nginx.url, count)
        command = ours.command(folder, server.url, coalesce=coalesce)
        ask = server.client.execute_command
        deadline = time.monotonic() + _TIMEOUT
        with Program(command, folder / "log", folder=ours.ROOT) as daemon, Sampler(daemon.pid) as sampler:
            while left := ours.left(ask):
                daemon.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{left} of {count} are left after {_TIMEOUT:.0f} s{daemon.last_words()}")
                time.sleep(_POLL)
            time.sleep(_POLL)  # nginx writes its lines up to so late
            first, last, requests = _answered(nginx.requests_log)
            cpu = sampler.cpu_between(first, last)
    rate = count * (requests - 1) / requests / (last - first)  # the first answer only starts the clock
    return Drained(count, requests, rate, cpu / count * 1000, sampler.peak_rss)


def _answered(log: Path) -> tuple[float, float, int]:
    """When the first and the last request were answered, in epoch seconds, and how many there were."""
    lines = [line.split() for line in log.read_text().splitlines()]
    if any(status != "200" for _, status, _ in lines):
        raise BenchmarkError("a request was not answered 200")
    times = [float(at) for at, _, _ in lines]
    return min(times), max(times), len(times)
