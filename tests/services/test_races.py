"""What happens at once on one queue, in every order of its scripts and commands.

After each step every callback is in one place, and every live lease has its callback; at the end each has done what
it says it did, and the audit says the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from cbq_exporter.config.models import Config, QueueConfig
from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import (
    Actor,
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    LockRule,
    Mode,
    Outcome,
    PutBack,
    Recovery,
    Retry,
    Settled,
    Settlement,
    Trigger,
)
from cbq_exporter.policy.stuck import StuckRule
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.lock_keeper import LockKeeper, LockReport
from cbq_exporter.services.operations import (
    Executed,
    Operation,
    Operations,
    Pause,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    RetryDead,
    Undo,
    Unlock,
)
from cbq_exporter.services.recoverer import Recoverer, RecoveryReport
from cbq_exporter.store import trash
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import read_lease
from cbq_exporter.store.opening import Store, reader_of
from cbq_exporter.store.queue import Queue
from tests.support.interleaving import Actor as Runs
from tests.support.interleaving import Ends, Gate, Race, Step, chosen_orders, every_order
from tests.support.queues import FAILURE, callback
from tests.support.servers import Server

T = TypeVar("T")

QUEUE = "callbacks"
STALE = b"worker_1764000000_4711"
DAEMON = "cbq-exporter_1764000000_host_1"
LOCK_RULE = LockRule(no_ttl_after=60, max_ttl=600, dead_after=15)
STUCK_RULE = StuckRule(auto=True, stuck_after=300, max_recoveries=3)
HOUR = 3600.0
CONFIG = Config(queues=(QueueConfig(name=QUEUE, prefix="q", mode=Mode.SUPERVISE),))


class Scene:
    """One queue: how it is at the beginning of each run, who is at it, and what must be true of it all the time.

    ``gone`` are callbacks that were taken out for good, ``arrived`` those that came during the run.
    """

    def __init__(self, server: Server) -> None:
        self.redis: Any = server.client
        self.loop = asyncio.new_event_loop()
        self.connections = Connections(server.url, shown_as="test")
        self.keys = QueueKeys.of("q")
        self.queue = Queue(self.connections, self.keys, lock_value=DAEMON)
        self.healing = Healing(self.connections, self.keys, DAEMON)
        self.instruments = Instruments([QUEUE]).queue(QUEUE)
        self.gone: Counter[bytes] = Counter()
        self.arrived: Counter[bytes] = Counter()
        self._image: list[tuple[bytes, int, bytes]] = []
        self._accepted: Counter[bytes] = Counter()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self.connections.close())
        self.loop.close()

    # --- the beginning -----------------------------------------------------------------------

    def others_hold(self, *payloads: bytes) -> None:
        """Claimed by other workers, and seen so long ago that they are stuck."""
        self.redis.rpush(self.keys.processing, *payloads)
        self.do(self.healing.sightings.look(300.0))
        for name in self.redis.zrange(self.keys.sightings, 0, -1):
            self.redis.zadd(self.keys.sightings, {name: 1})

    def we_hold(self, *payloads: bytes) -> tuple[Claimed, ...]:
        """Claimed by the daemon, which has the lock."""
        self.do(self.healing.lock.beat())
        assert self.do(self.queue.keep_lock(30.0)).ours
        self.redis.rpush(self.keys.pending, *payloads)
        claim = self.do(self.queue.claim(count=100, max_bytes=1 << 30, lease=60.0, lock_ttl=30.0))
        assert claim is not None
        return claim.items

    def let_run_out(self, *claims: Claimed) -> None:
        for claim in claims:
            self.redis.zadd(self.keys.leases, {claim.lease: 1}, xx=True)

    def are_kept(self, outcome: Outcome, *payloads: bytes) -> None:
        """In retry or dead."""
        settlements = [Settlement(claim, outcome, "", "a.example") for claim in self.we_hold(*payloads)]
        assert self.do(self.queue.settle(settlements)) == [Settled.DONE] * len(payloads)

    def are_in_trash(self) -> None:
        """All that is there now."""
        desk = Desk(self, self.connections)
        self.do(desk.carry_out(Reset(QUEUE, force=True)))
        self.redis.delete(self.keys.audit)

    def begins(self) -> None:
        """As it is now, each run begins."""
        names = self.redis.keys("*")
        self._image = [(name, max(0, self.redis.pttl(name)), self.redis.dump(name)) for name in names]
        self._accepted = self.everywhere()

    def prepare(self) -> None:
        self.gone, self.arrived = Counter(), Counter()
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.flushall()
            for name, ttl, dump in self._image:
                pipe.restore(name, ttl, dump)
            pipe.execute()

    def claimed(self, lease: bytes, payload: bytes) -> Claimed:
        return read_lease(lease, payload)

    # --- what is where -----------------------------------------------------------------------

    def everywhere(self) -> Counter[bytes]:
        """Of the queue and of its trash."""
        places = [self.keys, *(self.keys.trash_of(one.decode()) for one in self.redis.zrange(self.keys.trash, 0, -1))]
        with self.redis.pipeline(transaction=False) as pipe:
            for k in places:
                pipe.lrange(k.pending, 0, -1).lrange(k.processing, 0, -1)
                pipe.zrange(k.retry, 0, -1).zrange(k.dead, 0, -1).hgetall(k.payloads)
            answers = pipe.execute()
        found: Counter[bytes] = Counter()
        for at in range(0, len(answers), 5):
            pending, processing, retry, dead, payloads = answers[at : at + 5]
            assert set(payloads) == {*retry, *dead}
            found.update(pending + processing + list(payloads.values()))
        return found

    def missing(self) -> Counter[bytes]:
        return self._accepted + self.arrived - self.everywhere()

    def items(self, key: str) -> list[bytes]:
        found: list[bytes] = self.redis.lrange(key, 0, -1)
        return found

    def none_is_lost(self, step: Step | None = None) -> None:
        assert self.everywhere() + self.gone == self._accepted + self.arrived

    def leases_are_kept(self, step: Step | None = None) -> None:
        """And what is under a live lease is in processing."""
        self.none_is_lost()
        live = Counter(name.split(b"|")[1].decode() for name in self.redis.zrangebyscore(self.keys.leases, "(1", "inf"))
        there = Counter(_sha1(payload) for payload in self.items(self.keys.processing))
        assert live <= there

    def audited(self, who: str) -> list[str]:
        """The results in the audit of one actor, or of a trigger."""
        entries = [fields for _, fields in self.redis.xrange(self.keys.audit)]
        return [one[b"result"].decode() for one in entries if who.encode() in (one[b"actor"], one[b"trigger"])]

    # --- running -----------------------------------------------------------------------------

    def race(
        self,
        check: Callable[[Ends], None],
        watch: Callable[[Step], None] | None = None,
        **actors: Runs,
    ) -> Race:
        return Race(actors, self.prepare, check, watch or self.none_is_lost)

    def every_order(self, race: Race) -> list[Ends]:
        return self.do(every_order(race))

    def chosen_orders(self, race: Race, examples: int = 100) -> list[Ends]:
        return chosen_orders(race, self.loop, examples=examples)


class Desk:
    """The store and the services over it, as one actor of a race has them."""

    def __init__(self, scene: Scene, connections: Connections, lock_value: str = "") -> None:
        self.scene = scene
        keys = scene.keys
        self.queue = Queue(connections, keys, lock_value=lock_value)
        self.healing = Healing(connections, keys, lock_value)
        reader = reader_of(CONFIG, connections, lock_value)
        store = Store(connections, {QUEUE: self.queue}, {QUEUE: self.healing}, reader, "test")
        self.audit = Audit(store)
        self.operations = Operations(CONFIG, store, self.audit)

    async def carry_out(self, operation: Operation, who: str = "alice") -> Executed:
        plan = await self.operations.plan(operation)
        return await self.operations.execute(plan, actor=Actor(Trigger.CLI, who))


@pytest.fixture
def scene(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    yield from _scene(server, caplog)


@pytest.fixture
def each_scene(each_server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    yield from _scene(each_server, caplog)


def _scene(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    caplog.set_level(logging.CRITICAL)  # thousands of recoveries
    scene = Scene(server)
    try:
        yield scene
    finally:
        scene.close()


def _sha1(payload: bytes) -> str:
    return hashlib.sha1(payload, usedforsecurity=False).hexdigest()


# --- who takes part ------------------------------------------------------------------------------


def keeper(scene: Scene, lock_value: str = "") -> Runs:
    """A daemon that looks at the lock once."""

    async def run(gate: Gate) -> LockReport:
        desk = Desk(scene, gate.connections(scene.connections), lock_value)
        service = LockKeeper(
            QUEUE,
            desk.healing.lock,
            scene.instruments,
            desk.audit,
            rule=LOCK_RULE,
            auto=True,
            forget_after=75,
        )
        return await service.run_once()

    return run


def recoverer(scene: Scene) -> Runs:
    """A daemon that looks at processing once."""

    async def run(gate: Gate) -> RecoveryReport:
        desk = Desk(scene, gate.connections(scene.connections))
        service = Recoverer(QUEUE, desk.healing, scene.instruments, desk.audit, rule=STUCK_RULE, every=15)
        return await service.run_once()

    return run


def person(scene: Scene, operation: Operation) -> Runs:
    """Looks, and does what was planned then."""

    async def run(gate: Gate) -> Executed:
        return await Desk(scene, gate.connections(scene.connections)).carry_out(operation, gate.name)

    return run


def settler(scene: Scene, *settlements: tuple[Claimed, Outcome]) -> Runs:
    """A daemon at the end of its sends, one call for each."""

    async def run(gate: Gate) -> list[Settled]:
        desk = Desk(scene, gate.connections(scene.connections), DAEMON)
        return [await _settle(scene, desk, claim, outcome) for claim, outcome in settlements]

    return run


async def _settle(scene: Scene, desk: Desk, claim: Claimed, outcome: Outcome) -> Settled:
    (settled,) = await desk.queue.settle([Settlement(claim, outcome, "", "a.example")])
    if settled is Settled.DONE and isinstance(outcome, Delivered):
        scene.gone[claim.payload] += 1
    return settled


def dispatcher(scene: Scene, outcome: Outcome | None = None, *, count: int = 1, lock_value: str = DAEMON) -> Runs:
    """A daemon that takes the lock, claims once, and settles; returns what it claimed and what came of it."""

    async def run(gate: Gate) -> list[tuple[bytes, Settled | None]]:
        desk = Desk(scene, gate.connections(scene.connections), lock_value)
        if not (await desk.queue.keep_lock(30.0)).ours:
            return []
        claim = await desk.queue.claim(count=count, max_bytes=1 << 30, lease=60.0, lock_ttl=30.0)
        if claim is None:
            return []
        return [
            (one.payload, None if outcome is None else await _settle(scene, desk, one, outcome)) for one in claim.items
        ]

    return run


def producer(scene: Scene, *payloads: bytes) -> Runs:
    async def run(gate: Gate) -> None:
        for payload in payloads:
            await gate("RPUSH", scene.keys.pending)
            scene.redis.rpush(scene.keys.pending, payload)
            scene.arrived[payload] += 1

    return run


def commands(scene: Scene, *commands: tuple[Any, ...]) -> Runs:
    """An existing worker: one command after the other, on the keys that they name."""

    async def run(gate: Gate) -> list[Any]:
        answers = []
        for command in commands:
            await gate(command[0], *(word for word in command[1:] if isinstance(word, str)))
            answers.append(scene.redis.execute_command(*command))
        return answers

    return run


def acknowledger(scene: Scene, *payloads: bytes) -> Runs:
    """An existing worker at the end of its sends."""

    async def run(gate: Gate) -> list[int]:
        found = []
        for payload in payloads:
            await gate("LREM", scene.keys.processing)
            found.append(scene.redis.lrem(scene.keys.processing, 1, payload))
            scene.gone[payload] += found[-1]
        return found

    return run


# --- the lock keeper -----------------------------------------------------------------------------

LOCK = "q:lock"
NEXT = "worker_1764000099_0001"
# What a holder may do, and whether the lock may still go after it has begun.
HOLDERS: dict[str, list[tuple[Any, ...]]] = {
    "renews": [("EXPIRE", LOCK, 30), ("EXPIRE", LOCK, 30)],
    "writes its value again": [("SET", LOCK, STALE, "EX", 30)],
    "hands over": [("DEL", LOCK), ("SET", LOCK, NEXT, "NX", "EX", 30), ("EXPIRE", LOCK, 30)],
    "hands over for ever": [("DEL", LOCK), ("SET", LOCK, NEXT, "NX")],
    "takes it when it is free": [("SET", LOCK, NEXT, "NX", "EX", 30), ("SET", LOCK, NEXT, "NX", "EX", 30)],
}


class LockWatch:
    """After each step of a keeper: what it deleted was the stale lock, which could not free itself."""

    def __init__(self, scene: Scene, keepers: Sequence[str]) -> None:
        self._scene = scene
        self._keepers = keepers
        self.aborts_before = 0.0

    def prepare(self) -> None:
        self._scene.prepare()
        self.aborts_before = self._aborts()
        self._lock = self._look()

    def aborts(self) -> float:
        """Counted in this run."""
        return self._aborts() - self.aborts_before

    def __call__(self, step: Step) -> None:
        before, self._lock = self._lock, self._look()
        if step.actor in self._keepers and self._lock[0] != before[0]:
            assert (before, self._lock[0]) == ((STALE, -1), None), f"{before} was deleted"

    def _aborts(self) -> float:
        sample = self._scene.instruments.lock_release_aborts.sample()
        return 0.0 if sample is None else sample.value

    def _look(self) -> tuple[bytes | None, int]:
        value, ttl = self._scene.redis.get(LOCK), self._scene.redis.ttl(LOCK)
        return value, ttl


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_keepers_release_only_what_cannot_free_itself(each_scene: Scene, holder: str) -> None:
    scene = each_scene
    scene.redis.set(LOCK, STALE)
    scene.do(scene.healing.lock.look())
    scene.redis.hset(scene.keys.lock_seen, "untouched_ms", 1)
    scene.begins()
    watch = LockWatch(scene, ("one", "two"))

    def check(ends: Ends) -> None:
        one, two = ends["one"], ends["two"]
        assert one.released is None or two.released is None
        assert watch.aborts() == one.aborted + two.aborted == scene.audited("schedule").count("changed")
        assert scene.audited("schedule").count("done") == bool(one.released or two.released)

    race = Race(
        {"one": keeper(scene), "two": keeper(scene), "holder": commands(scene, *HOLDERS[holder])},
        watch.prepare,
        check,
        watch,
    )
    ends = scene.every_order(race)
    for name in ("one", "two"):  # the race was one
        assert {(end[name].released is not None, end[name].aborted) for end in ends} >= {(True, False), (False, True)}


def test_a_lock_that_expires_by_itself_is_never_released(each_scene: Scene) -> None:
    scene = each_scene
    scene.redis.set(LOCK, STALE, ex=30)
    scene.do(scene.healing.lock.look())
    scene.redis.hset(scene.keys.lock_seen, "untouched_ms", 1)
    scene.begins()
    watch = LockWatch(scene, ("keeper",))

    def check(ends: Ends) -> None:
        assert (ends["keeper"].released, ends["keeper"].aborted) == (None, False)

    holder = commands(scene, ("PERSIST", LOCK), ("EXPIRE", LOCK, 30))
    scene.every_order(Race({"keeper": keeper(scene), "holder": holder}, watch.prepare, check, watch))


@pytest.mark.parametrize("sign", ["beat", "keep_lock", "both"])
def test_a_daemon_that_gives_a_sign_of_life_keeps_its_lock(each_scene: Scene, sign: str) -> None:
    scene = each_scene
    scene.redis.set(LOCK, DAEMON, ex=10)
    scene.redis.zadd(scene.keys.daemons, {DAEMON: scene.do(scene.queue.store_now_ms()) - 600_000})
    scene.do(scene.healing.lock.look())
    scene.redis.hset(scene.keys.lock_seen, "untouched_ms", 1)
    scene.begins()
    alive: list[Step] = []

    def prepare() -> None:
        alive.clear()
        scene.prepare()

    def watch(step: Step) -> None:
        if step.actor == "daemon":
            alive.append(step)
        elif alive and step.what == "lock_release":
            assert scene.redis.get(LOCK) == DAEMON.encode()

    async def daemon(gate: Gate) -> None:
        desk = Desk(scene, gate.connections(scene.connections), DAEMON)
        if sign != "keep_lock":
            await desk.healing.lock.beat()
        if sign != "beat":
            await desk.queue.keep_lock(30.0)

    other = "cbq-exporter_1764000000_host_2"
    race = Race({"keeper": keeper(scene, other), "daemon": daemon}, prepare, lambda ends: None, watch)
    found = {(end["keeper"].released is not None, end["keeper"].aborted) for end in scene.every_order(race)}
    assert found == {(True, False), (False, True), (False, False)}


# --- two dispatchers -----------------------------------------------------------------------------

ANOTHER = "cbq-exporter_1764000000_host_2"


class SendLockWatch:
    """After each step of a dispatcher: it claimed under its own lock only, and freed no other."""

    def __init__(self, scene: Scene, holders: Mapping[str, str]) -> None:
        self._scene = scene
        self._holders = holders

    def prepare(self) -> None:
        self._scene.prepare()
        self._lock, self._waiting = self._look()

    def __call__(self, step: Step) -> None:
        self._scene.leases_are_kept(step)
        (before, waited), (self._lock, self._waiting) = (self._lock, self._waiting), self._look()
        if step.actor not in self._holders:
            return
        its_own = before == self._holders[step.actor].encode()
        if step.what == "claim":
            assert (self._waiting < waited) == its_own
        if not its_own and before is not None:
            assert self._lock == before, f"the lock of {before!r} was taken from it"

    def _look(self) -> tuple[bytes | None, int]:
        return self._scene.redis.get(LOCK), self._scene.redis.llen(self._scene.keys.pending)


@pytest.mark.parametrize("outcome", [Delivered(), PutBack()], ids=lambda one: type(one).__name__)
def test_two_dispatchers_whose_lock_somebody_deletes_claim_nothing_together(
    each_scene: Scene, outcome: Outcome
) -> None:
    """An existing tool frees the lock with a plain DEL, whoever has it."""
    scene = each_scene
    scene.redis.rpush(scene.keys.pending, callback(1), callback(2), callback(3))
    scene.begins()
    holders = {"one": DAEMON, "two": ANOTHER}
    watch = SendLockWatch(scene, holders)

    def check(ends: Ends) -> None:
        codes = [code for name in holders for _, code in ends[name]]
        assert codes == [Settled.DONE] * len(codes)
        done = sum(scene.gone.values())
        assert done == (len(codes) if isinstance(outcome, Delivered) else 0)
        assert len(scene.items(scene.keys.pending)) == 3 - done
        assert not scene.redis.exists(scene.keys.processing, scene.keys.leases)

    def sender(lock_value: str) -> Runs:
        async def run(gate: Gate) -> list[tuple[bytes, Settled | None]]:
            ended: list[tuple[bytes, Settled | None]]
            ended = await dispatcher(scene, outcome, lock_value=lock_value)(gate)
            await Desk(scene, gate.connections(scene.connections), lock_value).queue.free_lock()
            return ended

        return run

    actors = {name: sender(value) for name, value in holders.items()}
    race = Race({**actors, "tool": commands(scene, ("DEL", LOCK))}, watch.prepare, check, watch)
    ends = scene.every_order(race)
    assert {(len(end["one"]), len(end["two"])) for end in ends} == {(0, 0), (0, 1), (1, 0), (1, 1)}


# --- recoverers ----------------------------------------------------------------------------------

OUTCOMES: list[Outcome] = [
    Delivered(),
    PutBack(),
    Retry(HOUR, FAILURE),
    Dead(DeadReason.REJECTED, FAILURE),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: type(one).__name__)
def test_a_callback_whose_lease_ran_out_is_settled_or_recovered(scene: Scene, outcome: Outcome) -> None:
    late, lost, live, equal = scene.we_hold(callback(1), callback(2), callback(3), callback(1))
    scene.let_run_out(late, lost)
    scene.begins()

    def check(ends: Ends) -> None:
        first, second, third = ends["daemon"]
        assert (second, third) == (Settled.DONE, Settled.DONE)
        recoverers = [end for end in ends.values() if isinstance(end, RecoveryReport)]
        assert sum(one.own.returned for one in recoverers) == 1 + (first is Settled.FENCED)
        assert sum(one.own.total > 0 for one in recoverers) <= scene.audited("schedule").count("done")

    daemon = settler(scene, (late, outcome), (live, Delivered()), (equal, Delivered()))
    one_recoverer = scene.race(check, scene.leases_are_kept, daemon=daemon, one=recoverer(scene))
    two_recoverers = scene.race(check, scene.leases_are_kept, daemon=daemon, one=recoverer(scene), two=recoverer(scene))
    for ends in (scene.every_order(one_recoverer), scene.chosen_orders(two_recoverers, 60)):
        assert {end["daemon"][0] for end in ends} == {Settled.DONE, Settled.FENCED}


class StuckWatch:
    """After each recovery of what others hold: only what was seen long ago has gone."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def prepare(self) -> None:
        self._scene.prepare()
        self._before = self._look()

    def __call__(self, step: Step) -> None:
        self._scene.leases_are_kept(step)
        (held, stuck), self._before = self._before, self._look()
        if step.what == "recover_stuck":
            assert held - self._before[0] <= stuck

    def _look(self) -> tuple[Counter[str], Counter[str]]:
        """By SHA-1: what is in processing, and what of it is stuck."""
        keys = self._scene.keys
        names = self._scene.redis.zrangebyscore(keys.sightings, "-inf", 1)
        held = Counter(_sha1(payload) for payload in self._scene.items(keys.processing))
        return held, Counter(name.partition(b"#")[0].decode() for name in names)


