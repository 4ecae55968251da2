"""A network that breaks between the daemon and Redis: nothing is done twice, nothing is lost, every loop goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest

from cbq_exporter.errors import PreconditionChanged, StoreUnavailable
from cbq_exporter.model import (
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    LockLook,
    PutBack,
    Recovery,
    Retry,
    Settled,
    Settlement,
)
from cbq_exporter.services import retries
from cbq_exporter.services.operations import RetryNow
from cbq_exporter.store import trash
from cbq_exporter.store.connections import MUTATION_TIMEOUT, Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.pauses import Pause, Pauses
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.scripts import load
from cbq_exporter.store.trash import Trash
from tests.e2e.bare_client import PREFIX, item, kept, lengths, number_of, push, wait_until_settled
from tests.services.operating import QUEUE, Operating
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.fault_proxy import Action, Direction, Fault, FaultProxy
from tests.support.queues import FAILURE, OURS, DrivenQueue, callback
from tests.support.servers import Server

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
THEIRS = "worker_1764000000_4711"
STUCK_AFTER = 300.0
KEEP = 600.0

# --- one operation of the store, one fault -------------------------------------------------------


@dataclass(frozen=True)
class Hands:
    """What an operation is done with, through the proxy, and on what."""

    queue: Queue
    trash: Trash
    healing: Healing
    pauses: Pauses
    claimed: list[Claimed]
    dead: list[str]
    waiting: list[str]
    trash_id: str | None
    lock: LockLook | None


Work = Callable[[Hands], Coroutine[Any, Any, object]]


def _settle_as(outcome: Any) -> Work:
    return lambda at: at.queue.settle([Settlement(one, outcome) for one in at.claimed])


async def _reset(at: Hands) -> str | None:
    return await at.trash.move(KEEP, await at.queue.store_now_ms(), {})


async def _parts_of_undo(at: Hands) -> list[int]:
    assert at.trash_id is not None
    return [moved async for moved in at.trash.put_back(at.trash_id)]


async def _undo(at: Hands) -> int | None:
    """None where it is back already."""
    try:
        return sum(await _parts_of_undo(at))
    except PreconditionChanged:
        return None


def _release(at: Hands, *, by_a_person: bool) -> Coroutine[Any, Any, bool]:
    assert at.lock is not None
    return at.healing.lock.release(at.lock, even_if_touched=by_a_person)


OPERATIONS: dict[str, Work] = {
    "enqueue": lambda at: at.queue.enqueue([callback(91), callback(92)]),
    "keep_lock": lambda at: at.queue.keep_lock(300.0),
    "free_lock": lambda at: at.queue.free_lock(),
    "claim": lambda at: at.queue.claim(count=3, max_bytes=1 << 20, lease=60.0, lock_ttl=30.0),
    "delivered": _settle_as(Delivered()),
    "retry": _settle_as(Retry(60.0, FAILURE)),
    "dead": _settle_as(Dead(DeadReason.REJECTED, FAILURE)),
    "put_back": _settle_as(PutBack()),
    "extend": lambda at: at.queue.extend([one.lease for one in at.claimed], 600.0),
    "recover": lambda at: at.healing.expired.recover(3),
    "hasten": lambda at: at.queue.retries.hasten(at.waiting),
    "dead_retry": lambda at: at.queue.dead.retry(at.dead),
    "dead_purge": lambda at: at.queue.dead.purge(at.dead),
    "dead_trim": lambda at: at.queue.dead.trim(1, 1e9),
    "recover_all": lambda at: at.healing.recover_all(),
    "recover_stuck": lambda at: at.healing.recover_stuck(STUCK_AFTER, 3),
    "recover_stuck_for_ever": lambda at: at.healing.recover_stuck(STUCK_AFTER, 0),
    "unlock": lambda at: _release(at, by_a_person=True),
    "release_by_the_keeper": lambda at: _release(at, by_a_person=False),
    "reset": _reset,
    "undo": _undo,
    "pause": lambda at: at.pauses.begin(None, Pause(1_764_000_000.0, "test", "")),
}

# What has to be there besides.
BEFORE: dict[str, Callable[[Stage], None]] = {
    "hasten": lambda stage: stage.let_some_fail(),
    "recover": lambda stage: stage.driven.let_leases_run_out(),
    "recover_all": lambda stage: stage.driven.let_leases_run_out(),
    "recover_stuck": lambda stage: stage.get_stuck(),
    "recover_stuck_for_ever": lambda stage: stage.get_stuck(),
    "unlock": lambda stage: stage.leave_lock_behind(),
    "release_by_the_keeper": lambda stage: stage.leave_lock_behind(),
    "undo": lambda stage: stage.reset(),
}

# What goes wrong, and whether the operation has been carried out then.
FAULTS: dict[str, tuple[Fault, bool]] = {
    "cut before it was sent": (Fault(Action.CUT, containing=b"EVAL"), False),
    "cut in its middle": (Fault(Action.CUT, containing=b"EVAL", after_bytes=70), False),
    "cut before its last byte": (Fault(Action.CUT, containing=b"EVAL", after_bytes=-1), False),
    "reset": (Fault(Action.RESET, containing=b"EVAL"), False),
    "its answer is lost": (Fault(Action.DROP_REPLY, containing=b"EVAL"), True),
    "its answer is reset": (Fault(Action.RESET, TO_CLIENT, b"EVAL"), True),
    "its answer is cut in the middle": (Fault(Action.CUT, TO_CLIENT, b"EVAL", after_bytes=1), True),
}


# What comes of trying again: where it was not carried out, and where it was.
AGAIN: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("delivered", "retry", "dead", "put_back"), ([Settled.DONE] * 3, [Settled.FENCED] * 3)),
    **dict.fromkeys(("unlock", "release_by_the_keeper"), (True, False)),
    "retry_now": (3, 0),
    "recover_stuck": (Recovery(returned=3), Recovery()),
    "recover_stuck_for_ever": (Recovery(dead=3), Recovery()),
    "undo": (10, None),
}


class Stage:
    """A queue with some callbacks in each state, and a second way to it, through the proxy."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.driven: DrivenQueue = DrivenQueue(server)
        self._trash = Trash(self.driven.connections, self.driven.keys)
        self._healing = Healing(self.driven.connections, self.driven.keys)

    def set(self, operation: str) -> None:
        """The same each time, with what ``operation`` is done on."""
        driven, client = self.driven, self.server.client
        client.flushdb()
        self._waiting: list[str] = []
        self._trash_id: str | None = None
        self._lock: LockLook | None = None
        client.rpush(driven.keys.pending, *(callback(n) for n in range(10)))
        driven.settle(Dead(DeadReason.REJECTED, FAILURE), *driven.claim(3).items)
        self._claimed = list(driven.claim(3).items)
        self._dead = [one.decode() for one in driven.redis.zrange(driven.keys.dead, 0, -1)]
        if operation in BEFORE:
            BEFORE[operation](self)

    def let_some_fail(self) -> None:
        """They wait in retry, and others are due there already."""
        driven = self.driven
        first, *others = driven.claim(4).items
        driven.settle(Retry(0.0, FAILURE), first)
        driven.settle(Retry(60.0, FAILURE), *others)
        self._waiting = [one.decode() for one in driven.redis.zrange(driven.keys.retry, 1, -1)]

    def reset(self) -> None:
        """What was there is in the trash, and new callbacks have arrived."""
        self._trash_id = self.driven.do(self._trash.move(KEEP, self.driven.do(self.driven.queue.store_now_ms()), {}))
        self.driven.redis.rpush(self.driven.keys.pending, callback(20), callback(21))

    def get_stuck(self) -> None:
        """Others hold callbacks for longer than they may."""
        keys = self.driven.keys
        self.driven.redis.rpush(keys.processing, callback(30), callback(31), callback(30))
        self.driven.do(self._healing.sightings.look(STUCK_AFTER))
        self.driven.redis.zadd(keys.sightings, dict.fromkeys(self.driven.redis.zrange(keys.sightings, 0, -1), 1))

    def leave_lock_behind(self) -> None:
        self.driven.redis.set(self.driven.keys.lock, THEIRS)
        self._lock = self.driven.do(self._healing.lock.look())

    def through(self, url: str, work: Work) -> Any:
        """Run ``work`` on a connection of its own."""

        async def run() -> object:
            connections = Connections(url, shown_as="through the proxy")
            try:
                keys = self.driven.keys
                return await work(
                    Hands(
                        Queue(connections, keys, lock_value=OURS),
                        Trash(connections, keys),
                        Healing(connections, keys, OURS),
                        Pauses(connections, keys),
                        self._claimed,
                        self._dead,
                        self._waiting,
                        self._trash_id,
                        self._lock,
                    )
                )
            finally:
                await connections.close()

        return self.driven.do(run())

    def where(self) -> dict[str, Any]:
        """Everything that an operation changes, without what only says when."""
        driven, client, keys = self.driven, self.driven.redis, self.driven.keys
        deadlines: Any = client.zrange(keys.leases, 0, -1, withscores=True)
        return {
            "pending": Counter(driven.pending),
            "processing": Counter(driven.processing),
            "retry": Counter(driven.kept(keys.retry)),
            "dead": Counter(driven.kept(keys.dead)),
            "due": client.zcount(keys.retry, "-inf", client.time()[0] * 1000 + 1000),
            "counts": [client.get(key) for key in (keys.stats_queued, keys.stats_sent, keys.stats_failed, keys.fence)],
            "leases": len(deadlines),
            "sightings": client.zcard(keys.sightings),
            "recovered": client.hlen(keys.returned),
            "extended": sum(deadline > client.time()[0] * 1000 + 300_000 for _, deadline in deadlines),
            "lock": (client.get(keys.lock), client.ttl(keys.lock) > 60),
            "trash": sorted(client.llen(key) for key in client.keys(f"{keys.trash}:*:p[er]*ing")),
            "resets": (client.zcard(keys.trash), client.hlen(keys.trash_notes)),
            "paused": client.hgetall(keys.paused),
        }

    def everything(self) -> Counter[bytes]:
        """Of the queue and of its trash."""
        keys = self.driven.keys
        client = self.driven.redis
        found: Counter[bytes] = Counter()
        for one in (keys, *([keys.trash_of(self._trash_id)] if self._trash_id else [])):
            found.update(client.lrange(one.pending, 0, -1) + client.lrange(one.processing, 0, -1))
            found.update(client.hvals(one.payloads))
        return found


