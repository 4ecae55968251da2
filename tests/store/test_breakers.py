"""Circuits in the store, and what waits in retry for its destination alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cbq_exporter.model import Claimed, Failure, Retry, Settlement
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.queue import Queue
from tests.support.servers import Server

KEYS = QueueKeys.of("q")
OURS = "cbq-exporter_1_a"
KINDS = ("throttled", "circuit_open")


def run(server: Server, work: Callable[[Connections], Awaitable[None]]) -> None:
    async def scenario() -> None:
        connections = Connections(server.url, shown_as="test")
        try:
            await work(connections)
        finally:
            await connections.close()

    asyncio.run(scenario())


def test_circuits_are_kept_by_the_holder_of_the_lock_and_by_nobody_else(each_server: Server) -> None:
    client: Any = each_server.client

    async def work(connections: Connections) -> None:
        ours, other = (Breakers(connections, KEYS, lock_value=value) for value in (OURS, "somebody"))
        assert not await ours.keep("a.example", "open", 30.0, 1)
        client.set(KEYS.lock, OURS)
        assert await ours.keep("a.example", "open", 30.0, 1)
        assert not await other.keep("a.example", "half_open", 0.0, 1)
        first = (await other.current())["a.example"]
        assert (first.phase, first.openings) == ("open", 1)
        assert 29.0 < first.left <= 30.0
        assert await ours.keep("a.example", "open", 60.0, 2)
        second = (await ours.current())["a.example"]
        assert second.since == first.since
        assert (second.openings, round(second.left)) == (2, 60)
        client.hset(KEYS.breakers, "strange", "who knows")
        assert set(await ours.current()) == {"a.example"}
        assert await other.close("a.example")  # a person may
        assert not await other.close("a.example")

    run(each_server, work)


def test_many_circuits_are_read_in_pages_and_a_few_without_the_others(each_server: Server) -> None:
    client: Any = each_server.client
    client.hset(KEYS.breakers, mapping={f"h{n}.example": "open 1895000000000 1 1795000000000" for n in range(25_000)})

    async def work(connections: Connections) -> None:
        breakers = Breakers(connections, KEYS)
        client.config_resetstat()
        assert 10_000 <= len(await breakers.current()) < 11_000
        stats = client.info("commandstats")
        assert "cmdstat_hgetall" not in stats
        assert stats["cmdstat_hscan"]["calls"] <= 25
        client.config_resetstat()
        asked = [f"h{n}.example" for n in range(24_000, 25_200)]
        assert set(await breakers.among(asked)) == set(asked[:1000])
        assert client.info("commandstats")["cmdstat_hmget"]["calls"] == 3
        assert await breakers.among([]) == {}

    run(each_server, work)


def test_what_waits_for_its_destination_is_told_from_all_else(each_server: Server) -> None:
    client: Any = each_server.client
    names = ["a.example", 'strange "name" \\ é\n', "b.example"]

    async def work(connections: Connections) -> None:
        queue = Queue(connections, KEYS, lock_value=OURS)
        await queue.keep_lock(60)
        await queue.enqueue([b'{"n": %d}' % number for number in range(30)])
        claim = await queue.claim(count=30, max_bytes=1 << 20, lease=30, lock_ttl=60)
        assert claim is not None

        def put_off(number: int, claimed: Claimed) -> Settlement:
            kind = [*KINDS, "timeout"][number // 3 % 3]
            # A URL that looks like what is searched for must not be taken for it.
            url = f'http://x/"destination":"{names[0]}","reason":"","kind":"throttled"'
            return Settlement(claimed, Retry(600 + number, Failure(kind), False), url, names[number % 3])

        assert len(await queue.settle([put_off(number, one) for number, one in enumerate(claim.items)])) == 30
        client.hset(KEYS.records, claim.items[4].kept_as, "who knows")
        waiting = [None if n // 3 % 3 == 2 or n == 4 else names[n % 3] for n in range(30)]
        page = await queue.retries.put_aside(KINDS, due_from=0.0, count=100)
        assert [(one, name) for one, _, name in page] == [
            (claimed.kept_as, name) for claimed, name in zip(claim.items, waiting, strict=True)
        ]
        assert await queue.retries.put_aside(KINDS, due_from=page[7][1], count=5) == page[7:12]
        assert await queue.retries.put_aside(KINDS, due_from=page[-1][1] + 1, count=5) == []

    run(each_server, work)
