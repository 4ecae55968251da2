"""Drain a full queue to nginx, and measure the worker that does it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import CONTESTANTS, OURS, Contestant, Job
from benchmarks.processes import BenchmarkError, Program, Sampler
from benchmarks.requests_log import RequestsLog, check_bodies
from benchmarks.servers import CommandCount, Nginx, RedisServer
from benchmarks.workers.payload import body

_TIMEOUT = 180.0
_MEMORY_TIMEOUT = 900.0
_CHECKED = 200
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """``rate`` in callbacks a second from the first answer to the last; ``cpu`` (the worker's, children included) and
    ``redis_cpu`` in seconds for 1,000 callbacks; ``rss`` in bytes at the peak, children included; ``commands``
    for one callback, those inside of scripts included.
    """

    contestant: str
    count: int
    rate: float
    cpu: float
    redis_cpu: float
    rss: int
    commands: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """``left_out`` says of each contestant that could not do the job what went wrong."""

    results: list[list[Result]]
    left_out: dict[str, str]


def compare(contestants: Sequence[Contestant], number: int, count: int) -> Rounds:
    """One after the other, ``number`` times over, so that a machine that grows slower does so for all.

    Before that each must show that its every body arrives exactly once, byte for byte.
    """
    taking_part = list(contestants)
    left_out: dict[str, str] = {}

    def attempt(contestant: Contestant, callbacks: int, *, check: bool = False) -> Result | None:
        try:
            return _run(contestant, callbacks, _TIMEOUT, check=check)
        except BenchmarkError as error:
            print(f"{contestant.name} is left out: {error}", file=sys.stderr)
            left_out[contestant.name] = str(error)
            taking_part.remove(contestant)
            return None

    for contestant in contestants:
        attempt(contestant, _CHECKED, check=True)
    found = []
    for index in range(number):
        results = []
        for contestant in list(taking_part):
            result = attempt(contestant, contestant.count(count))
            if result is not None:
                print(f"round {index + 1}: {_line(result)}", file=sys.stderr)
                results.append(result)
        found.append(results)
    return Rounds(found, left_out)


def memory(count: int) -> Result:
    """Our daemon draining a backlog so long that it would show if any part of it held the backlog."""
    (contestant,) = (each for each in CONTESTANTS if each.name == OURS)
    result = _run(contestant, count, _MEMORY_TIMEOUT)
    print(f"memory: {_line(result)}", file=sys.stderr)
    return result


def _line(result: Result) -> str:
    return (
        f"{result.contestant}: {result.rate:,.0f}/s, CPU {result.cpu:.3f} s/1k, {result.rss / 2**20:.0f} MiB, "
        f"{result.commands:.2f} commands"
    )


def _run(contestant: Contestant, count: int, timeout: float, *, check: bool = False) -> Result:
    """Own servers for each run: nobody inherits another's memory, connections or keys."""
    with (
        tempfile.TemporaryDirectory(prefix="cbq-bench-") as folder,
        RedisServer(durable=contestant.durable) as server,
        Nginx() as nginx,
    ):
        job = Job(count, server.url, nginx.check_url if check else nginx.url, Path(folder))
        environ = {**job.environ, **contestant.environ}
        if contestant.fill is not None:
            log = job.folder / "fill.log"
            with Program(contestant.fill(job), log, environ=environ, folder=contestant.folder) as filling:
                filling.wait(timeout)
            if contestant.left(server.client.execute_command) < count:
                raise BenchmarkError(f"its producer has queued fewer than {count} callbacks")
        result = _measure(contestant, job, environ, server, nginx, timeout)
        if check:
            check_bodies(nginx.bodies_log, body, count)
        return result


def _measure(
    contestant: Contestant, job: Job, environ: dict[str, str], server: RedisServer, nginx: Nginx, timeout: float
) -> Result:
    commands = CommandCount(server)
    deadline = time.monotonic() + timeout
    log = RequestsLog(nginx.requests_log)
    with Program(contestant.work(job), job.folder / "work.log", environ=environ, folder=contestant.folder) as worker:
        with Sampler(worker.pid) as sampler:
            while log.count() < job.count:
                worker.check(may_end=contestant.fill is None)
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{log.count()} of {job.count} after {timeout:.0f} s{worker.last_words()}")
                time.sleep(_POLL)
            # Delivered is not done: what is not acknowledged would be sent again.
            while left := contestant.left(commands.ask):
                worker.check(may_end=contestant.fill is None)
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{left} are not acknowledged{worker.last_words()}")
                time.sleep(_POLL)
            asked, redis_cpu = commands.since()
        requests = log.read()
    log.close()
    if requests.count != job.count:
        raise BenchmarkError(f"{requests.count} requests for {job.count} callbacks")
    thousands = job.count / 1000
    return Result(
        contestant.name,
        job.count,
        requests.rate,
        sampler.cpu_between(requests.first, requests.last) / thousands,
        redis_cpu / thousands,
        sampler.peak_rss,
        asked / job.count,
    )
