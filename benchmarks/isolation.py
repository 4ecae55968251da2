"""What destinations do to each other: those that never answer, and many of them."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.processes import BenchmarkError, Program, Sampler
from benchmarks.servers import CommandCount, Nginx, RedisServer

_TIMEOUT = 180.0
_CHUNK = 1000
_WATCHED = 10.0  # seconds that the store is watched for what a backlog costs while it waits


@dataclass(frozen=True, slots=True)
class Behind:
    """Healthy callbacks behind a backlog of a destination that never answers.

    ``waited`` is seconds from the start of delivery to the last of them. ``commands`` of Redis for one callback of the
    backlog, until all of it was put aside; ``commands_afterwards`` is a second, while it waits.
    """

    backlog: int
    healthy: int
    waited: float
    put_aside: float
    commands: float
    commands_afterwards: float


@dataclass(frozen=True, slots=True)
class Share:
    """What eight of ten destinations get while the two others never answer, and ``_alone`` when all are well.

    ``rate`` is callbacks a second, ``p99`` milliseconds from RPUSH to the answer: medians of the rounds.
    ``rate_kept`` and ``p99_grown`` are the medians of the rounds' own ratios, because machines change their pace.
    """

    rate: float
    rate_alone: float
    rate_kept: float
    p99: float
    p99_alone: float
    p99_grown: float


@dataclass(frozen=True, slots=True)
class Many:
    """``rate`` of many destinations, of the ``one_rate`` of one; ``rss`` in bytes at the peak, children included."""

    destinations: int
    callbacks: int
    rate: float
    one_rate: float
    rss: int
    one_rss: int


@dataclass(frozen=True, slots=True)
class Isolation:
    behind: Behind
    share: Share
    many: Many


def measure(rounds: int, *, quick: bool) -> Isolation:
    behind = _behind(5_000 if quick else 100_000, 10)
    print(f"isolation: {behind}", file=sys.stderr)
    share = _share(rounds, *((1_000, 3.0) if quick else (10_000, 20.0)))
    print(f"isolation: {share}", file=sys.stderr)
    many = _many(500 if quick else 10_000, 10)
    print(f"isolation: {many}", file=sys.stderr)
    return Isolation(behind, share, many)


# --- parts ---------------------------------------------------------------------------------------


def _behind(backlog: int, healthy: int) -> Behind:
    with _scene() as scene:
        scene.fill([scene.hole()] * backlog)
        scene.fill([scene.well(number) for number in range(healthy)], first=backlog)
        commands = CommandCount(scene.server)
        with scene.daemon():
            began = time.time()
            scene.wait_for(healthy)
            scene.wait(lambda: not commands.ask("LLEN", ours.PENDING), "the backlog stays in pending")
            put_aside = time.time() - began
            asked, _ = commands.since()
            waited = max(visit.at for visit in scene.visits()) - began
            afterwards = CommandCount(scene.server)
            time.sleep(_WATCHED)
            idle, _ = afterwards.since()
    return Behind(backlog, healthy, waited, put_aside, asked / backlog, idle / _WATCHED)


def _share(rounds: int, each: int, seconds: float) -> Share:
    """``each`` destination gets so many callbacks at once, and then some at an even pace for ``seconds``."""
    found: list[tuple[float, ...]] = []
    for _ in range(rounds):
        rate_alone, rate = _rate_of_eight(each, holes=0), _rate_of_eight(each, holes=2)
        p99_alone, p99 = _p99_of_eight(seconds, holes=0), _p99_of_eight(seconds, holes=2)
        print(f"isolation: {rate:,.0f} of {rate_alone:,.0f}/s, p99 {p99:.1f} of {p99_alone:.1f} ms", file=sys.stderr)
        found.append((rate, rate_alone, rate / rate_alone, p99, p99_alone, p99 / p99_alone))
    return Share(*map(statistics.median, zip(*found, strict=True)))


def _rate_of_eight(each: int, *, holes: int) -> float:
    """Callbacks a second to eight destinations of ten, whose callbacks stand in turns."""
    with _scene() as scene:
        eight = [scene.well(number) for number in range(8)]
        others = [scene.hole(number) if number < holes else scene.well(8 + number) for number in range(2)]
        scene.fill((eight + others) * each)
        with scene.daemon():
            scene.wait_for(each * (10 - holes))
        hosts = {_host(url) for url in eight}
        times = [visit.at for visit in scene.visits() if visit.host in hosts]
        return (len(times) - 1) / (max(times) - min(times))


def _p99_of_eight(seconds: float, *, holes: int, rate: int = 1000) -> float:
    """From RPUSH to the answer, in milliseconds, of callbacks that arrive evenly."""
    with _scene() as scene:
        eight = [scene.well(number) for number in range(8)]
        others = [scene.hole(number) if number < holes else scene.well(8 + number) for number in range(2)]
        urls = eight + others
        with scene.daemon():
            scene.fill(urls, first=-len(urls))  # connections are open
            scene.wait_for(10 - holes)
            pushed: dict[int, float] = {}
            start = time.time()
            for number in range(round(rate * seconds)):
                time.sleep(max(0.0, start + number / rate - time.time()))
                pushed[number] = time.time()
                scene.fill([urls[number % 10]], first=number)
            scene.wait_for((10 - holes) * (1 + len(pushed) // 10))
        hosts = {_host(url) for url in eight}
        taken = sorted((v.at - pushed[v.number]) * 1000 for v in scene.visits() if v.host in hosts and v.number >= 0)
        return taken[round(0.99 * len(taken)) - 1]


def _many(destinations: int, each: int) -> Many:
    with _scene() as scene:
        scene.fill([scene.well(number) for number in range(destinations)] * each)
        with scene.daemon(one_kind=True, idle_connections=destinations) as sampler:
            scene.wait_for(destinations * each)
        rate, rss = _rate(scene.visits()), sampler.peak_rss
    with _scene() as scene:
        scene.fill([scene.well(0)] * (destinations * each))
        with scene.daemon(one_kind=True, idle_connections=destinations) as sampler:
            scene.wait_for(destinations * each)
        one_rate, one_rss = _rate(scene.visits()), sampler.peak_rss
    return Many(destinations, destinations * each, rate, one_rate, rss, one_rss)


# --- what they share -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Visit:
    at: float  # epoch seconds, to a millisecond
    host: str
    number: int


def _rate(visits: Sequence[_Visit]) -> float:
    times = [visit.at for visit in visits]
    return (len(times) - 1) / (max(times) - min(times))


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


class _Scene:
    """A store, receivers that answer at every address of 127/8, and sockets that never do."""

    def __init__(self, server: RedisServer, nginx: Nginx, folder: Path, holes: int) -> None:
        self.server = server
        self._nginx = nginx
        self._folder = folder
        self._hole = holes
        self._program: Program | None = None

    def well(self, number: int) -> str:
        return f"http://127.1.{number // 250}.{number % 250 + 1}:{self._nginx.port}/visit"

    def hole(self, number: int = 0) -> str:
        return f"http://127.2.0.{number + 1}:{self._hole}/visit"

    def fill(self, urls: Sequence[str], *, first: int = 0) -> None:
        for begin in range(0, len(urls), _CHUNK):
            items = [
                ours.item(f"{url}?n={first + begin + place}", first + begin + place)
                for place, url in enumerate(urls[begin : begin + _CHUNK])
            ]
            self.server.client.rpush(ours.PENDING, *items)

    @contextlib.contextmanager
    def daemon(self, *, one_kind: bool = False, idle_connections: int = 1000) -> Iterator[Sampler]:
        """``one_kind``: all that may be open at once may be open to each, as in the drain."""
        command = ours.command(self._folder, self.server.url)
        path = self._folder / "config.yaml"
        settings: dict[str, Any] = json.loads(path.read_text())
        delivery = settings["queues"][0]["delivery"]
        delivery["idle_connections"] = idle_connections
        if not one_kind:  # as it comes: 256 requests open, 32 to one destination
            del delivery["concurrency"], delivery["per_destination"]
        path.write_text(json.dumps(settings))
        with (
            Program(command, self._folder / "log", folder=ours.ROOT) as self._program,
            Sampler(self._program.pid) as sampler,
        ):
            yield sampler

    def wait(self, condition: Callable[[], object], trouble: str) -> None:
        assert self._program is not None
        deadline = time.monotonic() + _TIMEOUT
        while not condition():
            self._program.check()
            if time.monotonic() > deadline:
                raise BenchmarkError(trouble + self._program.last_words())
            time.sleep(0.05)

    def wait_for(self, count: int) -> None:
        def enough() -> bool:
            return self._nginx.visits_log.exists() and self._nginx.visits_log.read_bytes().count(b"\n") >= count

        self.wait(enough, f"{count} callbacks do not all arrive")

    def visits(self) -> list[_Visit]:
        time.sleep(0.2)  # nginx writes its lines up to 50 ms late
        lines = self._nginx.visits_log.read_text().splitlines()
        found = [_Visit(float(at), host, int(number)) for at, host, number in (line.split() for line in lines)]
        if len({visit.number for visit in found}) != len(found):
            raise BenchmarkError("a callback was delivered twice")
        return found


@contextlib.contextmanager
def _scene() -> Iterator[_Scene]:
    with (
        tempfile.TemporaryDirectory(prefix="cbq-bench-") as folder,
        RedisServer() as server,
        Nginx("0.0.0.0") as nginx,
        socket.socket() as hole,
    ):
        hole.bind(("0.0.0.0", 0))
        hole.listen(4096)  # the kernel accepts; nobody reads
        yield _Scene(server, nginx, Path(folder), hole.getsockname()[1])
