"""What a scrape takes: beside prometheus-redis-exporter with one queue, and of a daemon that is busy with fifty."""

from __future__ import annotations

import json
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import ours
from benchmarks.processes import BenchmarkError, Program
from benchmarks.servers import Nginx, RedisServer, free_port, program

EXPORTER, OURS = "prometheus-redis-exporter", "cbq-exporter"
QUEUES, DESTINATIONS = 50, 1000  # as many in all
EVERY = 5  # seconds: the shortest interval that is usual
_BATCH, _CONCURRENCY = 200, 64
_WINDOW = 1.0  # seconds
_SCRAPES_A_SECOND = 5  # in every second window: more than anybody does, so that what they take can be measured
_BACKLOG, _CHUNK = 60_000, 10_000  # callbacks that wait at the beginning of a window at least, queued so many at once
_TIMEOUT = 60.0
# As Prometheus 2 asks.
_REQUEST = b"""GET /metrics HTTP/1.1\r
Host: 127.0.0.1\r
User-Agent: Prometheus/2.42.0\r
Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r
Accept-Encoding: gzip\r
X-Prometheus-Scrape-Timeout-Seconds: 10\r
\r
"""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Alone:
    """One queue, nothing else to do. Times are milliseconds; ``trips`` are requests that the server read for a scrape,
    ``commands`` those that it ran.
    """

    who: str
    scrapes: int
    median: float
    p99: float
    trips: float
    commands: float


@dataclass(frozen=True, slots=True)
class Busy:
    """Fifty queues while the daemon delivers. Times are milliseconds, ``redis`` those of the Redis part.

    ``rate`` is callbacks a second where nobody scrapes; ``taken`` is the milliseconds of delivering that one scrape
    takes away: the median over windows, each compared with those before and after it.
    """

    queues: int
    series: int
    destinations: int
    scrapes: int
    median: float
    p99: float
    redis_median: float
    redis_p99: float
    rate: float
    taken: float

    @property
    def share(self) -> float:
        """Of delivery, in per cent, where somebody scrapes every EVERY seconds."""
        return 100 * self.taken / 1000 / EVERY


@dataclass(frozen=True, slots=True)
class Scrapes:
    """``alone`` is ours and then the exporter's."""

    alone: list[Alone]
    busy: Busy

    @property
    def ratio(self) -> float:
        """How many times as fast we are at the 99th percentile."""
        mine, theirs = self.alone
        return theirs.p99 / mine.p99


def measure(scrapes: int, windows: int) -> Scrapes:
    found = Scrapes(alone(scrapes), busy(windows))
    for one in found.alone:
        print(f"scrape: {one.who}: median {one.median:.2f} ms, p99 {one.p99:.2f} ms", file=sys.stderr)
    print(
        f"scrape of a busy daemon: median {found.busy.median:.1f} ms, p99 {found.busy.p99:.1f} ms, Redis p99 "
        f"{found.busy.redis_p99:.1f} ms, takes {found.busy.taken:.1f} ms of delivering",
        file=sys.stderr,
    )
    return found


