"""The one read of all queues: what it shows, what it costs, and what it does in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config.models import Config, QueueConfig
from cbq_exporter.errors import StoreError, StoreUnavailable
from cbq_exporter.model import (
    Claim,
    Dead,
    DeadReason,
    Failure,
    LockRule,
    LockView,
    Mode,
    QueueView,
    Retry,
    Settlement,
    Snapshot,
    State,
)
from cbq_exporter.store.opening import Store, make_store
from cbq_exporter.store.reader import Reader
from cbq_exporter.store.watched import Source
from tests.support.daemons import until
from tests.support.fault_proxy import Action, Direction, Fault, FaultProxy
from tests.support.servers import Server, major_version

OURS = "worker_1764000000_1234"
FAILURE = Failure(kind="http_5xx", status=503)


def payload(number: int) -> bytes:
    return b'{"url": "https://receiver.example/%d", "data": {}, "_queued_at": %d.5}' % (number, 1764000000 + number)


@contextlib.asynccontextmanager
async def opened(url: str, *queues: QueueConfig, errors: list[str] | None = None) -> AsyncIterator[Store]:
    config = Config(queues=queues or (QueueConfig(name="callbacks"),))
    store = make_store(config, url, lock_value=OURS, on_error=None if errors is None else errors.append)
    try:
        yield store
    finally:
        await store.close()


async def claim(store: Store, count: int, lease: float = 30) -> Claim:
    queue = store.queues["callbacks"]
    assert await queue.keep_lock(30)
    claimed = await queue.claim(count=count, max_bytes=1_000_000, lease=lease, lock_ttl=30)
    assert claimed is not None
    assert len(claimed.items) == count
    return claimed


def only(snapshot: Snapshot) -> QueueView:
    assert snapshot.up
    (view,) = snapshot.queues
    return view


def command(server: Server, *words: str | int) -> Any:
    client: Any = server.client  # the driver leaves this method without types
    return client.execute_command(*words)


def test_an_empty_queue_is_known_to_be_empty(each_server: Server) -> None:
    async def scenario() -> Snapshot:
        async with opened(each_server.url) as store:
            return await store.reader.snapshot()

    snapshot = asyncio.run(scenario())
    assert only(snapshot) == QueueView(
        queue="callbacks",
        mode=Mode.DISPATCH,
        lengths=dict.fromkeys(State, 0),
        lock_rule=LockRule(no_ttl_after=60.0, max_ttl=600.0, dead_after=15.0),
        retry_overdue=0,
        stuck=0,
        untracked=0,
        leased=0,
        paused=False,
        paused_destinations=0,
        failing_destinations=0,
        alerts_paused=False,
    )
    about = each_server.client.info()
    software = each_server.kind.partition("-")[0]
    assert snapshot.server == f"{software} {about[f'{software}_version']}"
    assert snapshot.replica is False
    assert snapshot.at == pytest.approx(time.time(), abs=1)
    assert 0 < snapshot.duration < 5
    assert snapshot.memory_used is not None
    assert snapshot.memory_used > 100_000
    assert snapshot.memory_max is None  # no limit
    assert snapshot.disk_write_failed is False
    assert snapshot.error is None


def test_every_state_and_age(each_server: Server) -> None:
    redis = each_server.client

    async def scenario() -> tuple[QueueView, Claim, float]:
        async with opened(each_server.url) as store:
            queue = store.queues["callbacks"]
            await queue.enqueue([payload(number) for number in range(10)])
            first = await claim(store, 4)
            await claim(store, 2)
            await queue.settle(
                [
                    Settlement(first.items[0], Retry(60, FAILURE)),
                    Settlement(first.items[1], Retry(60, FAILURE)),
                    Settlement(first.items[2], Dead(DeadReason.REJECTED, FAILURE)),
                ]
            )
            # Time passes: one retry has become overdue, one lease has run out; and foreign workers took two.
            retries: Any = redis.zrange("callback_queue:retry", 0, -1)
            redis.zadd("callback_queue:retry", {retries[0]: first.at_ms - 1001})
            redis.zadd("callback_queue:leases", {first.items[3].lease: first.at_ms - 1})
            redis.lpush("callback_queue:processing", payload(91), payload(90))
            return only(await store.reader.snapshot()), first, time.time()

    view, first, now = asyncio.run(scenario())
    assert view.lengths == {State.PENDING: 4, State.PROCESSING: 5, State.RETRY: 2, State.DEAD: 1, State.TRASH: 0}
    assert view.oldest_at[State.PENDING] == 1764000006.5
    assert view.oldest_at[State.PROCESSING] == 1764000090.5
    assert view.oldest_at[State.DEAD] == pytest.approx(now, abs=1)
    assert State.RETRY not in view.oldest_at
    assert view.oldest_claim_at == first.at_ms / 1000
    assert view.retry_oldest_due_at == (first.at_ms - 1001) / 1000
    assert (view.retry_overdue, view.stuck, view.untracked, view.leased) == (1, 1, 2, 3)
    assert view.lock is not None
    assert view.lock.value == OURS
    assert view.lock.ours
    assert view.lock.ttl == pytest.approx(30, abs=2)
    assert view.last_send_at == pytest.approx(now, abs=1)
    assert view.source_stats == {"queued": 10, "failed": 3}
    assert view.error is None


def test_the_lock_of_somebody_else(each_server: Server) -> None:
    async def scenario() -> None:
        async with opened(each_server.url) as store:
            each_server.client.set("callback_queue:lock", b"worker_\xff", ex=20)
            lock = only(await store.reader.snapshot()).lock
            assert lock is not None
            assert (lock.value, lock.ours) == ("worker_\ufffd", False)
            assert lock.ttl == pytest.approx(20, abs=2)
            each_server.client.set("callback_queue:lock", "worker_1")
            assert only(await store.reader.snapshot()).lock == LockView("worker_1", None, ours=False)
            each_server.client.delete("callback_queue:lock")
            assert only(await store.reader.snapshot()).lock is None

    asyncio.run(scenario())


def test_what_others_wrote_may_be_nonsense(each_server: Server) -> None:
    async def scenario() -> QueueView:
        redis = each_server.client
        redis.rpush("callback_queue:pending", "not JSON")
        redis.rpush("callback_queue:processing", '{"_queued_at": "yesterday"}')
        redis.zadd("callback_queue:leases", {b"\xff nonsense": 1, b"more": 2})
        redis.set("callback_queue:last_send_time", "nan")
        redis.set("callback_queue:stats:sent", "many")
        async with opened(each_server.url) as store:
            return only(await store.reader.snapshot())

    view = asyncio.run(scenario())
    assert view.lengths[State.PENDING] == view.lengths[State.PROCESSING] == 1
    assert (view.oldest_at, view.oldest_claim_at, view.last_send_at, view.source_stats) == ({}, None, None, {})
    assert (view.stuck, view.untracked) == (2, 0)


def test_the_last_send_is_remembered_when_its_key_has_expired(each_server: Server) -> None:
    async def scenario() -> None:
        async with opened(each_server.url) as store:
            each_server.client.set("callback_queue:last_send_time", "1764000000.25")
            assert only(await store.reader.snapshot()).last_send_at == 1764000000.25
            each_server.client.delete("callback_queue:last_send_time")
            assert only(await store.reader.snapshot()).last_send_at == 1764000000.25

    asyncio.run(scenario())


def test_one_broken_queue_does_not_hide_the_others(each_server: Server) -> None:
    async def scenario() -> None:
        each_server.client.set("a:retry", "of another program")
        each_server.client.rpush("b:pending", payload(1))
        a, b = QueueConfig(name="a", prefix="a"), QueueConfig(name="b", prefix="b", mode=Mode.OBSERVE)
        errors: list[str] = []
        async with opened(each_server.url, a, b, errors=errors) as store:
            snapshot = await store.reader.snapshot()
        assert snapshot.up
        broken, sound = snapshot.queues
        assert (broken.queue, broken.lengths, broken.stuck) == ("a", {}, None)
        assert broken.error is not None
        assert broken.error.startswith("a:retry: ")
        assert "another type" in broken.error
        assert (sound.queue, sound.mode, sound.error, sound.lengths[State.PENDING]) == ("b", Mode.OBSERVE, None, 1)
        assert set(errors) == {"wrongtype"}

    asyncio.run(scenario())


def calls(server: Server) -> dict[str, int]:
    """How often each command was called since the last CONFIG RESETSTAT, by its name."""
    stats = server.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): about["calls"] for name, about in stats.items()}


def socket_reads(server: Server) -> int:
    return int(server.client.info("stats")["total_reads_processed"])


def test_the_cost_is_one_round_trip_of_cheap_commands(each_server: Server) -> None:
    async def scenario() -> None:
        names = ["a", "b", "c"]
        async with opened(each_server.url, *(QueueConfig(name=name, prefix=name) for name in names)) as store:
            for name in names:
                await store.queues[name].enqueue([payload(number) for number in range(1000)])
            await store.reader.snapshot()
            before = socket_reads(each_server)
            await store.reader.snapshot()
            assert socket_reads(each_server) - before == 2  # the other one is our question itself
            each_server.client.config_resetstat()
            await store.reader.snapshot()
            seen = calls(each_server)
            for reset in ("config|resetstat", "config"):  # before version 7 without its second word
                seen.pop(reset, None)
            each_queue = {"llen": 2, "lindex": 2, "zcard": 3, "zcount": 3, "zrange": 3, "get": 3, "pttl": 1, "mget": 1}
            each_queue |= {"hmget": 1, "hvals": 1, "exists": 1, "hexists": 1, "hlen": 2}
            assert seen == {"time": 1, "info": 4} | {name: 3 * count for name, count in each_queue.items()}

    asyncio.run(scenario())


def test_all_queues_are_asked_before_the_first_answer_comes(each_server: Server) -> None:
    async def scenario(proxy: FaultProxy) -> None:
        queues = [QueueConfig(name=f"q{number}", prefix=f"q{number}") for number in range(50)]
        async with opened(proxy.url, *queues) as store:
            assert (await store.reader.snapshot()).up
            each_server.client.config_resetstat()
            proxy.plan(Fault(Action.BLACK_HOLE, Direction.TO_CLIENT))
            asking = asyncio.create_task(store.reader.snapshot(10))
            arrived = await asyncio.to_thread(until, lambda: calls(each_server).get("mget", 0) == len(queues))
            assert arrived
            assert not asking.done()
            proxy.heal()
            assert not (await asking).up

    with FaultProxy(each_server.socket) as proxy:
        asyncio.run(scenario(proxy))


def test_memory_is_measured_apart_with_as_many_commands_whatever_waits(each_server: Server) -> None:
    async def scenario(proxy: FaultProxy) -> None:
        a, b = QueueConfig(name="a", prefix="a"), QueueConfig(name="b", prefix="b")
        async with opened(proxy.url, a, b) as store:
            await store.queues["a"].enqueue([payload(number) + b" " * 1000 for number in range(2000)])
            assert [view.memory for view in (await store.reader.snapshot()).queues] == [None, None]
            each_server.client.config_resetstat()
            before = socket_reads(each_server)
            assert await store.reader.measure() == {}
            assert socket_reads(each_server) - before == 2  # the other one is our question itself
            usage = "memory|usage" if "memory|usage" in calls(each_server) else "memory"
            assert {name: calls(each_server)[name] for name in (usage, "get")} == {usage: 20, "get": 2}
            full, empty = (await store.reader.snapshot()).queues
            assert full.memory == pytest.approx(2000 * 1100, rel=0.2)
            assert empty.memory == 0
            # What was measured once is not shown for ever.
            proxy.plan(Fault(Action.CUT))
            with pytest.raises(StoreUnavailable):
                await store.reader.measure()
            assert [view.memory for view in (await store.reader.snapshot()).queues] == [None, None]

    with FaultProxy(each_server.socket) as proxy:
        asyncio.run(scenario(proxy))


def test_measuring_sees_a_send_that_no_read_came_in_time_for(each_server: Server) -> None:
    async def scenario() -> None:
        async with opened(each_server.url) as store:
            each_server.client.set("callback_queue:last_send_time", "1764000000.25")
            await store.reader.measure()
            each_server.client.delete("callback_queue:last_send_time")
            assert only(await store.reader.snapshot()).last_send_at == 1764000000.25

    asyncio.run(scenario())


def test_calls_at_the_same_time_share_one_read(each_server: Server) -> None:
    async def scenario() -> None:
        async with opened(each_server.url) as store:
            each_server.client.config_resetstat()
            gone = asyncio.create_task(store.reader.snapshot())
            others = [asyncio.create_task(store.reader.snapshot(5)) for _ in range(200)]
            await asyncio.sleep(0)
            gone.cancel()  # who leaves takes nothing away from the others
            first, *rest = await asyncio.gather(*others)
            assert first.up
            assert all(snapshot is first for snapshot in rest)
            assert calls(each_server)["mget"] == 1
            later = await store.reader.snapshot()
            assert later.at > first.at
            assert calls(each_server)["mget"] == 2

    asyncio.run(scenario())


class SkewedClock:
    """This machine's clock, set wrong by ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self._seconds

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()