def test_two_daemons_recover_once_what_a_third_claims_meanwhile(scene: Scene) -> None:
    scene.others_hold(callback(1), callback(2), callback(1))
    scene.begins()
    watch = StuckWatch(scene)

    def check(ends: Ends) -> None:
        assert ends["one"].others.returned + ends["two"].others.returned == 3

    actors = {"one": recoverer(scene), "two": recoverer(scene), "daemon": dispatcher(scene)}
    ends = scene.chosen_orders(Race(actors, watch.prepare, check, watch))
    assert {len(end["daemon"]) for end in ends} == {0, 1}
    assert {end["one"].others.returned for end in ends} >= {0, 3}


def test_two_people_recover_once_what_a_daemon_claims_meanwhile(scene: Scene) -> None:
    scene.others_hold(callback(1))
    scene.begins()

    def check(ends: Ends) -> None:
        assert ends["alice"].returned + ends["bob"].returned == 1

    async def recover_all(gate: Gate) -> Recovery:
        return await Desk(scene, gate.connections(scene.connections)).healing.recover_all()

    actors = {"alice": recover_all, "bob": recover_all, "daemon": dispatcher(scene)}
    ends = scene.every_order(scene.race(check, scene.leases_are_kept, **actors))
    assert {len(end["daemon"]) for end in ends} == {0, 1}