class _Scraper:
    """Keeps its connection, as Prometheus does, and takes little time itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: socket.socket | None = None

    def scrape(self, *, gzip: bool = True) -> tuple[float, bytes]:
        """Milliseconds, and the body as it came."""
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        began = time.perf_counter()
        self._connection.sendall(_REQUEST if gzip else _REQUEST.replace(b"gzip", b"identity"))
        answer = self._read()
        taken = 1000 * (time.perf_counter() - began)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BenchmarkError(f"a scrape was answered {head[:40]!r}")
        return taken, body

    def sample(self, name: str) -> float:
        """Of a metric without labels, by one scrape more."""
        (line,) = [line for line in self.text().splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def text(self) -> str:
        return self.scrape(gzip=False)[1].decode()

    def _read(self) -> bytes:
        """One answer: as many bytes as it says, or chunks up to the empty one."""
        assert self._connection is not None
        answer = b""
        while True:
            part = self._connection.recv(1 << 20)
            if not part:
                raise ConnectionResetError("the connection was closed within an answer")
            answer += part
            head, separator, body = answer.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if separator and (len(body) >= int(length[1]) if length else body.endswith(b"\r\n0\r\n\r\n")):
                return answer

    def __enter__(self) -> Self:
        _until(self._answers, "nobody serves metrics")
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def _answers(self) -> bool:
        try:
            self.scrape()
        except OSError:
            self._connection = None
            return False
        return True


def alone(scrapes: int) -> list[Alone]:
    """The two take turns, scrape by scrape."""
    with tempfile.TemporaryDirectory(prefix="cbq-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(RedisServer())
        _leave_something(server)
        contestants = {}
        for who, make in ((OURS, _our_exporter), (EXPORTER, _redis_exporter)):
            port = free_port()
            stack.enter_context(Program(make(folder, server, port), folder / who, folder=ours.ROOT))
            contestants[who] = stack.enter_context(_Scraper(port))
        taken: dict[str, list[float]] = {who: [] for who in contestants}
        for _ in range(scrapes):
            for who, scraper in contestants.items():
                taken[who].append(scraper.scrape()[0])
        costs = {who: _cost(server, scraper) for who, scraper in contestants.items()}
    return [Alone(who, scrapes, *_median_and_p99(times), *costs[who]) for who, times in taken.items()]


def _leave_something(server: RedisServer) -> None:
    """A queue in which something is everywhere."""
    prefix, item = ours.PREFIX, ours.item("http://127.0.0.1:9/", 1)
    server.client.rpush(ours.PENDING, *[item] * 10_000)
    server.client.rpush(f"{prefix}:processing", *[item] * 100)
    server.client.set(f"{prefix}:lock", "worker_1764000000_1234", ex=3600)
    server.client.set(f"{prefix}:last_send_time", str(time.time()))
    for stat in ("queued", "sent", "failed"):
        server.client.set(f"{prefix}:stats:{stat}", 1000)
    for key in ("retry", "dead", "leases", "sightings"):
        server.client.zadd(f"{prefix}:{key}", {f"{key}-{number}": 1e15 + number for number in range(1000)})


_KEYS = (
    *("pending", "processing", "lock", "last_send_time", "stats:queued", "stats:sent", "stats:failed"),
    *("retry", "dead", "leases", "sightings"),
)


def _redis_exporter(folder: Path, server: RedisServer, port: int) -> Sequence[str]:
    keys = ",".join(f"db0={ours.PREFIX}:{key}" for key in _KEYS)
    command = [program(EXPORTER, EXPORTER), "--redis.addr", server.url, "--web.listen-address", f"127.0.0.1:{port}"]
    return [*command, "--check-single-keys", keys]


def _our_exporter(folder: Path, server: RedisServer, port: int) -> Sequence[str]:
    return _daemon(folder, server, port, [{"name": "callbacks", "prefix": ours.PREFIX, "mode": "observe"}])


def _daemon(folder: Path, server: RedisServer, port: int, queues: list[dict[str, Any]]) -> Sequence[str]:
    settings = {
        "redis": {"url": server.url},
        "data_dir": str(folder / "data"),
        "web": {"listen_address": f"127.0.0.1:{port}"},
        "log": {"level": "warning"},
        "queues": queues,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))
    return [sys.executable, "-m", "cbq_exporter", "serve", "--config", str(path)]


def _cost(server: RedisServer, scraper: _Scraper) -> tuple[float, float]:
    """Round trips and commands of one scrape. The median leaves out what else asks meanwhile, a probe every 5 s."""
    found = []
    for _ in range(9):
        before = _asked(server)
        scraper.scrape()
        after = _asked(server)
        # The question itself is one more of each.
        found.append((after[0] - before[0] - 1, after[1] - before[1] - 1))
    trips, commands = zip(*found, strict=True)
    return statistics.median(trips), statistics.median(commands)


def _asked(server: RedisServer) -> tuple[int, int]:
    stats = server.client.info("stats")
    return stats["total_reads_processed"], stats["total_commands_processed"]


def busy(windows: int) -> Busy:
    """Windows with scrapes and without take turns while the daemon drains a backlog."""
    each = DESTINATIONS // QUEUES
    addresses = [f"127.0.0.{number + 1}" for number in range(each)]
    with tempfile.TemporaryDirectory(prefix="cbq-bench-") as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        server = stack.enter_context(RedisServer())
        nginx = stack.enter_context(Nginx(*addresses))
        urls = [f"http://{address}:{nginx.port}/callback" for address in addresses]
        prefixes = [f"queue{number}" for number in range(QUEUES)]
        for prefix in prefixes:
            server.client.rpush(f"{prefix}:pending", *_items(urls, range(each)))
        settings = [_dispatched(prefix) for prefix in prefixes]
        command = _daemon(folder, server, port, settings)
        daemon = stack.enter_context(Program(command, folder / "daemon", folder=ours.ROOT))
        scraper = stack.enter_context(_Scraper(port))
        _until(lambda: not _waiting(server, prefixes), f"not all is delivered{daemon.last_words()}")
        scraper.scrape()  # a series costs more the first time
        return _measure(server, daemon, scraper, urls, windows)


def _dispatched(prefix: str) -> dict[str, Any]:
    return {
        "name": prefix,
        "prefix": prefix,
        "mode": "dispatch",
        "batch": {"size": _BATCH, "max_delay": "0s"},
        "delivery": {
            "concurrency": _CONCURRENCY,
            "per_destination": {"concurrency": _CONCURRENCY},
            "egress": {"allow": ["127.0.0.0/8"]},
        },
    }


def _measure(server: RedisServer, daemon: Program, scraper: _Scraper, urls: list[str], windows: int) -> Busy:
    loaded = "queue0"
    next_number = len(urls)
    times, redis_times, rates = [], [], []
    for window in range(2 * windows + 1):  # each with scrapes stands between two without
        while server.client.llen(f"{loaded}:pending") < _BACKLOG:
            server.client.rpush(f"{loaded}:pending", *_items(urls, range(next_number, next_number + _CHUNK)))
            next_number += _CHUNK
        began, there = time.perf_counter(), server.client.llen(f"{loaded}:pending")
        for number in range(_SCRAPES_A_SECOND):
            due = began + number * _WINDOW / _SCRAPES_A_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))
            if window % 2:
                times.append(scraper.scrape()[0])
        time.sleep(max(0.0, began + _WINDOW - time.perf_counter()))
        left = server.client.llen(f"{loaded}:pending")
        if not left:
            raise BenchmarkError("the backlog is too short: the daemon had nothing to do")
        rates.append((there - left) / (time.perf_counter() - began))
        if window % 2:
            redis_times.append(1000 * scraper.sample("cbq_scrape_duration_seconds"))
        daemon.check()
    lines = [line for line in scraper.text().splitlines() if not line.startswith("#")]
    destinations = sum(line.startswith("cbq_delivery_attempts_total{") for line in lines)
    quiet = rates[::2]
    lost = [
        1 - scraped / statistics.mean(around) for scraped, *around in zip(rates[1::2], quiet, quiet[1:], strict=False)
    ]
    return Busy(
        QUEUES,
        len(lines),
        destinations,
        len(times),
        *_median_and_p99(times),
        *_median_and_p99(redis_times),
        statistics.median(quiet),
        1000 * statistics.median(lost) / (_SCRAPES_A_SECOND / _WINDOW),
    )


def _items(urls: Sequence[str], numbers: Iterable[int]) -> list[str]:
    at = time.time()
    return [
        f'{{"url": "{urls[number % len(urls)]}", "data": {{"id": {number}}}, "_queued_at": {at}}}' for number in numbers
    ]


def _waiting(server: RedisServer, prefixes: Sequence[str]) -> int:
    """Callbacks that are pending or in flight."""
    asked: Any = server.client.pipeline(transaction=False)
    for prefix in prefixes:
        asked.llen(f"{prefix}:pending")
        asked.llen(f"{prefix}:processing")
    return sum(asked.execute())


def _median_and_p99(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return statistics.median(ordered), ordered[max(0, round(0.99 * len(ordered)) - 1)]


def _until(condition: Callable[[], object], trouble: str) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(trouble)
        time.sleep(0.02)