@pytest.mark.parametrize("seconds", [-7200, 7200])
def test_time_is_the_servers(each_server: Server, seconds: float) -> None:
    """What has run out, and what has not, does not depend on the clock of the machine that looks."""

    async def scenario() -> None:
        async with opened(each_server.url) as store:
            await store.queues["callbacks"].enqueue([payload(1), payload(2)])
            _alive, expired = (await claim(store, 2)).items
            each_server.client.zadd("callback_queue:leases", {expired.lease: time.time() * 1000 - 1000})
            source = Source("callbacks", Mode.OBSERVE, store.queues["callbacks"].keys)
            reader = Reader(store.connections, [source], clock=SkewedClock(seconds))
            each_server.client.config_resetstat()
            snapshot = await reader.snapshot()
            assert (only(snapshot).leased, only(snapshot).stuck) == (2, 1)
            assert snapshot.at == pytest.approx(time.time(), abs=1)
            assert calls(each_server)["time"] == 2
            assert only(await reader.snapshot()).stuck == 1
            assert calls(each_server)["time"] == 3  # the difference is known now

    asyncio.run(scenario())


@pytest.mark.parametrize("rights", ["+@read +info +time", "+@read"])
def test_a_user_who_may_only_read_is_enough(each_server: Server, rights: str) -> None:
    each_server.client.rpush("callback_queue:pending", payload(1))
    keys = "%R~callback_queue:*" if major_version(each_server.kind) >= 7 else "~callback_queue:*"
    command(each_server, "ACL", "SETUSER", "viewer", "reset", "on", ">secret", keys, *rights.split())

    async def scenario() -> None:
        async with opened(f"{each_server.url}?username=viewer&password=secret") as store:
            snapshot = await store.reader.snapshot()
            assert only(snapshot).lengths[State.PENDING] == 1
            assert only(snapshot).error is None
            assert snapshot.at == pytest.approx(time.time(), abs=1)
            # What it may not ask for is unknown.
            assert (snapshot.memory_used is not None) == (snapshot.server != "") == ("+info" in rights)
            assert await store.reader.measure() == {}
            command(each_server, "ACL", "SETUSER", "viewer", "-memory")
            assert (await store.reader.measure())["callbacks"].kind == "permission"
            assert only(await store.reader.snapshot()).memory is None
            with pytest.raises(StoreError):
                await store.queues["callbacks"].enqueue([payload(2)])

    try:
        asyncio.run(scenario())
    finally:
        command(each_server, "ACL", "DELUSER", "viewer")


def test_a_server_that_is_away_is_an_answer_too() -> None:
    async def scenario() -> None:
        with Server() as server:
            async with opened(server.url, QueueConfig(name="a")) as store:
                assert (await store.reader.snapshot()).up
                server.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                hung = await store.reader.snapshot(0.2)
                assert 0.2 <= time.monotonic() - began < 1
                server.send_signal(signal.SIGCONT)
                assert (await store.reader.snapshot(5)).up
                await asyncio.to_thread(server.kill)
                gone = await store.reader.snapshot(5)
                await asyncio.to_thread(server.start)
                assert (await store.reader.snapshot(5)).up
        for snapshot, words in ((hung, "did not answer within 0.2 s"), (gone, "cannot be reached")):
            assert not snapshot.up
            assert snapshot.error is not None
            assert words in snapshot.error
            assert "\n" not in snapshot.error
            assert snapshot.queues == (QueueView("a", Mode.DISPATCH, error=snapshot.error),)
            assert (snapshot.server, snapshot.memory_used) == ("", None)

    asyncio.run(scenario())