def test_what_others_left_behind_is_acknowledged_or_recovered(each_scene: Scene) -> None:
    scene = each_scene
    young, again = callback(9), callback(1)
    scene.others_hold(again, callback(2), callback(3))
    scene.redis.rpush(scene.keys.processing, young)
    scene.begins()
    watch = StuckWatch(scene)

    def check(ends: Ends) -> None:
        held = scene.items(scene.keys.processing)
        assert young in held
        # What moved under a recoverer's eyes waits for its next look.
        returned = sum(end.others.returned for end in ends.values() if isinstance(end, RecoveryReport))
        assert returned + sum(ends["worker"]) + len(held) == 5

    async def worker(gate: Gate) -> list[int]:
        """Sends two of them after all, and begins with an equal one."""
        found: list[int] = await acknowledger(scene, again, callback(2))(gate)
        await gate("RPUSH", scene.keys.processing)
        scene.redis.rpush(scene.keys.processing, again)
        scene.arrived[again] += 1
        return found

    one = Race({"one": recoverer(scene), "worker": worker}, watch.prepare, check, watch)
    assert {sum(end["worker"]) for end in scene.every_order(one)} == {0, 1, 2}
    two = Race({"one": recoverer(scene), "two": recoverer(scene), "worker": worker}, watch.prepare, check, watch)
    scene.chosen_orders(two, 60)