@pytest.fixture
def stage(server: Server) -> Iterator[Stage]:
    stage = Stage(server)
    with stage.driven:
        yield stage


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_carried_out_once_or_not_at_all(stage: Stage, operation: str) -> None:
    """Whatever breaks, its caller is told that it is unknown, and nothing is sent again behind its back."""
    work = OPERATIONS[operation]
    stage.set(operation)
    before = stage.where()
    stage.through(stage.server.url, work)
    after = stage.where()
    assert after != before
    with FaultProxy(stage.server.socket) as proxy:
        for name, (fault, carried_out) in FAULTS.items():
            stage.set(operation)
            assert stage.where() == before
            proxy.plan(fault)
            already = proxy.struck
            with pytest.raises(StoreUnavailable):
                stage.through(proxy.url, work)
            assert proxy.struck == already + 1, name
            assert stage.where() == (after if carried_out else before), name
            # Trying again is safe where the callback, the lock or the reset itself is the proof of what has been done.
            if operation in AGAIN:
                proxy.plan()
                assert stage.through(proxy.url, work) == AGAIN[operation][carried_out], name
                assert stage.where() == after, name


def test_an_undo_that_is_cut_off_anywhere_is_ended_by_the_next(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash, "_MOST_ITEMS", 1)
    stage.set("undo")
    everything = stage.everything()
    parts = stage.through(stage.server.url, _parts_of_undo)
    assert len(parts) >= 5
    assert stage.everything() == everything
    after, order = stage.where(), stage.driven.pending
    with FaultProxy(stage.server.socket) as proxy:
        for passed, (name, (fault, _)) in product(range(len(parts)), FAULTS.items()):
            stage.set("undo")
            proxy.plan(replace(fault, skip=passed))
            with pytest.raises(StoreUnavailable):
                stage.through(proxy.url, _undo)
            assert stage.everything() == everything, (name, passed)
            proxy.plan()
            stage.through(proxy.url, _undo)
            assert (stage.where(), stage.driven.pending) == (after, order), (name, passed)


