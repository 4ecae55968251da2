"""Anything that daemons, producers and the existing tools can do to a queue, in any order, against a plain model.

After every step the store holds exactly what the model says, and every callback that was ever accepted is
in one place or was taken out by somebody. Time passes where the test rewrites deadlines and due times.

CBQ_TEST_EXAMPLES=5000 makes the run long and random; without it, it is short and always the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cbq_exporter.model import (
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    Failure,
    LockRule,
    Outcome,
    PutBack,
    Retry,
    Settled,
)
from cbq_exporter.model import Settlement as Settle
from cbq_exporter.policy.lock import Leave, Release, judge
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.queue import Queue
from tests.support.servers import Server

T = TypeVar("T")

HOUR = 3600.0
KEYS = QueueKeys.of("{callbacks}:queue")
CONTRACT = (
    KEYS.pending,
    KEYS.processing,
    KEYS.lock,
    KEYS.last_send,
    KEYS.stats_queued,
    KEYS.stats_sent,
    KEYS.stats_failed,
)
DAEMONS = ("worker_1764000000_1111", "worker_1764000000_2222")
ENDLESS = "worker_1763999999_0002"  # the value of a lock that has no expiry
LOCK_RULE = LockRule(no_ttl_after=HOUR, max_ttl=HOUR, dead_after=HOUR)
FAILURE = Failure("http_5xx", 503)

# Few, so that equal ones meet; some that are no callbacks at all.
PAYLOADS = (
    b'{"url": "http://a.example"}',
    b'{"url":"http://b.example","data":"' + b"x" * 300 + b'"}',
    b"123",
    b"",
    b"\xff",
)
payloads = st.sampled_from(PAYLOADS)
daemons = st.sampled_from(DAEMONS)
outcomes: st.SearchStrategy[Outcome] = st.sampled_from(
    (
        Delivered(),
        PutBack(),
        Retry(HOUR, FAILURE),
        Retry(HOUR, FAILURE, attempt_used=False),
        Dead(DeadReason.REJECTED, FAILURE),
        Dead(DeadReason.NO_DATA, FAILURE, attempt_used=False),
    )
)


@dataclass
class Kept:
    """A callback in retry: ``due`` is its place among the due ones, None before it is due."""

    payload: bytes
    attempts: int
    recoveries: int
    due: int | None = None


@dataclass
class Lease:
    """``ran_out`` is its place among those whose deadline has passed."""

    claimed: Claimed
    ran_out: int | None = None


@dataclass
class Model:
    pending: list[bytes] = field(default_factory=list)
    processing: Counter[bytes] = field(default_factory=Counter)
    retry: dict[str, Kept] = field(default_factory=dict)
    dead: dict[str, bytes] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    memory: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # attempts, recoveries
    orphans: set[str] = field(default_factory=set)
    lock: str | None = None
    claims: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    accepted: Counter[bytes] = field(default_factory=Counter)
    delivered: Counter[bytes] = field(default_factory=Counter)
    removed: Counter[bytes] = field(default_factory=Counter)  # by an operator or by somebody else's worker


class Machine(RuleBasedStateMachine):
    def __init__(self, server: Server, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.redis: Any = server.client
        self.loop = loop
        self.queues = {value: Queue(connections, KEYS, lock_value=value) for value in DAEMONS}
        self.any_queue = self.queues[DAEMONS[0]]
        self.healing = Healing(connections, KEYS)
        self.model = Model()
        self.claimed: list[Claimed] = []  # all that ever were
        self.ticks = 0
        self.redis.flushall()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def tick(self) -> int:
        """A time that is long past, later at each call."""
        self.ticks += 1
        return self.ticks

    # --- producers and the existing tools ----------------------------------------------------

    @initialize(
        fates=st.lists(st.tuples(payloads, outcomes), max_size=6),
        held=st.lists(payloads, max_size=4),
        queued=st.lists(payloads, max_size=4),
    )
    def there_is_something_in_every_place(
        self, fates: list[tuple[bytes, Outcome]], held: list[bytes], queued: list[bytes]
    ) -> None:
        for payload, outcome in fates:
            self.others_produce(payload)
            self.lead_and_claim(DAEMONS[0], 1, 1, None)
            self.settle_these([(self.claimed[-1], outcome)])
        for payload in held:
            self.others_produce(payload)
        self.lead_and_claim(DAEMONS[1], 5, 10_000, None)
        self.lead_and_claim(DAEMONS[0], 5, 10_000, None)
        for payload in queued:
            self.others_produce(payload)

    @rule(payload=payloads)
    def others_produce(self, payload: bytes) -> None:
        self.redis.rpush(KEYS.pending, payload)
        self.model.pending.append(payload)
        self.model.accepted[payload] += 1

    @precondition(lambda self: self.model.pending)
    @rule()
    def others_claim(self) -> None:
        payload = self.redis.lpop(KEYS.pending)
        assert isinstance(payload, bytes)
        self.redis.rpush(KEYS.processing, payload)
        assert payload == self.model.pending.pop(0)
        self.model.processing[payload] += 1

    @precondition(lambda self: self.model.processing)
    @rule(which=st.integers(0, 9))
    def others_acknowledge(self, which: int) -> None:
        present = sorted(self.model.processing)
        payload = present[which % len(present)]
        assert self.redis.lrem(KEYS.processing, 1, payload) == 1
        self.model.processing -= Counter([payload])
        self.model.removed[payload] += 1

    @rule(what=st.sampled_from(["recover", "reset", "unlock", "lock", "lock for ever", "delete retry"]))
    def others_interfere(self, what: str) -> None:
        match what:
            case "recover":
                self.others_recover()
            case "reset":
                self.others_reset()
            case "unlock":
                self.the_lock_expires_or_is_deleted()
            case "lock":
                if self.redis.set(KEYS.lock, "worker_1763999999_0001", nx=True, ex=30):
                    self.model.lock = "worker_1763999999_0001"
            case "lock for ever":
                if self.redis.set(KEYS.lock, ENDLESS, nx=True):
                    self.model.lock = ENDLESS
            case "delete retry":
                self.somebody_deletes_retry()

    def others_recover(self) -> None:
        while (payload := self.redis.lpop(KEYS.processing)) is not None:
            assert isinstance(payload, bytes)
            self.redis.rpush(KEYS.pending, payload)
            self.model.pending.append(payload)
            self.model.processing -= Counter([payload])

    def others_reset(self) -> None:
        self.redis.delete(*CONTRACT)
        model = self.model
        model.removed += Counter(model.pending) + model.processing
        model.pending, model.processing, model.lock = [], Counter(), None
        model.stats.clear()

    def the_lock_expires_or_is_deleted(self) -> None:
        self.redis.delete(KEYS.lock)
        self.model.lock = None

    def somebody_deletes_retry(self) -> None:
        self.redis.delete(KEYS.retry)
        model = self.model
        model.removed += Counter(kept.payload for kept in model.retry.values())
        model.orphans |= set(model.retry)
        model.retry = {}

    # --- time --------------------------------------------------------------------------------

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def leases_run_out(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(self.model.leases)), min_size=1, unique=True)):
            self._run_out(name)

    def _run_out(self, name: str) -> None:
        at = self.tick()
        self.redis.zadd(KEYS.leases, {name: at}, xx=True)
        self.model.leases[name].ran_out = at

    @precondition(lambda self: self.model.retry)
    @rule(data=st.data())
    def retries_become_due(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(self.model.retry)), min_size=1, unique=True)):
            at = self.tick()
            self.redis.zadd(KEYS.retry, {name: at}, xx=True)
            self.model.retry[name].due = at

    # --- the daemons -------------------------------------------------------------------------

    @rule(some=st.lists(payloads, min_size=1, max_size=3))
    def enqueue(self, some: list[bytes]) -> None:
        length = self.do(self.any_queue.enqueue(some))
        self.model.pending += some
        self.model.accepted += Counter(some)
        self.model.stats["queued"] += len(some)
        assert length == len(self.model.pending)

    @rule(who=daemons)
    def keep_lock(self, who: str) -> None:
        state = self.do(self.queues[who].keep_lock(30.0))
        self.model.lock = self.model.lock or who
        assert state.ours == (self.model.lock == who)
        if self.model.lock == ENDLESS:
            assert state.ttl is None
        else:
            assert state.ttl is not None
            assert 0 < state.ttl <= 30

    @rule(who=daemons)
    def free_lock(self, who: str) -> None:
        assert self.do(self.queues[who].free_lock()) == (self.model.lock == who)
        if self.model.lock == who:
            self.model.lock = None

    @rule(
        who=daemons,
        count=st.integers(1, 5),
        max_bytes=st.sampled_from([1, 60, 400, 10_000]),
        from_pending=st.sampled_from([None, 0, 1]),
    )
    def lead_and_claim(self, who: str, count: int, max_bytes: int, from_pending: int | None) -> None:
        """As a daemon does: the lock first. It is somebody else's at times."""
        self.keep_lock(who)
        self.claim(who, count, max_bytes, from_pending)

    @rule(
        who=daemons,
        count=st.integers(1, 5),
        max_bytes=st.sampled_from([1, 60, 400, 10_000]),
        from_pending=st.sampled_from([None, 0, 1]),
    )
    def claim(self, who: str, count: int, max_bytes: int, from_pending: int | None) -> None:
        claim = self.do(
            self.queues[who].claim(
                count=count, max_bytes=max_bytes, lease=HOUR, lock_ttl=30.0, from_pending=from_pending
            )
        )
        if self.model.lock != who:
            assert claim is None
            return
        assert claim is not None
        expected, from_retry = self._expected(count, max_bytes, count if from_pending is None else from_pending)
        assert [(one.payload, one.attempts, one.recoveries) for one in claim.items] == expected
        assert claim.from_retry == from_retry
        assert claim.pending_left == len(self.model.pending)
        assert (claim.next_due_ms is None) == (not self.model.retry)
        for one in claim.items:
            self.model.processing[one.payload] += 1
            self.model.leases[one.lease] = Lease(one)
        self.claimed += claim.items

    def _expected(self, count: int, max_bytes: int, from_pending: int) -> tuple[list[tuple[bytes, int, int]], int]:
        """What a claim brings, taken out of the model's places."""
        model = self.model
        model.claims += 1
        taken: list[tuple[bytes, int, int]] = []
        from_retry = 0

        def fits(payload: bytes) -> bool:
            return not taken or sum(len(one[0]) for one in taken) + len(payload) <= max_bytes

        for source in ("retry", "pending") if model.claims % 2 == 0 else ("pending", "retry"):
            if source == "retry":
                due = sorted((kept.due, name) for name, kept in model.retry.items() if kept.due is not None)
                for _, name in due:
                    kept = model.retry[name]
                    if len(taken) == count or not fits(kept.payload):
                        break
                    taken.append((kept.payload, kept.attempts, kept.recoveries))
                    del model.retry[name]
                    from_retry += 1
            else:
                for payload in model.pending[:from_pending]:
                    if len(taken) == count or not fits(payload):
                        break
                    taken.append((payload, *model.memory.pop(payload, (0, 0))))
                    model.pending.pop(0)
        return taken, from_retry

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), fates=st.lists(outcomes, min_size=1, max_size=5))
    def settle_all_held(self, data: st.DataObject, fates: list[Outcome]) -> None:
        held = data.draw(st.permutations([lease.claimed for lease in self.model.leases.values()]))
        self.settle_these(list(zip(held, fates * len(held), strict=False)))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def settle_some_held(self, data: st.DataObject) -> None:
        held = st.sampled_from([lease.claimed for lease in self.model.leases.values()])
        self.settle_these(data.draw(st.lists(st.tuples(held, outcomes), min_size=1, max_size=4)))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def settle_any(self, data: st.DataObject) -> None:
        """Of the claims that ever were: held, given away, settled before, and some twice in one call."""
        ever = st.sampled_from(self.claimed)
        self.settle_these(data.draw(st.lists(st.tuples(ever, outcomes), min_size=1, max_size=4)))

    def settle_these(self, chosen: list[tuple[Claimed, Outcome]]) -> None:
        settled = self.do(self.any_queue.settle([Settle(claimed, outcome) for claimed, outcome in chosen]))
        assert settled == [self._settle(claimed, outcome) for claimed, outcome in chosen]

    def _settle(self, claimed: Claimed, outcome: Outcome) -> Settled:
        model, payload = self.model, claimed.payload
        if model.leases.pop(claimed.lease, None) is None:
            return Settled.FENCED
        used = isinstance(outcome, Retry | Dead) and outcome.attempt_used
        model.stats["sent"] += isinstance(outcome, Delivered)
        model.stats["failed"] += used
        if not model.processing[payload]:
            return Settled.MISSING
        model.processing -= Counter([payload])
        identity = claimed.lease.split("|")[0]
        match outcome:
            case Delivered():
                model.delivered[payload] += 1
            case PutBack():
                model.pending.insert(0, payload)
                model.memory[payload] = (claimed.attempts, claimed.recoveries)
            case Retry():
                model.retry[identity] = Kept(payload, claimed.attempts + used, claimed.recoveries)
            case Dead():
                model.dead[identity] = payload
        return Settled.DONE

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.claimed), min_size=1, max_size=4, unique_by=id))
        returned = self.do(self.any_queue.put_back(chosen))
        assert returned == [self._settle(one, PutBack()) for one in reversed(chosen)].count(Settled.DONE)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        chosen = [one.lease for one in data.draw(st.lists(st.sampled_from(self.claimed), min_size=1, max_size=4))]
        assert self.do(self.any_queue.extend(chosen, HOUR)) == [name in self.model.leases for name in chosen]
        for name in chosen:
            if name in self.model.leases:
                self.model.leases[name].ran_out = None

    @precondition(lambda self: self.model.leases)
    @rule(max_recoveries=st.integers(0, 2))
    def all_daemons_die(self, max_recoveries: int) -> None:
        for name in sorted(self.model.leases):
            self._run_out(name)
        self.recover(max_recoveries)

    @rule(max_recoveries=st.integers(0, 2))
    def recover(self, max_recoveries: int) -> None:
        order = list(self.redis.lrange(KEYS.processing, 0, -1))
        recovery = self.do(self.any_queue.recover_expired(max_recoveries))
        returned, dead, over = self._recovered_expired(order, max_recoveries)
        assert (recovery.returned, recovery.dead) == (returned, dead)
        assert recovery.leases_dropped == over - returned - dead

    def _recovered_expired(self, order: list[Any], max_recoveries: int) -> tuple[int, int, int]:
        """In the model, with ``order`` in processing: how many returned, died, and how many leases were over."""
        model = self.model
        over = sorted((lease.ran_out, name) for name, lease in model.leases.items() if lease.ran_out is not None)
        wanted: dict[bytes, list[str]] = {}
        for _, name in over:
            wanted.setdefault(model.leases[name].claimed.payload, []).append(name)
        returned = dead = 0
        for payload in reversed(order):
            assert isinstance(payload, bytes)
            if not wanted.get(payload):
                continue
            name = wanted[payload].pop()
            claimed = model.leases.pop(name).claimed
            model.processing -= Counter([payload])
            if claimed.recoveries + 1 > max_recoveries:
                model.dead[name.split("|")[0]] = payload
                dead += 1
            else:
                model.pending.insert(0, payload)
                model.memory[payload] = (claimed.attempts, claimed.recoveries + 1)
                returned += 1
        for names in wanted.values():
            for name in names:
                del model.leases[name]
        return returned, dead, len(over)

    # --- what others left behind -------------------------------------------------------------

    @rule()
    def look_at_processing(self) -> None:
        leases = Counter(lease.claimed.payload for lease in self.model.leases.values())
        untracked = self.model.processing - leases
        look = self.do(self.healing.look_at_processing(HOUR))
        assert (look.untracked, look.begun_anew) == (untracked.total(), False)
        assert look.leases_over == sum(lease.ran_out is not None for lease in self.model.leases.values())
        assert look.ineffective == sum(recoveries >= 2 for _, recoveries in self.model.memory.values())
        seen = self._sightings()
        assert Counter(payload for payload, _ in seen) == untracked
        assert look.stuck == sum(ms < 1e12 for _, ms in seen)

    def _sightings(self) -> list[tuple[bytes, float]]:
        """The payload of each, and when it was first seen."""
        names = {hashlib.sha1(payload).hexdigest(): payload for payload in PAYLOADS}
        found = self.redis.zrange(KEYS.sightings, 0, -1, withscores=True)
        return [(names[name.decode().split("#")[0]], ms) for name, ms in found]

    @rule(data=st.data())
    def sightings_grow_old(self, data: st.DataObject) -> None:
        names = self.redis.zrange(KEYS.sightings, 0, -1)
        if names:
            for name in data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True)):
                self.redis.zadd(KEYS.sightings, {name: self.tick()}, xx=True)

    @rule()
    def time_passes_for_all_that_others_hold(self) -> None:
        self.look_at_processing()
        for name in self.redis.zrange(KEYS.sightings, 0, -1):
            self.redis.zadd(KEYS.sightings, {name: self.tick()}, xx=True)

    @rule(max_recoveries=st.integers(0, 2))
    def recover_stuck(self, max_recoveries: int) -> None:
        model = self.model
        stuck = Counter(payload for payload, ms in self._sightings() if ms < 1e12)
        ours = {lease.claimed.payload for lease in model.leases.values()}
        last_first = list(reversed(self.redis.lrange(KEYS.processing, 0, -1)))
        known = set(model.dead)
        recovery = self.do(self.healing.recover_stuck(HOUR, max_recoveries))
        returned, dead = 0, Counter[bytes]()
        for page in (last_first[:16], last_first[16:80], last_first[80:]):
            before, deaths = dict(model.memory), dead.total()
            for payload in page:
                assert isinstance(payload, bytes)
                if payload in ours or not stuck[payload]:
                    continue
                stuck[payload] -= 1
                model.processing -= Counter([payload])
                attempts, recoveries = before.get(payload, (0, 0))
                if recoveries + 1 > max_recoveries:
                    dead[payload] += 1
                    model.memory.pop(payload, None)
                else:
                    model.pending.insert(0, payload)
                    model.memory[payload] = (attempts, recoveries + 1)
                    returned += 1
            model.claims += dead.total() > deaths  # the ids of dead letters are made of the fence
        assert (recovery.returned, recovery.dead) == (returned, dead.total())
        new = [name.decode() for name in self.redis.zrange(KEYS.dead, 0, -1) if name.decode() not in known]
        letters = {name: self.redis.hget(KEYS.payloads, name) for name in new}
        assert Counter(letters.values()) == dead
        model.dead |= letters

    @rule()
    def a_person_recovers_all(self) -> None:
        model = self.model
        order = list(self.redis.lrange(KEYS.processing, 0, -1))
        before = len(model.pending)
        recovery = self.do(self.healing.recover_all())
        self._recovered_expired(order, 10**9)
        ours = {lease.claimed.payload for lease in model.leases.values()}
        left = list(self.redis.lrange(KEYS.processing, 0, -1))
        assert set(left) <= ours
        moved = list(self.redis.lrange(KEYS.pending, 0, -1))[: -len(model.pending) or None]
        assert Counter(moved) == Counter({one: n for one, n in model.processing.items() if one not in ours})
        model.processing -= Counter(moved)
        model.pending[:0] = moved
        assert recovery.returned == len(model.pending) - before

    @rule(long_ago=st.booleans(), meanwhile=st.sampled_from(["nothing", "prolonged", "replaced"]))
    def the_lock_keeper_looks(self, long_ago: bool, meanwhile: str) -> None:
        look = self.do(self.healing.look_at_lock())
        assert (look and look.value.decode()) == self.model.lock
        if look is None:
            return
        if long_ago:
            self.redis.hset(KEYS.lock_seen, "untouched_ms", 1)
            look = self.do(self.healing.look_at_lock())
            assert look is not None
        verdict = judge(look, LOCK_RULE)
        if look.ttl is not None:
            assert verdict == Leave(), "a lock with a sane TTL"
        if not isinstance(verdict, Release):
            return
        assert look.now - look.untouched_since >= HOUR
        if meanwhile == "prolonged":
            self.redis.expire(KEYS.lock, 30)
        elif meanwhile == "replaced":
            self.redis.set(KEYS.lock, DAEMONS[0], ex=30)
            self.model.lock = DAEMONS[0]
        assert self.do(self.healing.release_lock(look)) == (meanwhile == "nothing")
        if meanwhile == "prolonged":
            self.redis.persist(KEYS.lock)
        elif meanwhile == "nothing":
            self.model.lock = None

    # --- dead letters ------------------------------------------------------------------------

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data())
    def dead_letters_are_sent_again(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from([*self.model.dead, "0-0-0"]), min_size=1, max_size=3))
        moved = self.do(self.any_queue.dead_retry(chosen))
        before = len(self.model.dead)
        for name in chosen:
            if name in self.model.dead:
                payload = self.model.dead.pop(name)
                self.model.pending.append(payload)
                self.model.memory.pop(payload, None)
        assert moved == before - len(self.model.dead)

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data())
    def dead_letters_are_deleted(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from([*self.model.dead, "0-0-0"]), min_size=1, max_size=3))
        purged = self.do(self.any_queue.dead_purge(chosen))
        assert purged == len(self._purge(set(chosen)))

    @precondition(lambda self: self.model.dead)
    @rule(data=st.data(), keep=st.integers(0, 3))
    def dead_letters_are_trimmed(self, data: st.DataObject, keep: int) -> None:
        old = data.draw(st.lists(st.sampled_from([*self.model.dead]), max_size=2, unique=True))
        for name in old:
            self.redis.zadd(KEYS.dead, {name: self.tick()}, xx=True)
        in_order = [name.decode() for name in self.redis.zrange(KEYS.dead, 0, -1) if isinstance(name, bytes)]
        surplus = set(in_order[: max(0, len(in_order) - keep)]) | {*self._ancient()}
        assert self.do(self.any_queue.trim_dead(keep, HOUR)) == len(surplus)
        self._purge(surplus)

    def _ancient(self) -> list[str]:
        return [name.decode() for name in self.redis.zrangebyscore(KEYS.dead, 0, 1e12) if isinstance(name, bytes)]

    def _purge(self, names: set[str]) -> list[bytes]:
        purged = [self.model.dead.pop(name) for name in sorted(names) if name in self.model.dead]
        self.model.removed += Counter(purged)
        return purged

    @rule()
    def sweep(self) -> None:
        assert self.do(self.any_queue.sweep()) == len(self.model.orphans)
        self.model.orphans = set()

    @rule()
    def what_was_returned_is_forgotten(self) -> None:
        _, forgotten = self.do(self.any_queue.forget_returned(0, 10**14))
        assert forgotten == len(self.model.memory)
        self.model.memory = {}

    # --- what must hold after every step -----------------------------------------------------

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        model = self.model
        pipe = self.redis.pipeline(transaction=True)
        pipe.lrange(KEYS.pending, 0, -1)
        pipe.lrange(KEYS.processing, 0, -1)
        pipe.zrange(KEYS.retry, 0, -1)
        pipe.zrange(KEYS.dead, 0, -1)
        pipe.zrange(KEYS.leases, 0, -1)
        pipe.hgetall(KEYS.payloads)
        pipe.hkeys(KEYS.records)
        pipe.hkeys(KEYS.returned)
        pipe.mget(KEYS.lock, KEYS.stats_queued, KEYS.stats_sent, KEYS.stats_failed)
        pipe.keys("*")
        pending, processing, retry, dead, leases, kept, records, memory, plain, names = pipe.execute()

        retry, dead = [name.decode() for name in retry], [name.decode() for name in dead]
        kept = {name.decode(): payload for name, payload in kept.items()}
        assert pending == model.pending
        assert Counter(processing) == model.processing
        assert {name: kept[name] for name in retry} == {name: one.payload for name, one in model.retry.items()}
        assert {name: kept[name] for name in dead} == model.dead
        assert {name.decode() for name in leases} == model.leases.keys()
        assert set(kept) == {name.decode() for name in records} == {*retry, *dead} | model.orphans
        assert len(memory) == len(model.memory)
        assert plain[0] == (model.lock and model.lock.encode())
        assert [int(value or 0) for value in plain[1:]] == [model.stats[name] for name in ("queued", "sent", "failed")]
        assert {name.decode() for name in names} <= set(KEYS.all())

        somewhere = Counter(pending) + Counter(processing) + Counter(kept[name] for name in [*retry, *dead])
        assert somewhere + model.delivered + model.removed == model.accepted

    def teardown(self) -> None:
        """Whatever happened, all that is left can still be delivered."""
        if self.model.processing:
            self.others_recover()
        self.the_lock_expires_or_is_deleted()
        self.keep_lock(DAEMONS[0])
        for name in self.model.retry:
            at = self.tick()
            self.redis.zadd(KEYS.retry, {name: at}, xx=True)
            self.model.retry[name].due = at
        if self.model.dead:
            ids = list(self.model.dead)
            assert self.do(self.any_queue.dead_retry(ids)) == len(ids)
            for name in ids:
                payload = self.model.dead.pop(name)
                self.model.pending.append(payload)
                self.model.memory.pop(payload, None)
        while self.model.pending or self.model.retry:
            first = len(self.claimed)
            self.claim(DAEMONS[0], 5, 10_000, None)
            for claimed in self.claimed[first:]:
                assert self.do(self.any_queue.settle([Settle(claimed, Delivered())])) == [Settled.DONE]
                self._settle(claimed, Delivered())
        self.sweep()
        self.the_store_holds_what_the_model_holds()
        assert self.model.delivered + self.model.removed == self.model.accepted


def test_no_callback_is_ever_lost_or_made_up(each_server: Server) -> None:
    examples = int(os.environ.get("CBQ_TEST_EXAMPLES", "0"))
    loop = asyncio.new_event_loop()
    connections = Connections(each_server.url, shown_as="test")
    try:
        run_state_machine_as_test(
            lambda: Machine(each_server, connections, loop),  # type: ignore[arg-type]  # any callable will do
            settings=settings(
                max_examples=examples or 300,
                stateful_step_count=50,
                deadline=None,
                derandomize=not examples,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(connections.close())
        loop.close()
