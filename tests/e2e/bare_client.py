"""What a producer that knows nothing of the daemon does, and where callbacks are, read past the daemon."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis

from cbq_exporter.model import DeadLetter
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.queue import Queue
from tests.support.daemons import until

PREFIX = "callback_queue"


def item(url: str, number: object = 0, *, task_id: str = "", queued_at: float | None = None, **fields: Any) -> bytes:
    """As existing producers write it; ``{"n": number}`` is what is posted."""
    return json.dumps(
        {
            "url": url,
            "task_id": task_id or f"task-{number}",
            "status": "success",
            "data": {"n": number},
            "prompt": "a cat",
            "created_at": None,
            "_queued_at": time.time() if queued_at is None else queued_at,
            **fields,
        }
    ).encode()


def number_of(body: bytes) -> Any:
    """The ``number`` of an item's posted data."""
    return json.loads(body)["n"]


def push(client: redis.Redis, *payloads: bytes, prefix: str = PREFIX) -> None:
    client.rpush(f"{prefix}:pending", *payloads)


def lengths(client: redis.Redis, prefix: str = PREFIX) -> dict[str, int]:
    keys = QueueKeys.of(prefix)
    pipe = client.pipeline()
    pipe.llen(keys.pending)
    pipe.llen(keys.processing)
    pipe.zcard(keys.leases)
    pipe.zcard(keys.retry)
    pipe.zcard(keys.dead)
    return dict(zip(("pending", "processing", "leases", "retry", "dead"), pipe.execute(), strict=True))


def wait_until_settled(
    client: redis.Redis, prefix: str = PREFIX, *, dead: int = 0, timeout: float = 20.0, what: Callable[[], str] = str
) -> None:
    """Until nothing is on its way any more and exactly ``dead`` callbacks are dead letters."""
    wanted = {"pending": 0, "processing": 0, "leases": 0, "retry": 0, "dead": dead}
    until(lambda: lengths(client, prefix) == wanted, timeout, what=lambda: f"{lengths(client, prefix)} {what()}")


def kept(client: redis.Redis, prefix: str = PREFIX) -> Counter[bytes]:
    """Every payload in a named place, as often as it is there."""
    keys = QueueKeys.of(prefix)
    pipe = client.pipeline()  # a transaction: all of it at one moment
    pipe.lrange(keys.pending, 0, -1)
    pipe.lrange(keys.processing, 0, -1)
    pipe.zrange(keys.retry, 0, -1)
    pipe.zrange(keys.dead, 0, -1)
    pipe.hgetall(keys.payloads)
    pending, processing, retry, dead, payloads = pipe.execute()
    waiting: Iterable[bytes] = (payloads[one] for one in [*retry, *dead])
    return Counter([*pending, *processing, *waiting])


def dead_letters(url: str, prefix: str = PREFIX) -> list[DeadLetter]:
    """All of them with their payloads, oldest first."""

    async def read() -> list[DeadLetter]:
        connections = Connections(url, shown_as="the test's")
        try:
            store = Queue(connections, QueueKeys.of(prefix))
            return await store.dead.read(await store.dead.ids(offset=0, count=10_000), with_payload=True)
        finally:
            await connections.close()

    return asyncio.run(read())


def by_payload(letters: Iterable[DeadLetter]) -> Mapping[bytes, DeadLetter]:
    return {letter.payload: letter for letter in letters if letter.payload is not None}