def test_retry_now_that_is_cut_off_anywhere_is_ended_by_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several scripts, between two entries of the audit: each of these is there once, or not at all."""
    monkeypatch.setattr(retries, "PAGE", 2)
    with FaultProxy(server.socket) as proxy:
        for passed, (name, (fault, written)) in product(range(len(_TRIES_AGAIN)), FAULTS.items()):
            server.client.flushdb()
            with Operating(server) as near, Operating(server, url=proxy.url) as far:
                ids, everything = _let_five_fail(near)
                proxy.plan(replace(fault, skip=passed))
                told = _told_of(far)
                proxy.plan()
                due, story = _due(near), near.story
                # What is lost at the end is only the entry of it: what was done is done.
                ended = passed == len(_TRIES_AGAIN) - 1
                assert told == (None if ended else "StoreUnavailable"), (name, passed)
                assert due == ids[: 2 * (passed - 1 + written) if passed else 0], (name, passed)
                results = ["started", "done" if ended else "failed"]
                want = results[:written] if passed == 0 else results[: 1 + written] if ended else results
                assert story == [("retry_now", result) for result in want], (name, passed)

                assert _told_of(far) is None
                assert _due(near) == ids, (name, passed)
                assert dict(near.redis.hgetall(near.keys.payloads)) == everything
                left = len(ids) - len(due)
                assert near.entries[-1].after == ({"callbacks": left} if left else {})
                assert near.story[len(story) :] == [
                    ("retry_now", one) for one in (["started", "done"] if left else ["done"])
                ]


_TRIES_AGAIN = ("audit_add", "retry_now", "retry_now", "retry_now", "audit_add")


def _let_five_fail(desk: Operating) -> tuple[list[str], dict[bytes, bytes]]:
    """Their ids in the order of their times, and all that is kept."""
    queue = desk.queue
    desk.do(queue.enqueue([callback(n) for n in range(5)]))
    assert desk.do(queue.keep_lock(60.0)).ours
    claim = desk.do(queue.claim(count=5, max_bytes=1 << 20, lease=60.0, lock_ttl=60.0))
    assert claim is not None
    for n, one in enumerate(claim.items):
        desk.do(queue.settle([Settlement(one, Retry(60.0 + n, FAILURE))]))
    ids = [one.decode() for one in desk.redis.zrange(desk.keys.retry, 0, -1)]
    return ids, dict(desk.redis.hgetall(desk.keys.payloads))


def _told_of(desk: Operating) -> str | None:
    """How ``retry now`` ends."""
    try:
        desk.carry_out(RetryNow(QUEUE))
    except StoreUnavailable as error:
        return type(error).__name__
    return None


def _due(desk: Operating) -> list[str]:
    now = desk.do(desk.queue.store_now_ms())
    return [one.decode() for one in desk.redis.zrangebyscore(desk.keys.retry, "-inf", now)]


@pytest.mark.parametrize(("direction", "carried_out"), [(TO_SERVER, False), (TO_CLIENT, True)])
def test_silence_ends_at_the_deadline(stage: Stage, direction: Direction, carried_out: bool) -> None:
    work = OPERATIONS["delivered"]
    stage.set("delivered")
    stage.through(stage.server.url, work)
    stage.set("delivered")
    with FaultProxy(stage.server.socket) as proxy:
        proxy.plan(Fault(Action.BLACK_HOLE, direction, b"EVAL"))
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer in time"):
            stage.through(proxy.url, work)
        assert MUTATION_TIMEOUT - 0.1 < time.monotonic() - began < MUTATION_TIMEOUT + 1.5
    assert len(stage.driven.processing) == (0 if carried_out else 3)


def test_a_claim_that_arrives_when_nobody_waits_for_it_any_more_takes_nothing(stage: Stage) -> None:
    """Its sender gave up long ago: what it took would lie there until the lease runs out."""
    stage.set("claim")
    before = stage.where()

    async def run(url: str) -> None:
        connections = Connections(url, shown_as="through the proxy")
        queue = Queue(connections, stage.driven.keys, lock_value=OURS)
        try:
            assert await queue.claim(count=0, max_bytes=1, lease=60.0, lock_ttl=30.0, from_pending=0) is not None
            proxy.plan(Fault(Action.DELAY, containing=b"EVALSHA", seconds=MUTATION_TIMEOUT + 2.0))
            with pytest.raises(StoreUnavailable):
                await queue.claim(count=3, max_bytes=1 << 20, lease=60.0, lock_ttl=30.0)
        finally:
            await connections.close()

    with FaultProxy(stage.server.socket) as proxy:
        stage.driven.do(run(proxy.url))
        executed = _evaluations(stage.server)
        until(lambda: _evaluations(stage.server) > executed)  # it has arrived
    after = stage.where()
    assert after["pending"] == before["pending"]
    assert after["processing"] == before["processing"]


def _evaluations(server: Server) -> int:
    return int(server.client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


# --- the whole daemon ----------------------------------------------------------------------------

SCRIPTS = ("claim", "settle", "lock_keep", "extend", "recover")
READS = (b"LLEN", b"BLMOVE", b"PING")
CALLBACKS = 60


def _everywhere(action: Action, direction: Direction = TO_SERVER, times: int = 2, **more: Any) -> list[Fault]:
    """Each kind of request is struck, after the first of it has passed."""
    what = [*(load(name).sha.encode() for name in SCRIPTS), *READS]
    return [Fault(action, direction, containing, skip=1, times=times, **more) for containing in what]


@pytest.mark.parametrize(
    "faults",
    [
        _everywhere(Action.CUT),
        _everywhere(Action.CUT, after_bytes=70),
        _everywhere(Action.RESET, TO_CLIENT),
        _everywhere(Action.CUT, TO_CLIENT, after_bytes=3),
        _everywhere(Action.DROP_REPLY),
        _everywhere(Action.BLACK_HOLE, times=1),
        _everywhere(Action.BLACK_HOLE, TO_CLIENT, times=1),
        _everywhere(Action.DELAY, seconds=1.0),
        _everywhere(Action.DELAY, times=1, seconds=3.0),
    ],
    ids=["cut", "cut-inside", "reset", "answer-cut", "reply-lost", "silence", "no-answers", "slow", "too-slow"],
)
def test_the_daemon_goes_on_and_every_callback_is_delivered_once(server: Server, faults: list[Fault]) -> None:
    """One callback in six fails at first, so that it goes through retry as well."""
    client = server.client
    config = queue(SHORT_LIVED, batch={"size": 10}, delivery={"lease": "4s"})
    with (
        FaultProxy(server.socket) as proxy,
        CountingReceiver(lambda body, nth: 500 if nth == 1 and number_of(body) % 6 == 0 else 200) as receiver,
        Daemon(proxy.url, config) as daemon,
    ):
        daemon.wait_until_ready()
        proxy.plan(*faults)
        payloads = [item(receiver.url, n) for n in range(CALLBACKS)]
        for first in range(0, CALLBACKS, 10):
            push(client, *payloads[first : first + 10])
            _conserved(client, receiver, payloads[: first + 10])
        until(lambda: _conserved(client, receiver, payloads) == 0, timeout=40, what=lambda: daemon.log()[-3000:])
        wait_until_settled(client)
        until(lambda: proxy.struck >= 4)  # claims, settlements, the lock, reads
        proxy.heal()
        daemon.wait_until_ready(30)
        assert daemon.get("/-/healthy")[0] == 200
        assert Counter(number_of(body) for body in receiver.accepted.elements()) == Counter(range(CALLBACKS))
        assert client.get(f"{PREFIX}:stats:sent") == str(CALLBACKS).encode()
        assert daemon.metrics().get("cbq_fenced_total", operation="settle") == 0
        # And it is well: what comes now goes out at once.
        push(client, item(receiver.url, CALLBACKS))
        until(lambda: receiver.accepted.total() == CALLBACKS + 1, timeout=10)
        wait_until_settled(client)
        assert lengths(client)["dead"] == 0
        assert daemon.stop() == 0


HEALING = ("beat", "lock_look", "lock_release", "sight", "recover_stuck", "audit_add")
HEALS_QUICKLY: dict[str, Any] = {
    "mode": "supervise",
    "recovery": {"every": "100ms", "stuck_after": "1500ms"},
    "lock": {"check_every": "100ms", "stale": {"no_ttl_after": "1s", "max_ttl": "60s"}},
}


@pytest.mark.parametrize(
    ("action", "direction"),
    [
        (Action.CUT, TO_SERVER),
        (Action.RESET, TO_CLIENT),
        (Action.DROP_REPLY, TO_SERVER),
        (Action.BLACK_HOLE, TO_SERVER),
    ],
    ids=["cut", "reset", "reply-lost", "silence"],
)
def test_the_daemon_goes_on_healing(server: Server, action: Action, direction: Direction) -> None:
    """Each of its scripts is struck; what others left behind comes back all the same, each of it once."""
    client: Any = server.client
    lock, processing, pending = (f"{PREFIX}:{name}" for name in ("lock", "processing", "pending"))
    payloads = [item("http://127.0.0.1:9/", n) for n in range(30)]
    with FaultProxy(server.socket) as proxy, Daemon(proxy.url, queue(SHORT_LIVED, HEALS_QUICKLY)) as daemon:
        daemon.wait_until_ready()
        for broken in (True, False):
            if broken:
                proxy.plan(*(Fault(action, direction, load(name).sha.encode()) for name in HEALING))
            client.set(lock, THEIRS)
            client.rpush(processing, *payloads)
            until(lambda: not client.exists(lock), timeout=30, what=lambda: daemon.log()[-3000:])
            until(lambda: client.llen(pending) == len(payloads), timeout=30, what=lambda: daemon.log()[-3000:])
            assert client.lrange(pending, 0, -1) == payloads
            assert client.llen(processing) == 0
            client.delete(pending)
            if broken:
                until(lambda: proxy.struck == len(HEALING), what=lambda: proxy.struck)
                proxy.heal()
                daemon.wait_until_ready(30)
        assert daemon.get("/-/healthy")[0] == 200
        assert daemon.stop() == 0


def _conserved(client: Any, receiver: CountingReceiver, payloads: list[bytes]) -> int:
    """Each is in one place, or has arrived; returns how many are in a place."""
    held = kept(client)
    arrived = {number_of(body) for body in receiver.accepted}  # read after: what is kept no more has arrived
    assert set(held) <= set(payloads)
    assert set(held.values()) <= {1}
    gone = {json.loads(payload)["data"]["n"] for payload in payloads if not held[payload]}
    assert gone <= arrived
    return len(held)