def test_a_persons_recovery_takes_nothing_from_a_live_lease(scene: Scene) -> None:
    late, live = scene.we_hold(callback(1), callback(2))
    scene.let_run_out(late)
    scene.others_hold(callback(3))
    scene.redis.rpush(scene.keys.pending, callback(4))
    scene.begins()

    def check(ends: Ends) -> None:
        assert ends["settler"][1] is Settled.DONE
        fenced = ends["settler"][0] is Settled.FENCED
        assert ends["alice"].counts["callbacks"] == 1 + fenced, "also what a settlement moved under her eyes"

    race = scene.race(
        check,
        scene.leases_are_kept,
        alice=person(scene, Recover(QUEUE)),
        settler=settler(scene, (late, Delivered()), (live, Delivered())),
        dispatcher=dispatcher(scene),
    )
    assert {end["settler"][0] for end in scene.chosen_orders(race)} == {Settled.DONE, Settled.FENCED}


@pytest.mark.parametrize("older_than", [None, 300.0])
def test_a_persons_recovery_finds_what_settlements_move(scene: Scene, older_than: float | None) -> None:
    """Each settlement takes a callback out from before those that are to be recovered."""
    live = scene.we_hold(callback(1), callback(2))
    scene.others_hold(callback(3), callback(4))
    scene.begins()

    def check(ends: Ends) -> None:
        assert ends["alice"].returned == 2
        assert scene.items(scene.keys.processing) == []

    async def recover_all(gate: Gate) -> Recovery:
        return await Desk(scene, gate.connections(scene.connections)).healing.recover_all(older_than)

    daemon = settler(scene, *((one, Delivered()) for one in live))
    scene.every_order(scene.race(check, scene.leases_are_kept, alice=recover_all, daemon=daemon))


