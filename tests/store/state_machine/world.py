"""What the rules drive: the store, two daemons, two workers of existing software, and the people's desk."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from cbq_exporter.config.models import Config, QueueConfig
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Claimed, Mode, Result
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.lock_keeper import LockKeeper
from cbq_exporter.services.operations import Operations
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.opening import Store, reader_of
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.sweeping import Sweeper
from tests.store.state_machine.model import FAMILY, FORGET_AFTER, LOCK_RULE, Model
from tests.support.foreign_worker import ForeignWorker
from tests.support.servers import Server

T = TypeVar("T")

QUEUE = "callbacks"
PREFIX = "{callbacks}:queue"
KEYS = QueueKeys.of(PREFIX)
CONFIG = Config(queues=(QueueConfig(name=QUEUE, prefix=PREFIX, mode=Mode.SUPERVISE),))
STUCK_AFTER = CONFIG.queues[0].recovery.stuck_after
INSTRUMENTS = Instruments([QUEUE]).queue(QUEUE)
HOUR = 3600.0
LONG_AGO = 1e12  # ms: what is older, a rule has made old

# Few, so that equal ones meet: two writings of one item, some that are no callbacks at all, one just queued.
PAYLOADS = (
    b'{"url": "http://a.example", "task_id": "1"}',
    b'{"url":"http://b.example","task_id":"2","data":"' + b"x" * 300 + b'"}',
    b'{"url": "http://b.example", "task_id": "2", "data": "' + b"x" * 300 + b'"}',
    b'{"url": "http://a.example", "task_id": "1", "_queued_at": 99999999999.5}',
    b'{"url":"http://b.example","task_id":"3","data":"' + b"x" * 5000 + b'"}',  # large ones take ways of their own
    b'{"url":"http://b.example","task_id":"3","data":"' + b"x" * 4999 + b'y"}',
    b'{"url": "http://b.example", "task_id": "1"}',
    b'{"url": "http://a.example"}',
    b"123",
    b"",
    b"\xff",
)
payloads = st.sampled_from(PAYLOADS)
either = st.sampled_from((0, 1))

# What nobody may do to a queue without an audit entry that it was begun.
_AUDITED = frozenset(
    {
        *("recover", "recover_stuck", "lock_release", "reset", "undo", "trash_drop"),
        *("dead_retry", "dead_purge", "dead_trim", "hasten", "pause", "resume"),
    }
)


_RESULTS = frozenset(result.value for result in Result)


def destination_of(payload: bytes) -> str:
    return "a.example" if b"a.example" in payload else "b.example"


class WatchedConnections(Connections):
    """Notes which scripts ran, and what the audit was told."""

    def __init__(self, url: str) -> None:
        super().__init__(url, shown_as="test")
        self.ran: list[str] = []
        self.audited: list[tuple[str, str]] = []  # operation, result
        self.entries = 0  # in the audit

    async def run_named(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.ran.append(name)
        if name == "audit_add":
            said = dict(zip(args[1::2], args[2::2], strict=True))
            self.audited.append((said["operation"], said["result"]))
            self.ran[-1] = said["result"]
            self.entries += 1
        return await super().run_named(name, keys, args)

    def check(self) -> None:
        """Every change that needs it stands between the beginning and the end of an audited operation."""
        begun = False
        for name in self.ran:
            if name in _RESULTS:
                assert not (begun and name in (Result.STARTED, Result.REFUSED, Result.DRY_RUN))
                begun = name == Result.STARTED
            assert begun or name not in _AUDITED, f"{name} without an audit entry"
        assert not begun, "an operation without an end in the audit"
        self.forget()

    def forget(self) -> None:
        self.ran.clear()
        self.audited.clear()


class JumpingClock:
    """A daemon's clock: the machine's, until it leaps."""

    def __init__(self) -> None:
        self.ahead = 0.0  # seconds

    def now(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Ledger:
    """The model of one: whether the clock has leapt since the last look."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def has_leapt(self, clock: JumpingClock) -> bool:
        before, self._ahead = self._ahead, clock.ahead
        return before is not None and before != clock.ahead


