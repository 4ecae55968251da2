"""One queue of a real server, driven from a plain test, and what existing software does to the same queue."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from cbq_exporter.model import Claim, Claimed, Failure, Outcome, Settled, Settlement
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.expired import ExpiredLeases
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.sweeping import Sweeper
from tests.support.servers import Server

T = TypeVar("T")

OURS = "cbq-exporter_1764000000_test_1111"
FAILURE = Failure("http_5xx", 503, "503 Service Unavailable", "busy", 1764000000.5)


def callback(number: int = 0, size: int = 0) -> bytes:
    """As an existing producer writes it; padded to about ``size`` bytes."""
    item = {
        "url": "https://client.example/hook",
        "task_id": f"task-{number}",
        "status": "success",
        "data": {"n": number, "image": "x" * max(0, size - 180)},
        "created_at": None,
        "_queued_at": 1764000000.123,
    }
    return json.dumps(item).encode()


class DrivenQueue:
    """Use as a context manager. ``do`` runs one call to its end; ``redis`` is a plain client beside it."""

    def __init__(self, server: Server, prefix: str = "callback_queue", lock_value: str = OURS) -> None:
        self.redis: Any = server.client
        self.keys = QueueKeys.of(prefix)
        self._loop = asyncio.new_event_loop()
        self.connections = Connections(server.url, shown_as="test")
        self.queue = Queue(self.connections, self.keys, lock_value=lock_value)
        self.expired = ExpiredLeases(self.connections, self.keys)
        self.sweeper = Sweeper(self.connections, self.keys)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.connections.close())
        self._loop.close()

    # --- the daemon's side -------------------------------------------------------------------

    def try_claim(self, count: int = 100, *, max_bytes: int = 1 << 40, from_pending: int | None = None) -> Claim | None:
        return self.do(
            self.queue.claim(count=count, max_bytes=max_bytes, lease=60.0, lock_ttl=30.0, from_pending=from_pending)
        )

    def claim(self, count: int = 100, *, max_bytes: int = 1 << 40, from_pending: int | None = None) -> Claim:
        """Claim once, with the lock taken before."""
        assert self.do(self.queue.keep_lock(30.0)).ours
        claim = self.try_claim(count, max_bytes=max_bytes, from_pending=from_pending)
        assert claim is not None
        return claim

    def claim_all(self) -> list[Claimed]:
        """Claim until nothing comes any more."""
        claimed: list[Claimed] = []
        while items := self.claim(500).items:
            claimed += items
        return claimed

    def settle(self, outcome: Outcome, *claimed: Claimed) -> list[Settled]:
        """End these claims in as many calls as it takes."""
        left = [Settlement(one, outcome, "https://client.example/hook", "client.example") for one in claimed]
        settled: list[Settled] = []
        while left:
            some = self.do(self.queue.settle(left))
            settled += some
            del left[: len(some)]
        return settled

    def let_leases_run_out(self, *leases: str) -> None:
        """Time passes: for these, or for all."""
        names = leases or self.redis.zrange(self.keys.leases, 0, -1)
        for name in names:
            self.redis.zadd(self.keys.leases, {name: 1}, xx=True)

    def let_retries_be_due(self) -> None:
        for place, name in enumerate(self.redis.zrange(self.keys.retry, 0, -1)):
            self.redis.zadd(self.keys.retry, {name: place + 1}, xx=True)

    # --- what is where -----------------------------------------------------------------------

    @property
    def pending(self) -> list[bytes]:
        return list(self.redis.lrange(self.keys.pending, 0, -1))

    @property
    def processing(self) -> list[bytes]:
        return list(self.redis.lrange(self.keys.processing, 0, -1))

    def kept(self, key: str) -> list[bytes]:
        """The payloads of ``keys.retry`` or ``keys.dead``, in order."""
        return [self.redis.hget(self.keys.payloads, name) for name in self.redis.zrange(key, 0, -1)]

    @property
    def everywhere(self) -> Counter[bytes]:
        return Counter(self.pending + self.processing + self.kept(self.keys.retry) + self.kept(self.keys.dead))

    def contents(self) -> dict[bytes, Any]:
        """All of the database, except for what passes with time."""
        return {key: self.redis.dump(key) for key in sorted(self.redis.keys("*"))}


class ExistingWorker:
    """The software that is there today: its own steps, none of them atomic, none of them knowing our keys."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.lock = f"worker_{int(time.time())}_{random.randint(1000, 9999)}"
        self.sent: list[bytes] = []

    def queue(self, item: bytes) -> None:
        self.redis.rpush("callback_queue:pending", item)
        self._count("queued")

    def take_lock(self) -> bool:
        return bool(self.redis.set("callback_queue:lock", self.lock, nx=True, ex=30))

    def release_lock(self) -> None:
        self.redis.delete("callback_queue:lock")

    def take(self, most: int = 10) -> list[bytes]:
        taken = []
        for _ in range(most):
            item = self.redis.lpop("callback_queue:pending")
            if item is None:
                break
            self.redis.rpush("callback_queue:processing", item)
            taken.append(item)
        self.redis.set("callback_queue:last_send_time", str(time.time()), ex=60)
        return taken

    def finish(self, item: bytes) -> int:
        """Sent. Returns how many copies it found to take out of processing."""
        self.sent.append(item)
        self._count("sent")
        return int(self.redis.lrem("callback_queue:processing", 1, item))

    def clean_up(self, older_than: float = 300.0) -> None:
        """The five-minute task: by the time of queueing, sent or not."""
        for item in self.redis.lrange("callback_queue:processing", 0, -1):
            if time.time() - json.loads(item).get("_queued_at", 0) > older_than:
                self.redis.lrem("callback_queue:processing", 1, item)
                self.redis.rpush("callback_queue:pending", item)

    def recover_all(self) -> None:
        while (item := self.redis.lpop("callback_queue:processing")) is not None:
            self.redis.rpush("callback_queue:pending", item)

    def reset(self) -> None:
        for name in ("pending", "processing", "lock", "last_send_time", "stats:queued", "stats:sent", "stats:failed"):
            self.redis.delete(f"callback_queue:{name}")

    def status(self) -> dict[str, Any]:
        last = self.redis.get("callback_queue:last_send_time")
        return {
            "pending": self.redis.llen("callback_queue:pending"),
            "processing": self.redis.llen("callback_queue:processing"),
            "lock": self.redis.get("callback_queue:lock"),
            "last_send": None if last is None else float(last),
            **{name: int(self.redis.get(f"callback_queue:stats:{name}") or 0) for name in ("queued", "sent", "failed")},
        }

    def _count(self, name: str) -> None:
        self.redis.incr(f"callback_queue:stats:{name}")
        self.redis.expire(f"callback_queue:stats:{name}", 86_400)