# --- reset and undo ------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An undo goes one callback at a time."""
    monkeypatch.setattr(trash, "_MOST_ITEMS", 1)


def fill(scene: Scene) -> None:
    """Something in every place."""
    scene.are_kept(Dead(DeadReason.REJECTED, FAILURE), callback(90), callback(91))
    scene.are_kept(Retry(HOUR, FAILURE), callback(80))
    scene.we_hold(callback(70))
    scene.redis.rpush(scene.keys.processing, callback(71))
    scene.redis.rpush(scene.keys.pending, *(callback(n) for n in range(3)))


def test_a_reset_fences_what_is_claimed(scene: Scene) -> None:
    fill(scene)
    (held,) = scene.redis.zrange(scene.keys.leases, 0, -1)
    claim = scene.claimed(held, callback(70))
    scene.begins()

    def check(ends: Ends) -> None:
        assert scene.redis.exists(scene.keys.trash)
        (code,) = ends["settler"]
        assert code in (Settled.DONE, Settled.FENCED)
        if code is Settled.FENCED:
            assert callback(70) not in scene.items(scene.keys.processing)

    race = scene.race(
        check,
        scene.leases_are_kept,
        alice=person(scene, Reset(QUEUE)),
        settler=settler(scene, (claim, Delivered())),
        dispatcher=dispatcher(scene, Delivered()),
    )
    ends = scene.chosen_orders(race)
    assert {end["settler"][0] for end in ends} == {Settled.DONE, Settled.FENCED}
    assert {tuple(code for _, code in end["dispatcher"]) for end in ends} == {
        (),  # after the reset
        (Settled.DONE,),
        (Settled.FENCED,),
    }


