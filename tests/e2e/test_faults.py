"""A network that breaks between the daemon and Redis: nothing is done twice, nothing is lost, every loop goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cbq_exporter.errors import StoreUnavailable
from cbq_exporter.model import Claimed, Dead, DeadReason, Delivered, PutBack, Retry, Settled, Settlement
from cbq_exporter.store.connections import MUTATION_TIMEOUT, Connections
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.pauses import Pause, Pauses
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.scripts import load
from cbq_exporter.store.trash import Trash
from tests.e2e.bare_client import PREFIX, item, kept, lengths, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.fault_proxy import Action, Direction, Fault, FaultProxy
from tests.support.queues import FAILURE, OURS, DrivenQueue, callback
from tests.support.servers import Server

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT

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


Work = Callable[[Hands], Coroutine[Any, Any, object]]


def _settle_as(outcome: Any) -> Work:
    return lambda at: at.queue.settle([Settlement(one, outcome) for one in at.claimed])


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
    "recover": lambda at: at.queue.recover_expired(3),
    "dead_retry": lambda at: at.queue.dead_retry(at.dead),
    "dead_purge": lambda at: at.queue.dead_purge(at.dead),
    "dead_trim": lambda at: at.queue.trim_dead(1, 1e9),
    "recover_all": lambda at: at.healing.recover_all(),
    "reset": lambda at: at.trash.move(600.0, 1_764_000_000_000, {}),
    "pause": lambda at: at.pauses.begin(None, Pause(1_764_000_000.0, "test", "")),
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


class Stage:
    """A queue with some callbacks in each state, and a second way to it, through the proxy."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.driven = DrivenQueue(server)

    def set(self) -> tuple[list[Claimed], list[str]]:
        """The same each time; returns what is claimed and the ids of dead letters."""
        driven, client = self.driven, self.server.client
        client.flushdb()
        client.rpush(driven.keys.pending, *(callback(n) for n in range(10)))
        driven.settle(Dead(DeadReason.REJECTED, FAILURE), *driven.claim(3).items)
        claimed = list(driven.claim(3).items)
        dead: list[bytes] = client.zrange(driven.keys.dead, 0, -1)  # type: ignore[assignment]
        return claimed, [one.decode() for one in dead]

    def where(self) -> dict[str, Any]:
        """Everything that an operation changes, without what only says when."""
        driven, client, keys = self.driven, self.driven.redis, self.driven.keys
        deadlines: Any = client.zrange(keys.leases, 0, -1, withscores=True)
        return {
            "pending": Counter(driven.pending),
            "processing": Counter(driven.processing),
            "retry": Counter(driven.kept(keys.retry)),
            "dead": Counter(driven.kept(keys.dead)),
            "counts": [client.get(key) for key in (keys.stats_queued, keys.stats_sent, keys.stats_failed, keys.fence)],
            "leases": len(deadlines),
            "extended": sum(deadline > client.time()[0] * 1000 + 300_000 for _, deadline in deadlines),
            "lock": (client.get(keys.lock), client.ttl(keys.lock) > 60),
            "trash": sorted(client.llen(key) for key in client.keys(f"{keys.trash}:*:p[er]*ing")),
            "resets": (client.zcard(keys.trash), client.hlen(keys.trash_notes)),
            "paused": client.hgetall(keys.paused),
        }


@pytest.fixture
def stage(server: Server) -> Iterator[Stage]:
    stage = Stage(server)
    with stage.driven:
        yield stage


def _through(stage: Stage, url: str, work: Work, claimed: list[Claimed], dead: list[str], *, expired: bool) -> object:
    """Run ``work`` on a connection of its own that is open already."""
    if expired:
        stage.driven.let_leases_run_out()

    async def run() -> object:
        connections = Connections(url, shown_as="through the proxy")
        try:
            keys = stage.driven.keys
            queue, healing = Queue(connections, keys, lock_value=OURS), Healing(connections, keys, OURS)
            return await work(Hands(queue, Trash(connections, keys), healing, Pauses(connections, keys), claimed, dead))
        finally:
            await connections.close()

    return stage.driven.do(run())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_carried_out_once_or_not_at_all(stage: Stage, operation: str) -> None:
    """Whatever breaks, its caller is told that it is unknown, and nothing is sent again behind its back."""
    work, expired = OPERATIONS[operation], operation in ("recover", "recover_all")
    claimed, dead = stage.set()
    before = stage.where()
    _through(stage, stage.server.url, work, claimed, dead, expired=expired)
    after = stage.where()
    assert after != before
    with FaultProxy(stage.server.socket) as proxy:
        for name, (fault, carried_out) in FAULTS.items():
            claimed, dead = stage.set()
            assert stage.where() == before
            proxy.plan(fault)
            already = proxy.struck
            with pytest.raises(StoreUnavailable):
                _through(stage, proxy.url, work, claimed, dead, expired=expired)
            assert proxy.struck == already + 1, name
            assert stage.where() == (after if carried_out else before), name
            # Trying again is safe where the callback itself is the proof of what has been done.
            if operation in ("delivered", "retry", "dead", "put_back"):
                proxy.plan()
                again = _through(stage, proxy.url, work, claimed, dead, expired=False)
                assert again == [Settled.FENCED if carried_out else Settled.DONE] * 3
                assert stage.where() == after, name


@pytest.mark.parametrize(("direction", "carried_out"), [(TO_SERVER, False), (TO_CLIENT, True)])
def test_silence_ends_at_the_deadline(stage: Stage, direction: Direction, carried_out: bool) -> None:
    work = OPERATIONS["delivered"]
    claimed, dead = stage.set()
    _through(stage, stage.server.url, work, claimed, dead, expired=False)
    claimed, dead = stage.set()
    with FaultProxy(stage.server.socket) as proxy:
        proxy.plan(Fault(Action.BLACK_HOLE, direction, b"EVAL"))
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer in time"):
            _through(stage, proxy.url, work, claimed, dead, expired=False)
        assert MUTATION_TIMEOUT - 0.1 < time.monotonic() - began < MUTATION_TIMEOUT + 1.5
    assert len(stage.driven.processing) == (0 if carried_out else 3)


def test_a_claim_that_arrives_when_nobody_waits_for_it_any_more_takes_nothing(stage: Stage) -> None:
    """Its sender gave up long ago: what it took would lie there until the lease runs out."""
    stage.set()
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


def _conserved(client: Any, receiver: CountingReceiver, payloads: list[bytes]) -> int:
    """Each is in one place, or has arrived; returns how many are in a place."""
    held = kept(client)
    arrived = {number_of(body) for body in receiver.accepted}  # read after: what is kept no more has arrived
    assert set(held) <= set(payloads)
    assert set(held.values()) <= {1}
    gone = {json.loads(payload)["data"]["n"] for payload in payloads if not held[payload]}
    assert gone <= arrived
    return len(held)
