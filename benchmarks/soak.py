"""A long day of the daemon in an hour: is a callback lost, does anything grow? (``make soak ARGS=MINUTES``)

Three queues: for thousands of hosts, coalesced from a process of its own, and in order. Their receivers are well, slow,
refuse, break off, or fail for a time. Meanwhile the configuration changes each minute, Redis is killed each third one
(with ``appendfsync always``, so that nothing it has answered may be missing), and an operator is at work. Every dead
letter is sent again, and taken then: in the end each callback must have been delivered, and those of one key in order.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.processes import family
from tests.support.counting_receiver import RESET, CountingReceiver
from tests.support.daemons import Daemon, queue
from tests.support.servers import Server

_USUAL_MINUTES = 60.0
_SAMPLE_EVERY = 10.0  # seconds
_SCRAPE_EVERY = 5.0
_PUSH_EVERY = 0.2
_DRAIN = 300.0  # the longest that what is left may take in the end
_HOSTS, _FEW_HOSTS, _KEYS = 5000, 10, 200
# What a callback meets: how many of a hundred, per queue.
_MOODS: dict[str, dict[str, int]] = {
    "plain": {"well": 80, "slow": 4, "refused": 4, "broken": 6, "failing": 6},
    "bundled": {"well": 90, "failing": 10},
    "ordered": {"well": 95, "failing": 5},
}
_PER_SECOND = {"plain": 80, "bundled": 40, "ordered": 30}
_COMMON: dict[str, Any] = {
    "delivery": {"timeout": "2s", "connect_timeout": "1s", "lease": "10s", "breaker": {"open_for": "3s"}},
    "retry": {"max_attempts": 8, "base": "300ms", "cap": "5s"},
    "recovery": {"every": "5s"},
    "trash": {"keep": "2m"},
}


def _queues(change: int) -> list[dict[str, Any]]:
    """Each ``change`` is another configuration: of every queue, and with a queue more at every other one."""
    settings: dict[str, dict[str, Any]] = {
        "plain": {"batch": {"size": 50 + change % 3}},
        "bundled": {
            "batch": {"size": 40 + change % 2},
            "delivery": {"own_process": True, "coalesce": {"size": 20, "linger": "200ms"}},
        },
        # A dead letter that is sent again is the last of its key: here none shall die.
        "ordered": {
            "delivery": {"order_by": "task_id", "concurrency": 64 + change % 2},
            "retry": {"max_attempts": 1000},
        },
        "passing": {"delivery": {"own_process": change % 4 == 1}},
    }
    names = [*_MOODS, "passing"] if change % 2 else list(_MOODS)
    return [queue(_COMMON, {"name": name, "prefix": name}, settings[name]) for name in names]


@dataclass(slots=True)
class Producer:
    """Pushes callbacks at a steady rate, and knows which of them Redis has taken."""

    server: Server
    port: int
    taken: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _MOODS})
    in_doubt: set[int] = field(default_factory=set)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _chance: random.Random = field(default_factory=lambda: random.Random(1))

    def push(self, seconds: float) -> None:
        """What is due in so many seconds. A push is not made again where its answer was lost."""
        client = redis.Redis(unix_socket_path=str(self.server.socket), retry=Retry(NoBackoff(), 0))
        for name, rate in _PER_SECOND.items():
            numbers = [next(self._numbers) for _ in range(round(rate * seconds))]
            try:
                client.rpush(f"{name}:pending", *(self._item(name, number) for number in numbers))
            except redis.BusyLoadingError:
                continue
            except redis.RedisError:
                self.in_doubt.update(numbers)
            else:
                self.taken[name] += numbers
        client.close()

    def _item(self, name: str, number: int) -> bytes:
        moods = _MOODS[name]
        (mood,) = self._chance.choices(list(moods), list(moods.values()))
        host = self._chance.randrange(_HOSTS if name == "plain" and mood == "well" else _FEW_HOSTS)
        # Moods have hosts of their own: a circuit opens for those that fail, and for nobody else.
        address = f"127.{1 + list(_MOODS['plain']).index(mood)}.{host // 250}.{1 + host % 250}"
        data = {"n": number, "mood": mood, "queue": name}
        fields = {"url": f"http://{address}:{self.port}/", "task_id": f"key-{number % _KEYS}", "data": data}
        return json.dumps(fields | {"_queued_at": time.time()}).encode()


def _answer(body: bytes, nth: int) -> int | tuple[int, float]:
    read = json.loads(body)
    if isinstance(read, list):
        return 503 if random.random() < 0.05 else 413 if len(read) > 15 and random.random() < 0.2 else 200
    match read["mood"]:
        case "slow":
            return 200, random.uniform(0.1, 3.0)
        case "refused":
            return 404 if nth == 1 else 200
        case "broken":
            return RESET if random.random() < 0.4 else 200
        case "failing":  # all of them at once, for some seconds of a minute: circuits open
            return 503 if time.time() % 60 < 15 else 200
    return 200


@dataclass(frozen=True, slots=True)
class Sample:
    """``at`` in minutes, memory in MiB. Where a daemon grows, one of these does (the log apart)."""

    at: float
    memory: float
    memory_of_children: float
    open_files: int
    threads: int
    series: int
    log_lines: int  # so far
    redis_memory: float
    redis_keys: int


def _sample(daemon: Daemon, server: Server, at: float) -> Sample:
    def memory(pid: int) -> float:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    _, text = daemon.get("/metrics")
    return Sample(
        at,
        memory(daemon.pid),
        sum(memory(pid) for pid in family(daemon.pid) if pid != daemon.pid),
        len(os.listdir(f"/proc/{daemon.pid}/fd")),
        len(os.listdir(f"/proc/{daemon.pid}/task")),
        sum(line.startswith("cbq_") for line in text.splitlines()),
        daemon.log().count("\n"),
        server.client.info("memory")["used_memory"] / (1 << 20),
        server.client.dbsize(),
    )


def _command(daemon: Daemon, *words: str) -> None:
    """As an operator gives it; where Redis is away it fails, as it should."""
    command = [sys.executable, "-m", "cbq_exporter", *words, "-c", str(daemon.config_file)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


class Troubles:
    """What happens to the daemon, each in its time. Everything runs in one thread, one after the other."""

    def __init__(self, daemon: Daemon, server: Server) -> None:
        self._daemon = daemon
        self._server = server
        self._changes = itertools.count(1)
        self._all: list[tuple[float, Callable[[], None]]] = [
            (60.0, self.reload),
            (180.0, self.kill_redis),
            (45.0, self.look),
            (75.0, self.retry_dead),
            (100.0, self.pause),
            (240.0, self.reset),
        ]

    def run(self, stop: threading.Event) -> None:
        due = {what: time.monotonic() + every for every, what in self._all}
        while not stop.wait(0.2):
            for every, what in self._all:
                if time.monotonic() >= due[what]:
                    due[what] = time.monotonic() + every
                    what()

    def reload(self) -> None:
        self._daemon.configure(*_queues(next(self._changes)))
        self._daemon.send_signal(signal.SIGHUP)

    def kill_redis(self) -> None:
        self._server.kill()
        time.sleep(random.uniform(0.1, 5.0))
        self._server.start()

    def look(self) -> None:
        for words in (["status"], ["retry", "list", "-q", "plain"], ["dead", "list", "-q", "plain"]):
            _command(self._daemon, *words)

    def retry_dead(self) -> None:
        for name in _MOODS:
            _command(self._daemon, "dead", "retry", "--all", "-q", name, "--yes")

    def pause(self) -> None:
        _command(self._daemon, "pause", "-q", "bundled", "--yes")
        time.sleep(3)
        _command(self._daemon, "resume", "-q", "bundled", "--yes")

    def reset(self) -> None:
        _command(self._daemon, "reset", "-q", "plain", "--yes", "--force")
        _command(self._daemon, "undo", "-q", "plain", "--yes")


def _left(server: Server) -> int:
    """Callbacks that are not delivered yet, whatever their state."""
    client = server.client
    return sum(
        client.llen(f"{name}:pending") + client.llen(f"{name}:processing") + client.zcard(f"{name}:{state}")
        for name in _MOODS
        for state in ("retry", "dead")
    )


def _drain(troubles: Troubles, daemon: Daemon, server: Server) -> None:
    _command(daemon, "resume", "-q", "bundled", "--yes")
    deadline = time.monotonic() + _DRAIN
    while _left(server) and time.monotonic() < deadline:
        _command(daemon, "undo", "-q", "plain", "--yes")
        troubles.retry_dead()
        time.sleep(3)


def _delivered(receiver: CountingReceiver) -> dict[int, int]:
    """How often each callback was taken, in the order of the first times."""
    found: Counter[int] = Counter()
    for body, times in receiver.accepted.items():
        read = json.loads(body)
        for one in read if isinstance(read, list) else [read]:
            found[one["n"]] += times
    return found


def _out_of_order(numbers: Sequence[int]) -> int:
    """How many of one key came after a later one of it."""
    furthest: dict[int, int] = {}
    found = 0
    for number in numbers:
        found += number < furthest.get(number % _KEYS, -1)
        furthest[number % _KEYS] = max(number, furthest.get(number % _KEYS, -1))
    return found


def _show_growth(samples: Sequence[Sample]) -> None:
    """The medians of each quarter: what grows does so from the second to the last."""
    print(f"\n{'':20}{'1st quarter':>14}{'2nd':>10}{'3rd':>10}{'4th':>10}{'most':>10}")
    for name in [one for one in asdict(samples[0]) if one != "at"]:
        values = [getattr(one, name) for one in samples]
        quarters = [values[len(values) * part // 4 : len(values) * (part + 1) // 4] for part in range(4)]
        medians = "".join(f"{statistics.median(part):>10.0f}" for part in quarters if part)
        print(f"{name.replace('_', ' '):24}{medians}{max(values):>10.0f}")


def main(minutes: float) -> int:
    samples: list[Sample] = []
    stop = threading.Event()
    with (
        Server("redis", durable=True) as server,
        CountingReceiver(_answer, host="0.0.0.0") as receiver,
        Daemon(server.url, *_queues(0)) as daemon,
    ):
        daemon.configure(log={"level": "info"})
        daemon.send_signal(signal.SIGHUP)
        producer, troubles = Producer(server, receiver.port), Troubles(daemon, server)
        thread = threading.Thread(target=troubles.run, args=(stop,))
        thread.start()
        began = time.monotonic()
        next_sample = next_scrape = began
        try:
            while (now := time.monotonic()) < began + minutes * 60:
                producer.push(_PUSH_EVERY)
                if now >= next_scrape:
                    next_scrape = now + _SCRAPE_EVERY
                    daemon.get("/metrics")
                if now >= next_sample:
                    next_sample = now + _SAMPLE_EVERY
                    try:
                        samples.append(_sample(daemon, server, (now - began) / 60))
                    except redis.RedisError:
                        continue  # it was killed just now
                time.sleep(_PUSH_EVERY)
        finally:
            stop.set()
            thread.join(120)
        _drain(troubles, daemon, server)
        left, delivered = _left(server), _delivered(receiver)
        taken = [number for numbers in producer.taken.values() for number in numbers]
        lost = [number for number in taken if number not in delivered]
        in_order = set(producer.taken["ordered"])
        too_late = _out_of_order([number for number in delivered if number in in_order])
    again = sum(times - 1 for times in delivered.values())
    print(f"{len(taken):,} callbacks in {minutes:g} minutes; {len(producer.in_doubt):,} more had no answer from Redis")
    print(f"lost {len(lost)}, not delivered yet {left}, delivered again {again:,}, out of order {too_late}")
    _show_growth(samples)
    return 1 if lost or left or too_late else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else _USUAL_MINUTES))