@pytest.mark.usefixtures("small_parts")
def test_undo_puts_all_in_front_of_what_arrives_meanwhile(each_scene: Scene) -> None:
    scene = each_scene
    fill(scene)
    scene.are_in_trash()
    scene.redis.rpush(scene.keys.pending, callback(10), callback(11))
    scene.begins()

    def check(ends: Ends) -> None:
        assert ends["alice"].counts == {"callbacks": 8}
        assert scene.items(scene.keys.pending) == [callback(n) for n in (0, 1, 2, 10, 11, 12, 13)]
        assert scene.items(scene.keys.processing) == [callback(70), callback(71)]
        assert not scene.redis.keys("q:trash*")

    arrivals = producer(scene, callback(12), callback(13))
    scene.every_order(scene.race(check, scene.leases_are_kept, alice=person(scene, Undo(QUEUE)), producer=arrivals))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: type(one).__name__)
def test_undo_beside_a_daemon_that_sends(scene: Scene, outcome: Outcome) -> None:
    fill(scene)
    scene.are_in_trash()
    scene.redis.rpush(scene.keys.pending, callback(10), callback(1))
    scene.begins()

    def check(ends: Ends) -> None:
        assert ends["alice"].counts["callbacks"] >= 8
        assert all(code is Settled.DONE for _, code in ends["daemon"])
        assert not scene.redis.keys("q:trash*")

    actors = {"alice": person(scene, Undo(QUEUE)), "daemon": dispatcher(scene, outcome)}
    ends = scene.every_order(scene.race(check, scene.leases_are_kept, **actors))
    assert {end["daemon"][0][0] for end in ends} >= {callback(0), callback(10)}
    actors |= {"producer": producer(scene, callback(12)), "daemon": dispatcher(scene, outcome, count=2)}
    scene.chosen_orders(scene.race(check, scene.leases_are_kept, **actors), 60)