class Daemon:
    """One life of a daemon. Its lock value is its own; what it leaves behind is its successor's to find."""

    def __init__(self, number: int, connections: Connections, audit: Audit) -> None:
        self.value = f"{FAMILY}1764000000_host_{number}"
        self.clock = JumpingClock()
        self.queue = Queue(connections, KEYS, lock_value=self.value)
        self.healing = Healing(connections, KEYS, self.value, clock=self.clock)
        self.keeper = LockKeeper(
            QUEUE, self.healing.lock, INSTRUMENTS, audit, rule=LOCK_RULE, auto=True, forget_after=FORGET_AFTER
        )
        self.lock_ledger, self.sightings_ledger = Ledger(), Ledger()


class World(RuleBasedStateMachine):
    """Everything there is, and the model of it. The rules are in the classes below it."""

    def __init__(
        self,
        server: Server,
        connections: WatchedConnections,
        workers: Sequence[ForeignWorker],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self._handled = sys.exc_info()[1]
        self.redis: Any = server.client
        self.connections = connections
        self.workers = workers
        for worker in workers:
            if worker.busy:  # since a run that failed
                worker.kill()
        self.loop = loop
        self.redis.flushall()
        connections.forget()
        connections.entries = 0
        # A process of an operator's: it has no lock value.
        self.any_queue = Queue(connections, KEYS)
        self.sweeper = Sweeper(connections, KEYS)
        store = Store(
            connections,
            {QUEUE: self.any_queue},
            {QUEUE: Healing(connections, KEYS)},
            reader_of(CONFIG, connections),
            "",
        )
        self.audit = Audit(store)
        self.operations = Operations(CONFIG, store, self.audit)
        self.lives = 0
        self.daemons = [self.new_daemon(), self.new_daemon()]
        self.model = Model()
        self.claimed: list[Claimed] = []  # all that ever were
        self.order_by: str | None = None
        self._ticks = 0

    def new_daemon(self) -> Daemon:
        self.lives += 1
        return Daemon(self.lives, self.connections, self.audit)

    def do(self, work: Coroutine[Any, Any, T], *, may_free_lock: bool = False) -> T:
        """Something that we do, not existing software: a lock that frees itself is not ours to take away."""
        value, left_ms = self._lock()
        try:
            return self.loop.run_until_complete(work)
        finally:
            if value is not None and 0 < left_ms <= LOCK_RULE.max_ttl * 1000 and not may_free_lock:
                assert self._lock()[0] == value, "a lock with a sane TTL is gone"

    def _lock(self) -> tuple[bytes | None, int]:
        value, left_ms = self.redis.pipeline(transaction=False).get(KEYS.lock).pttl(KEYS.lock).execute()
        return value, left_ms

    @property
    def has_failed(self) -> bool:
        """Whether a step has: what comes after it says nothing."""
        return sys.exc_info()[1] is not self._handled

    def tick(self) -> int:
        """A time that is long past, later at each call."""
        self._ticks += 1
        return self._ticks

    @property
    def ordered(self) -> list[bytes]:
        """What stands in the order, by key and turn."""
        found: list[bytes] = self.redis.zrange(KEYS.order, 0, -1)
        return found

    @property
    def processing(self) -> list[bytes]:
        found: list[bytes] = self.redis.lrange(KEYS.processing, 0, -1)
        return found

    def sightings(self) -> tuple[Counter[bytes], Counter[bytes]]:
        """Of which callbacks there are old ones, and young ones."""
        names = {hashlib.sha1(payload).hexdigest(): payload for payload in self.model.accepted}
        found: tuple[Counter[bytes], Counter[bytes]] = Counter(), Counter()
        for name, ms in self.redis.zrange(KEYS.sightings, 0, -1, withscores=True):
            found[ms >= LONG_AGO][names[name.decode().split("#")[0]]] += 1
        return found

    def lease_runs_out(self, name: str) -> None:
        at = self.tick()
        self.redis.zadd(KEYS.leases, {name: at}, xx=True)
        self.model.leases[name].ran_out = at

    def others_produce(self, payload: bytes) -> None:
        self.redis.rpush(KEYS.pending, payload)
        self.model.pending.append(payload)
        self.model.accepted[payload] += 1

    def others_hold(self, payload: bytes) -> None:
        """A worker that never comes back has taken it."""
        self.redis.rpush(KEYS.processing, payload)
        self.model.processing[payload] += 1
        self.model.accepted[payload] += 1

    def retry_becomes_due(self, name: str) -> None:
        at = self.tick()
        self.redis.zadd(KEYS.retry, {name: at}, xx=True)
        self.model.retry[name].due = at
