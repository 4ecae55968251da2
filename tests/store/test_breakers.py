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


def test_what_waits_for_one_destination_is_made_due_in_its_order_and_nothing_else(each_server: Server) -> None:
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
            name = names[number % 3]
            # A URL that looks like what is searched for must not be taken for it.
            url = f'http://x/"destination":"{names[0]}","reason":"","kind":"throttled"'
            return Settlement(claimed, Retry(600 + number, Failure(kind), False), url, name)

        assert len(await queue.settle([put_off(number, one) for number, one in enumerate(claim.items)])) == 30
        assert await queue.waiting_for(KINDS, 0, 100) == (set(names), 30)
        assert await queue.waiting_for(KINDS, 30, 100) == (set(), 0)
        for name in names:
            waiting = [n for n in range(30) if names[n % 3] == name and n // 3 % 3 < 2]
            assert await queue.hasten(name, KINDS, 3, passed=0, most=100) == (3, waiting[2] + 1)
            again = await queue.claim(count=30, max_bytes=1 << 20, lease=30, lock_ttl=60)
            assert again is not None
            assert [one.payload for one in again.items] == [b'{"n": %d}' % number for number in waiting[:3]]
            assert {one.attempts for one in again.items} == {0}
            await queue.settle([put_off(int(one.payload[6:-1]), one) for one in again.items])
        # In pages, as far as there are any.
        made, looked = await queue.hasten(names[2], KINDS, 100, passed=0, most=7)
        assert looked == 7
        rest, end = await queue.hasten(names[2], KINDS, 100, passed=looked - made, most=100)
        assert made + rest == 7
        assert end == 30 - looked
        assert client.zcount(KEYS.retry, "-inf", client.time()[0] * 1000 + 1000) == 7
        assert await queue.hasten("nobody", KINDS, 100, passed=0, most=500) == (0, 23)

    run(each_server, work)