# --- two operators -------------------------------------------------------------------------------


def _stale_lock(scene: Scene) -> None:
    scene.redis.set(LOCK, STALE)


def _stuck(scene: Scene) -> None:
    scene.others_hold(*(callback(n % 4) for n in range(5)))


def _letters(scene: Scene) -> None:
    scene.are_kept(Dead(DeadReason.REJECTED, FAILURE), *(callback(n) for n in range(5)))


def _trash(scene: Scene) -> None:
    fill(scene)
    scene.are_in_trash()


def _paused(scene: Scene) -> None:
    desk = Desk(scene, scene.connections)
    scene.do(desk.carry_out(Pause(QUEUE)))
    scene.redis.delete(scene.keys.audit)


# What there is, what both do, and how often it is there to be done.
AT_ONCE: dict[str, tuple[Callable[[Scene], None], Operation, Operation, int]] = {
    "unlock": (_stale_lock, Unlock(QUEUE), Unlock(QUEUE), 1),
    "unlock by force": (_stale_lock, Unlock(QUEUE), Unlock(QUEUE, force=True), 1),
    "reset": (fill, Reset(QUEUE), Reset(QUEUE), 8),
    "undo": (_trash, Undo(QUEUE), Undo(QUEUE), 8),
    "recover": (_stuck, Recover(QUEUE), Recover(QUEUE), 5),
    "recover what is stuck": (_stuck, Recover(QUEUE), Recover(QUEUE, only_known_stuck=True), 5),
    "retry": (_letters, RetryDead(QUEUE, Selection()), RetryDead(QUEUE, Selection()), 5),
    "purge": (_letters, PurgeDead(QUEUE, Selection()), PurgeDead(QUEUE, Selection()), 5),
    "retry and purge": (_letters, RetryDead(QUEUE, Selection()), PurgeDead(QUEUE, Selection()), 5),
    "pause": (lambda scene: None, Pause(QUEUE), Pause(QUEUE), 1),
    "resume": (_paused, Resume(QUEUE), Resume(QUEUE), 1),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("what", AT_ONCE)
def test_what_two_do_at_once_is_done_once(each_scene: Scene, what: str) -> None:
    scene = each_scene
    begin, first, second, times = AT_ONCE[what]
    begin(scene)
    scene.begins()

    def check(ends: Ends) -> None:
        done = {name: _done(end) for name, end in ends.items()}
        assert sum(done.values()) == times
        for name, end in ends.items():
            changed = isinstance(end, PreconditionChanged)
            ended = "changed" if changed else "done"
            assert scene.audited(name) in ([ended], ["started", ended])
            assert done[name] == 0 or scene.audited(name) == ["started", "done"], "who did it, says so"

    def watch(step: Step) -> None:
        if isinstance(second, PurgeDead):
            scene.gone = scene.missing()
        scene.none_is_lost()

    race = scene.race(check, watch, alice=person(scene, first), bob=person(scene, second))
    ends = scene.every_order(race)
    assert {name for end in ends for name in end if _done(end[name])} == {"alice", "bob"}
    assert any(isinstance(one, PreconditionChanged) for end in ends for one in end.values()) or "recover" in what


def _done(end: Any) -> int:
    """How much one of two has done."""
    if isinstance(end, PreconditionChanged):
        return 0
    assert isinstance(end, Executed)
    return sum(end.counts.values())


@pytest.mark.usefixtures("small_parts")
def test_a_reset_in_the_middle_of_an_undo_loses_nothing(scene: Scene) -> None:
    fill(scene)
    scene.are_in_trash()
    scene.redis.rpush(scene.keys.pending, callback(10))
    scene.begins()

    def check(ends: Ends) -> None:
        undone, reset = ends["alice"], ends["bob"]
        assert isinstance(undone, Executed)
        assert isinstance(reset, Executed)
        assert reset.undo is not None

    race = scene.race(check, alice=person(scene, Undo(QUEUE)), bob=person(scene, Reset(QUEUE)))
    scene.every_order(race)
