"""Bring stuck callbacks back, and measure what it takes: beside the loop of LPOP and RPUSH that existing tools use."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import redis

from benchmarks.processes import BenchmarkError
from benchmarks.servers import RedisServer
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.scripts import Script

T = TypeVar("T")

ALL = "recovery of all"  # the step that has targets
_KEYS = QueueKeys.of("callback_queue")
_SIZE = 1024  # bytes of a payload
_STUCK_AFTER = 300.0
_SLOWLOG = 100_000  # entries
_BYSTANDERS = "STRLEN"  # the command of the other client: nobody else uses it


@dataclass(frozen=True, slots=True)
class Step:
    """``sent`` counts the commands that the client sent, ``inside`` those that its scripts ran.

    ``slowest`` is the longest script or command, ``others_p99`` what a small command of another client took meanwhile;
    both in milliseconds.
    """

    what: str
    count: int
    seconds: float
    sent: int
    inside: int
    slowest: float
    others_p99: float


def measure(counts: tuple[int, ...]) -> list[Step]:
    steps = []
    for count in counts:
        print(f"recovery of {count:,}", file=sys.stderr)
        with RedisServer() as server:
            server.client.config_set("slowlog-log-slower-than", 0)
            server.client.config_set("slowlog-max-len", _SLOWLOG)
            steps += asyncio.run(_ours(server, count))
        if count <= 10_000:
            with RedisServer() as server:
                steps.append(_the_loop(server, count))
    return steps


async def _ours(server: RedisServer, count: int) -> list[Step]:
    connections = _Counting(server.url, shown_as="benchmark")
    healing = Healing(connections, _KEYS)
    try:
        _fill(server, count)
        steps = []
        look, step = await _timed(
            server, connections, "first look", count, lambda: healing.sightings.look(_STUCK_AFTER)
        )
        _expect(look.new, count)
        steps.append(step)
        _let_pass(server)
        look, step = await _timed(
            server, connections, "another look", count, lambda: healing.sightings.look(_STUCK_AFTER)
        )
        _expect(look.stuck, count)
        steps.append(step)
        recovery, step = await _timed(server, connections, ALL, count, lambda: healing.recover_stuck(_STUCK_AFTER, 3))
        _expect(recovery.returned, count)
        _expect(server.client.llen(_KEYS.pending), count)
        steps.append(step)
        return steps
    finally:
        await connections.close()


def _the_loop(server: RedisServer, count: int) -> Step:
    """As existing tools do it: one by one, and a crash between the two commands loses one."""
    _fill(server, count)
    client = server.client
    client.config_resetstat()
    with _Bystander(server) as bystander:
        began = time.perf_counter()
        while (payload := client.lpop(_KEYS.processing)) is not None:
            client.rpush(_KEYS.pending, payload)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        p99 = bystander.p99()
    return Step("LPOP + RPUSH, one by one", count, seconds, _commands(client), 0, 0.0, p99)


async def _timed(
    server: RedisServer, connections: _Counting, what: str, count: int, work: Callable[[], Awaitable[T]]
) -> tuple[T, Step]:
    client = server.client
    with _Bystander(server) as bystander:
        client.config_resetstat()
        client.slowlog_reset()
        connections.sent = 0
        began = time.perf_counter()
        done = await work()
        seconds = time.perf_counter() - began
        p99 = bystander.p99()
    inside = _commands(client) - connections.sent
    slowest = max(one["duration"] for one in client.slowlog_get(_SLOWLOG)) / 1000
    return done, Step(what, count, seconds, connections.sent, inside, slowest, p99)


class _Counting(Connections):
    """Counts what it sends."""

    sent = 0

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.sent += 1
        return await super().run(script, keys, args)

    async def read(self, *command: Any) -> Any:
        self.sent += 1
        return await super().read(*command)

    async def read_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self.sent += len(commands)
        return await super().read_many(commands)


def _commands(client: redis.Redis) -> int:
    """All that the server ran, those inside of scripts included, without what is the measurement's own."""
    own = ("config", "slowlog", "info", "client", "hello", "ping", _BYSTANDERS.lower())
    stats = client.info("commandstats")
    return sum(
        int(one["calls"]) for name, one in stats.items() if name.removeprefix("cmdstat_").split("|")[0] not in own
    )


class _Bystander:
    """Another client that asks for one small key, again and again, in a process of its own."""

    def __init__(self, server: RedisServer) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=_ask, args=(server.port, theirs))

    def __enter__(self) -> _Bystander:
        self._process.start()
        self._ours.recv()
        return self

    def p99(self) -> float:
        self._ours.send("stop")
        return float(self._ours.recv())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _ask(port: int, pipe: Connection) -> None:
    client = redis.Redis(port=port)
    client.ping()
    pipe.send("ready")
    times = []
    while not pipe.poll():
        began = time.perf_counter()
        client.execute_command(_BYSTANDERS, "bystander")
        times.append(time.perf_counter() - began)
        time.sleep(0.001)
    times.sort()
    pipe.send(1000 * times[int(len(times) * 0.99)])


def _fill(server: RedisServer, count: int) -> None:
    for first in range(0, count, 1000):
        payloads = [b'{"url": "http://a/", "n": %d, "data": "' % n for n in range(first, min(first + 1000, count))]
        server.client.rpush(_KEYS.processing, *(one + b"x" * (_SIZE - len(one) - 2) + b'"}' for one in payloads))


def _let_pass(server: RedisServer) -> None:
    """As if all had been seen long ago."""
    members = server.client.zrange(_KEYS.sightings, 0, -1)
    for first in range(0, len(members), 1000):
        server.client.zadd(_KEYS.sightings, dict.fromkeys(members[first : first + 1000], 1_000_000_000_000))


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise BenchmarkError(f"recovery: {found} instead of {wanted}")
