"""A pause is heeded by a daemon that runs: nothing is claimed, or nothing goes to one destination; nothing is lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.pauses import Pause, Pauses
from tests.e2e.bare_client import item, number_of, push
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon, until
from tests.support.servers import Server

KEYS = QueueKeys.of("callback_queue")


def change(server: Server, destination: str | None, *, paused: bool) -> None:
    async def work() -> None:
        connections = Connections(server.url, shown_as="test")
        pauses = Pauses(connections, KEYS)
        if paused:
            assert await pauses.begin(destination, Pause(1.0, "test"))
        else:
            assert await pauses.end(destination)
        await connections.close()

    asyncio.run(work())


def test_a_paused_queue_keeps_its_lock_and_claims_nothing_until_it_is_resumed() -> None:
    with Server() as server, CountingReceiver() as receiver:
        redis: Any = server.client
        change(server, None, paused=True)
        push(redis, item(receiver.url, 1))
        with Daemon(server.url) as daemon:
            until(lambda: redis.exists(KEYS.lock))
            until(lambda: daemon.metrics().get("cbq_task_runs_total", task="flush:callbacks"))
            runs = daemon.metrics().get("cbq_task_runs_total", task="flush:callbacks") or 0
            until(lambda: (daemon.metrics().get("cbq_task_runs_total", task="flush:callbacks") or 0) >= runs + 2)
            # It looks once a second; it does not spin on what it must not take.
            assert (daemon.metrics().get("cbq_task_runs_total", task="flush:callbacks") or 0) < runs + 10
            assert (redis.llen(KEYS.pending), redis.exists(KEYS.leases), redis.exists(KEYS.lock)) == (1, 0, 1)
            assert daemon.metrics().get("cbq_queue_paused") == 1
            assert daemon.metrics().get("cbq_batch_flushes_total") == 0
            change(server, None, paused=False)
            until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 1)
            change(server, None, paused=True)
            until(lambda: daemon.metrics().get("cbq_queue_paused") == 1)


def test_a_paused_destination_waits_without_using_an_attempt_and_others_are_sent() -> None:
    with Server() as server, CountingReceiver() as slow, CountingReceiver() as other:
        redis: Any = server.client
        destination = slow.url.partition("://")[2].partition("/")[0]
        change(server, destination, paused=True)
        for number in range(20):
            push(redis, item(slow.url if number % 2 else other.url, number))
        with Daemon(server.url) as daemon:
            until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 10)
            until(lambda: redis.zcard(KEYS.retry) == 10)
            assert daemon.metrics().get("cbq_delivery_attempts_total") == 10
            assert daemon.metrics().get("cbq_paused_destinations") == 1
            records = [json.loads(record) for record in redis.hvals(KEYS.records)]
            assert {record["attempts"] for record in records} == {0}
            assert all("paused" in str(record) for record in records), records
            seconds, _ = redis.time()
            due = redis.zrange(KEYS.retry, 0, -1, withscores=True)
            assert all(at / 1000 - seconds > 500 for _, at in due)  # not again and again
            change(server, destination, paused=False)
            until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 20)
            assert daemon.metrics().get("cbq_delivery_attempts_total") == 20
            assert slow.order == sorted(slow.order, key=number_of)
            assert redis.zcard(KEYS.dead) == 0
