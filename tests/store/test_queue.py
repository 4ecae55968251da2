"""What a queue promises, one promise a test, on a real Valkey and a real Redis."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from cbq_exporter.errors import StoreMisuse, StoreUnavailable
from cbq_exporter.model import (
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    Outcome,
    PutBack,
    Recovery,
    Retry,
    Settled,
    Settlement,
)
from cbq_exporter.store.keys import QueueKeys
from tests.support.daemons import until
from tests.support.queues import FAILURE, OURS, DrivenQueue, callback
from tests.support.servers import KINDS, Server

DELIVERED = Delivered()
RETRY_NOW = Retry(0.0, FAILURE)
RETRY_LATER = Retry(3600.0, FAILURE)
REJECTED = Dead(DeadReason.REJECTED, FAILURE)


@pytest.fixture
def q(each_server: Server) -> Iterator[DrivenQueue]:
    with DrivenQueue(each_server) as driven:
        yield driven


# --- one callback's life -------------------------------------------------------------------------


def test_a_callback_goes_from_pending_to_processing_and_is_gone_when_delivered(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    (first,) = q.claim(1).items
    assert (first.payload, first.attempts, first.recoveries) == (callback(1), 0, 0)
    assert (q.pending, q.processing) == ([callback(2)], [callback(1)])
    assert q.settle(DELIVERED, first) == [Settled.DONE]
    assert (q.pending, q.processing) == ([callback(2)], [])
    left = {key.decode() for key in q.redis.keys("*")}
    assert left == {q.keys.pending, q.keys.lock, q.keys.last_send, q.keys.stats_sent, q.keys.fence}


def test_the_keys_of_existing_tools_are_kept_as_they_expect_them(q: DrivenQueue) -> None:
    q.do(q.queue.enqueue([callback(n) for n in range(4)]))
    before = time.time()
    one, two, three, four = q.claim().items
    last_send = q.redis.get(q.keys.last_send).decode()
    assert before - 1 < float(last_send) < time.time() + 1
    assert len(last_send.split(".")[1]) == 6
    assert 58 <= q.redis.ttl(q.keys.last_send) <= 60
    assert q.redis.get(q.keys.lock) == OURS.encode()
    assert 28 <= q.redis.ttl(q.keys.lock) <= 30

    q.settle(DELIVERED, one)
    q.settle(RETRY_LATER, two)  # `failed` counts attempts: of those that will be repeated
    q.settle(REJECTED, three)  # and of those that will not
    q.settle(Dead(DeadReason.NO_DATA, FAILURE, attempt_used=False), four)  # nothing was attempted
    for key, count in ((q.keys.stats_queued, b"4"), (q.keys.stats_sent, b"1"), (q.keys.stats_failed, b"2")):
        assert q.redis.get(key) == count
        assert 86_300 < q.redis.ttl(key) <= 86_400


def test_payloads_are_bytes_and_never_change(q: DrivenQueue) -> None:
    payloads = [b'{"n": 1.10, "e":[]}', b"\xff\x00\r\n", b"", b"123", b"-0", callback(1, 10_000_000)]
    random.Random(1).shuffle(payloads)
    q.redis.rpush(q.keys.pending, *payloads)
    for outcome in (RETRY_NOW, PutBack(), REJECTED):
        claimed = q.claim_all()
        assert sorted(one.payload for one in claimed) == sorted(payloads)
        assert set(q.settle(outcome, *claimed)) == {Settled.DONE}
        q.let_retries_be_due()
    assert sorted(q.kept(q.keys.dead)) == sorted(payloads)
    letters = q.do(q.queue.dead.read(q.do(q.queue.dead.ids(offset=0, count=10)), with_payload=True))
    assert sorted(letter.payload or b"" for letter in letters) == sorted(payloads)
    q.claim_all()
    q.do(q.queue.dead.retry([letter.id for letter in letters]))
    claimed = q.claim_all()
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)).returned == len(payloads)
    assert Counter(q.pending) == Counter(payloads)
    assert {one.lease for one in q.claim_all()}.isdisjoint(one.lease for one in claimed)


# --- the lock ------------------------------------------------------------------------------------


def test_the_lock_is_taken_where_it_is_free_and_prolonged_where_it_is_ours(q: DrivenQueue) -> None:
    for _ in range(2):
        state = q.do(q.queue.keep_lock(30.0))
        assert (state.ours, state.ttl) == (True, 30.0)
        q.redis.expire(q.keys.lock, 5)
    assert q.do(q.queue.free_lock())
    assert not q.redis.exists(q.keys.lock)
    assert not q.do(q.queue.free_lock())


@pytest.mark.parametrize("seconds", [17, None])
def test_a_standby_hears_how_long_the_lock_of_another_lasts(q: DrivenQueue, seconds: int | None) -> None:
    q.redis.set(q.keys.lock, "worker_1763999999_0001", ex=seconds)
    state = q.do(q.queue.keep_lock(30.0))
    assert not state.ours
    assert state.ttl is None if seconds is None else state.ttl is not None and 16 < state.ttl <= 17
    assert not q.do(q.queue.free_lock())
    assert q.redis.get(q.keys.lock) == b"worker_1763999999_0001"


def test_without_the_lock_nothing_can_be_claimed(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    for value in (None, "worker_1763999999_0001"):
        q.redis.delete(q.keys.lock)
        if value:
            q.redis.set(q.keys.lock, value)
        before = q.contents()
        assert q.try_claim() is None
        assert q.contents() == before


# --- what a claim takes --------------------------------------------------------------------------


def test_a_claim_stops_at_its_count_and_at_its_bytes_and_keeps_the_order(q: DrivenQueue) -> None:
    payloads = [callback(100 + n, 1000) for n in range(20)]
    q.redis.rpush(q.keys.pending, *payloads)
    size = len(payloads[0])
    by_count = q.claim(7)
    assert [one.payload for one in by_count.items] == payloads[:7]
    assert (by_count.pending_left, by_count.from_retry, by_count.next_due_ms) == (13, 0, None)
    by_bytes = q.claim(max_bytes=4 * size + 3)
    assert [one.payload for one in by_bytes.items] == payloads[7:11]
    exactly = q.claim(max_bytes=2 * size)
    assert [one.payload for one in exactly.items] == payloads[11:13]
    at_least_one = q.claim(max_bytes=1)
    assert [one.payload for one in at_least_one.items] == payloads[13:14]
    rest = q.claim(from_pending=2)
    assert [one.payload for one in rest.items] == payloads[14:16]
    assert q.claim(from_pending=0).items == ()
    assert q.processing == payloads[:16]
    assert q.pending == payloads[16:]


@pytest.mark.parametrize("seed", range(5))
def test_sizes_of_any_mixture_fill_the_budget_and_do_not_exceed_it(q: DrivenQueue, seed: int) -> None:
    roll = random.Random(seed)
    payloads = [callback(n, roll.choice([200, 500, 3000, 60_000])) for n in range(150)]
    q.redis.rpush(q.keys.pending, *payloads)
    taken = 0
    while items := q.claim(max_bytes=80_000).items:
        assert [one.payload for one in items] == payloads[taken : taken + len(items)]
        taken += len(items)
        bytes_taken = sum(len(one.payload) for one in items)
        assert bytes_taken <= 80_000
        full = taken == len(payloads) or bytes_taken + len(payloads[taken]) > 80_000
        assert full or len(items) == 100
    assert taken == len(payloads)
    assert q.processing == payloads


def test_more_items_than_luas_stack_holds_go_through_every_script(q: DrivenQueue) -> None:
    payloads = [callback(n) for n in range(10_100)]
    assert q.do(q.queue.enqueue(payloads)) == 10_100
    claimed = q.claim_all()
    assert [one.payload for one in claimed] == payloads
    assert q.do(q.queue.extend([one.lease for one in claimed], 60.0)) == [True] * 10_100
    assert set(q.settle(RETRY_NOW, *claimed)) == {Settled.DONE}
    q.let_retries_be_due()
    claimed = q.claim_all()
    assert Counter(one.payload for one in claimed) == Counter(payloads)
    q.let_leases_run_out()
    assert q.do(q.expired.recover(0)) == Recovery(dead=10_000)  # the rest at the next look
    assert q.do(q.expired.recover(0)) == Recovery(dead=100)
    ids = q.do(q.queue.dead.ids(offset=0, count=20_000))
    assert q.do(q.queue.dead.retry(ids[:5000])) == 5000
    assert q.do(q.queue.dead.purge(ids[:7000])) == 2000
    assert q.do(q.queue.dead.trim(0, 3600.0, batch=10_000)) == 3100
    assert len(q.pending) == 5000
    assert not q.redis.exists(q.keys.dead, q.keys.records, q.keys.payloads)


def test_one_script_takes_no_more_than_it_can_in_a_moment(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(3000)))
    claims = [q.claim(10_000) for _ in range(6)]
    assert [len(claim.items) for claim in claims] == [500] * 6
    claimed = [one for claim in claims for one in claim.items]
    in_order = q.do(q.queue.settle([Settlement(one, RETRY_LATER) for one in claimed]))
    assert in_order == [Settled.DONE] * 500
    shuffled = random.Random(1).sample(claimed[500:], 1000)
    left = 2500
    for outcome in (RETRY_LATER, DELIVERED):
        far_apart = q.do(q.queue.settle([Settlement(one, outcome) for one in shuffled]))
        assert far_apart == [Settled.DONE] * len(far_apart)
        assert 20 < len(far_apart) < 200
        left -= len(far_apart)
        assert q.redis.zcard(q.keys.leases) == len(q.processing) == left
        del shuffled[: len(far_apart)]

    q.redis.flushall()
    q.redis.rpush(q.keys.pending, *(callback(n, 900_000) for n in range(10)))
    q.redis.config_resetstat()
    claims = [q.claim(10) for _ in range(5)]
    assert [len(claim.items) for claim in claims] == [2] * 5
    # Moved by name, so that the bytes are not written to the append-only file again.
    assert q.redis.info("commandstats")["cmdstat_lmove"]["calls"] == 10
    q.settle(REJECTED, *(one for claim in claims for one in claim.items))
    ids = q.do(q.queue.dead.ids(offset=0, count=10))
    q.do(q.queue.dead.retry(["0-0-0"]))
    q.redis.config_resetstat()
    assert q.do(q.queue.dead.retry(ids)) == 10
    assert q.redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 5


def test_a_large_callback_goes_to_the_append_only_file_once(q: DrivenQueue) -> None:
    def written() -> int:
        return int(q.redis.info("persistence")["aof_current_size"])

    def is_begun() -> bool:
        about = q.redis.info("persistence")
        return not (about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"])  # scheduled: during a save

    q.redis.config_set("appendonly", "yes")
    try:
        until(is_begun)
        q.redis.rpush(q.keys.pending, *(callback(n, 100_000) for n in range(8)))
        pushed = written()
        assert pushed > 800_000
        assert q.settle(DELIVERED, *reversed(q.claim().items[2:])) == [Settled.DONE] * 6
        assert q.processing == [callback(n, 100_000) for n in range(2)]
        assert written() - pushed < 10_000
    finally:
        q.redis.config_set("appendonly", "no")


def test_neither_retries_nor_pending_callbacks_starve(q: DrivenQueue) -> None:
    for size, max_bytes, count in ((0, 1 << 40, 10), (0, 1 << 40, 1), (5000, 1000, 10)):  # full by count, by bytes
        q.redis.flushall()
        q.redis.rpush(q.keys.pending, *(callback(n, size) for n in range(40)))
        q.settle(RETRY_NOW, *q.claim(40).items)
        q.let_retries_be_due()
        q.redis.rpush(q.keys.pending, *(callback(100 + n, size) for n in range(40)))
        claims = [q.claim(count, max_bytes=max_bytes) for _ in range(4)]
        assert sorted(claim.from_retry for claim in claims) == sorted(2 * [0, len(claims[0].items)])


# --- retries -------------------------------------------------------------------------------------


def test_a_retry_comes_back_when_it_is_due_and_remembers_everything(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    (first,) = q.claim().items
    q.let_leases_run_out()
    q.do(q.expired.recover(5))
    (second,) = q.claim().items
    assert (second.attempts, second.recoveries) == (0, 1)
    q.settle(RETRY_LATER, second)
    asked_ms = q.do(q.queue.store_now_ms())
    early = q.claim()
    assert early.items == ()
    assert early.next_due_ms is not None
    assert abs(early.next_due_ms - asked_ms - 3_600_000) < 1000
    q.let_retries_be_due()
    (third,) = q.claim().items
    q.settle(Retry(0.0, FAILURE, attempt_used=False), third)
    q.let_retries_be_due()
    claim = q.claim()
    (fourth,) = claim.items
    assert (claim.from_retry, claim.next_due_ms) == (1, None)
    assert (third.attempts, fourth.attempts, fourth.recoveries) == (1, 1, 1)
    assert {one.first_claimed_ms for one in (first, second, third, fourth)} == {first.first_claimed_ms}
    assert len({one.lease for one in (first, second, third, fourth)}) == 4
    assert q.redis.hlen(q.keys.records) == q.redis.hlen(q.keys.payloads) == q.redis.hlen(q.keys.returned) == 0


@pytest.mark.parametrize(
    "record",
    [
        None,
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"attempts":"x","recoveries":null,"first_ms":-1}',
        b'{"attempts":1e99}',
    ],
)
def test_a_retry_whose_record_is_missing_or_broken_starts_anew(q: DrivenQueue, record: bytes | None) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    q.settle(RETRY_NOW, *q.claim().items)
    q.let_retries_be_due()
    (broken, _) = q.redis.zrange(q.keys.retry, 0, -1)
    q.redis.hdel(q.keys.records, broken)
    if record is not None:
        q.redis.hset(q.keys.records, broken, record)
    claim = q.claim()
    assert sorted(one.attempts for one in claim.items) == [0, 1]
    assert {one.payload for one in claim.items} == {callback(1), callback(2)}
    assert {one.first_claimed_ms <= claim.at_ms for one in claim.items} == {True}
    assert set(q.settle(DELIVERED, *claim.items)) == {Settled.DONE}


def test_a_retry_whose_payload_is_gone_is_dropped_and_stops_nothing(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    q.settle(RETRY_NOW, *q.claim().items)
    q.let_retries_be_due()
    q.redis.hdel(q.keys.payloads, q.redis.zrange(q.keys.retry, 0, 0)[0])
    assert len(q.claim().items) == 1
    assert not q.redis.exists(q.keys.retry, q.keys.records, q.keys.payloads)


def test_a_broken_memory_of_a_returned_callback_stops_nothing(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    q.settle(PutBack(), *q.claim().items)
    q.redis.hset(q.keys.returned, q.redis.hkeys(q.keys.returned)[0], b"nonsense")
    (again,) = q.claim().items
    assert (again.payload, again.attempts, again.recoveries) == (callback(1), 0, 0)


# --- settling ------------------------------------------------------------------------------------


def test_one_call_settles_each_in_its_own_way(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(5)))
    claimed = q.claim(4).items
    outcomes: tuple[Outcome, ...] = (DELIVERED, RETRY_LATER, REJECTED, PutBack())
    settled = q.do(q.queue.settle([Settlement(*pair) for pair in zip(claimed, outcomes, strict=True)]))
    assert settled == [Settled.DONE] * 4
    assert q.pending == [callback(3), callback(4)]
    assert q.kept(q.keys.retry) == [callback(1)]
    assert q.kept(q.keys.dead) == [callback(2)]
    assert q.processing == []
    assert q.redis.zcard(q.keys.leases) == 0
    assert q.do(q.queue.settle([])) == []


@pytest.mark.parametrize("outcome", [DELIVERED, RETRY_LATER, REJECTED, PutBack()])
def test_a_lease_that_is_not_held_settles_nothing(q: DrivenQueue, outcome: Any) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    (late,) = q.claim().items
    q.let_leases_run_out()
    q.do(q.expired.recover(3))
    (current,) = q.claim().items
    before = q.contents()
    assert q.settle(outcome, late) == [Settled.FENCED]
    assert q.do(q.queue.put_back([late])) == 0
    assert q.do(q.queue.extend([late.lease], 60.0)) == [False]
    assert q.contents() == before
    assert q.settle(outcome, current, current) == [Settled.DONE, Settled.FENCED]


@pytest.mark.parametrize("outcome", [RETRY_LATER, REJECTED, PutBack()])
def test_what_somebody_else_took_out_is_not_brought_back_to_life(q: DrivenQueue, outcome: Any) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    one, two = q.claim().items
    q.redis.lrem(q.keys.processing, 1, callback(1))  # acknowledged
    q.redis.lpop(q.keys.processing)  # moved
    q.redis.rpush(q.keys.pending, callback(2))
    assert q.settle(outcome, one, two) == [Settled.MISSING, Settled.MISSING]
    assert q.everywhere == Counter([callback(2)])
    assert not q.redis.exists(q.keys.leases, q.keys.records, q.keys.payloads, q.keys.returned)


def test_two_equal_callbacks_are_two(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *[callback(1)] * 3)
    one, two, three = q.claim().items
    assert one.fingerprint == two.fingerprint == three.fingerprint
    assert len({one.lease, two.lease, three.lease}) == 3
    assert q.settle(DELIVERED, two, two) == [Settled.DONE, Settled.FENCED]
    assert q.processing == [callback(1)] * 2
    q.let_leases_run_out(one.lease)
    assert q.do(q.expired.recover(3)) == Recovery(returned=1)
    assert (q.pending, q.processing) == ([callback(1)], [callback(1)])
    assert q.settle(REJECTED, three) == [Settled.DONE]
    assert q.everywhere == Counter({callback(1): 2})


def test_putting_back_keeps_the_order_across_scripts(q: DrivenQueue) -> None:
    payloads = [callback(n, 9000) for n in range(1200)]  # more than one script takes, by count and by bytes
    q.redis.rpush(q.keys.pending, *payloads)
    claimed: list[Claimed] = []
    while len(claimed) < 1100:
        claimed += q.claim(1100 - len(claimed)).items
    assert q.do(q.queue.put_back(claimed)) == 1100
    assert q.pending == payloads


def test_statistics_that_are_broken_do_not_stop_anything(q: DrivenQueue) -> None:
    for value in ("not a number", None):
        for key in (q.keys.stats_queued, q.keys.stats_sent, q.keys.stats_failed):
            q.redis.delete(key)
            if value:
                q.redis.set(key, value)
            else:
                q.redis.rpush(key, "a list")
        q.do(q.queue.enqueue([callback(1), callback(2)]))
        one, two = q.claim().items
        assert q.settle(DELIVERED, one) == [Settled.DONE]
        assert q.settle(REJECTED, two) == [Settled.DONE]


# --- recovery ------------------------------------------------------------------------------------


def test_what_a_dead_daemon_held_returns_to_the_head_in_order(q: DrivenQueue) -> None:
    ours = [callback(n) for n in range(2000)]
    theirs = [callback(10_000 + n) for n in range(500)]
    q.redis.rpush(q.keys.pending, *ours[:1500])
    q.claim_all()
    q.redis.rpush(q.keys.processing, *theirs)
    q.redis.rpush(q.keys.pending, *ours[1500:])
    alive = q.claim(500).items[100:]
    q.redis.rpush(q.keys.pending, callback(99_999))
    dead = [name for name, _ in q.redis.zscan_iter(q.keys.leases) if name.decode() not in {one.lease for one in alive}]
    q.let_leases_run_out(*dead)
    assert q.do(q.expired.recover(3)) == Recovery(returned=1600)
    assert q.pending == [*ours[:1600], callback(99_999)]
    assert q.processing == [*theirs, *(one.payload for one in alive)]
    assert q.do(q.expired.recover(3)) == Recovery()


def test_equal_callbacks_far_apart_in_processing_are_all_recovered(q: DrivenQueue) -> None:
    filler = [callback(n) for n in range(1, 400)]
    q.redis.rpush(q.keys.pending, callback(0), *filler, callback(0), *filler, callback(0))
    q.claim_all()
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)) == Recovery(returned=801)
    assert q.pending == [callback(0), *filler, callback(0), *filler, callback(0)]
    assert q.processing == []


def test_a_lease_that_is_extended_while_recovery_looks_is_left_alone(
    q: DrivenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    one, two = q.claim().items
    q.let_leases_run_out()
    read = q.connections.read

    async def read_late(*command: Any) -> Any:
        if command[0] == "LRANGE":
            assert await q.queue.extend([one.lease], 60.0) == [True]
            assert await q.queue.settle([Settlement(two, DELIVERED)]) == [Settled.DONE]
        return await read(*command)

    monkeypatch.setattr(q.connections, "read", read_late)
    assert q.do(q.expired.recover(3)) == Recovery()
    assert q.everywhere == Counter(q.processing) == Counter([callback(1)])


def test_only_what_nobody_keeps_is_recovered(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(3)))
    one, two, three = q.claim().items
    q.let_leases_run_out()
    assert q.do(q.queue.extend([one.lease], 60.0)) == [True]
    assert q.settle(DELIVERED, two) == [Settled.DONE]
    assert q.do(q.expired.recover(3)) == Recovery(returned=1)
    assert (q.pending, q.processing) == ([callback(2)], [callback(0)])
    assert q.settle(DELIVERED, one, three) == [Settled.DONE, Settled.FENCED]


def test_a_callback_that_ends_its_daemon_again_and_again_becomes_a_dead_letter(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    recoveries = []
    for outcome in (None, RETRY_NOW, None):  # a retry in between does not make it forgotten
        (one,) = q.claim().items
        recoveries.append(one.recoveries)
        if outcome is not None:
            q.settle(outcome, one)
            q.let_retries_be_due()
            q.claim()
        q.let_leases_run_out()
        recovery = q.do(q.expired.recover(2))
    assert recoveries == [0, 1, 2]
    assert recovery == Recovery(dead=1)
    (letter,) = q.do(q.queue.dead.read(q.do(q.queue.dead.ids(offset=0, count=9)), with_payload=True))
    assert (letter.reason, letter.url, letter.failure.kind) == ("poison", "https://client.example/hook", "poison")
    assert "3 times" in letter.failure.detail
    assert (letter.attempts, letter.payload) == (1, callback(1))


def test_leases_without_a_callback_end_and_bring_nothing_back(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(1))
    q.claim()
    q.redis.lpop(q.keys.processing)
    q.redis.zadd(q.keys.leases, {"nonsense": 1, b"\xff|\xff": 1, "a|b|c|d|e": 1})
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)) == Recovery(returned=1, leases_dropped=4)
    assert not q.redis.exists(q.keys.leases, q.keys.processing)
    assert q.pending == [callback(1)]


# --- dead letters --------------------------------------------------------------------------------


def test_a_dead_letter_says_why_it_died(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    claim = q.claim()
    q.settle(REJECTED, *claim.items)
    assert q.do(q.queue.dead.count()) == 2
    oldest = q.do(q.queue.dead.ids(offset=0, count=1))
    newest = q.do(q.queue.dead.ids(offset=0, count=1, latest_first=True))
    assert oldest != newest
    now_ms = q.do(q.queue.store_now_ms())
    assert q.do(q.queue.dead.died_before(now_ms - 60_000, 10)) == []
    assert sorted(q.do(q.queue.dead.died_before(now_ms + 60_000, 10))) == sorted(oldest + newest)
    (letter,) = q.do(q.queue.dead.read(["0-0-0", *oldest]))
    assert (letter.reason, letter.url, letter.destination) == (
        "rejected",
        "https://client.example/hook",
        "client.example",
    )
    assert (letter.attempts, letter.failure, letter.payload) == (1, FAILURE, None)
    assert letter.size == len(callback(1))
    assert letter.first_at == claim.at_ms / 1000
    assert letter.first_at <= letter.died_at <= now_ms / 1000
    (whole,) = q.do(q.queue.dead.read(oldest, with_payload=True))
    assert whole.payload in (callback(1), callback(2))


def test_a_dead_letter_that_is_sent_again_has_a_clean_record(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(1))
    q.settle(RETRY_NOW, *q.claim().items)
    q.let_retries_be_due()
    one, its_equal = q.claim().items
    q.settle(REJECTED, one)
    q.settle(PutBack(), its_equal)
    q.redis.lpop(q.keys.pending)  # somebody else takes that one; its attempts are still remembered
    q.redis.rpush(q.keys.pending, callback(2))
    ids = q.do(q.queue.dead.ids(offset=0, count=9))
    assert q.do(q.queue.dead.retry([*ids, *ids, "0-0-0"])) == 1
    assert q.pending == [callback(2), callback(1)]
    assert [one.attempts for one in q.claim().items] == [0, 0]
    assert not q.redis.exists(q.keys.dead, q.keys.records, q.keys.payloads)


def test_a_dead_letter_is_not_hashed_where_no_memory_could_be_of_it(q: DrivenQueue) -> None:
    """The hash of 8 MiB took longer than all the rest of it."""
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(20)))
    q.settle(REJECTED, *q.claim().items)
    ids = q.do(q.queue.dead.ids(offset=0, count=20))
    q.redis.config_resetstat()
    assert q.do(q.queue.dead.retry(ids)) == len(ids)
    assert q.redis.info("commandstats")["cmdstat_hdel"]["calls"] == 2 * len(ids)


def test_what_waits_in_retry_is_made_due_in_its_order(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(1200)))
    for _ in range(3):
        q.settle(RETRY_LATER, *q.claim(400).items[::-1])
    ids = q.do(q.queue.retries.ids(offset=0, count=2000))
    assert q.do(q.queue.retries.hasten(["0-0-0", *ids])) == [False] + 1200 * [True]
    assert q.do(q.queue.retries.hasten(ids)) == 1200 * [False]
    assert q.do(q.queue.retries.ids(offset=0, count=2000)) == ids
    assert sum(len(q.claim(400).items) for _ in range(3)) == 1200
    assert q.redis.zcard(q.keys.retry) == 0


def test_dead_letters_are_bounded_by_count_and_by_age(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(20)))
    for one in q.claim().items:
        q.settle(REJECTED, one)
    ids = q.redis.zrange(q.keys.dead, 0, -1)
    now_ms = q.do(q.queue.store_now_ms())
    for place, name in enumerate(ids):
        q.redis.zadd(q.keys.dead, {name: now_ms - (7_200_000 if place < 8 else 60_000)})
    trim = q.queue.dead.trim
    assert q.do(trim(100, 86_400.0)) == 0
    assert q.do(trim(100, 3600.0, batch=5)) == 5  # by age, never more than asked for
    assert q.do(trim(100, 3600.0, batch=5)) == 3
    assert q.do(trim(10, 3600.0)) == 2  # by count
    assert q.do(trim(10, 3600.0)) == 0
    assert q.redis.zcard(q.keys.dead) == q.redis.hlen(q.keys.records) == q.redis.hlen(q.keys.payloads) == 10


# --- what others leave of our keys ---------------------------------------------------------------


@pytest.mark.parametrize("deleted", ["retry", "retry and records"])
def test_what_is_kept_for_no_callback_is_swept(q: DrivenQueue, deleted: str) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(700)))
    claimed = q.claim_all()
    q.settle(RETRY_LATER, *claimed[:600])
    q.settle(REJECTED, *claimed[600:])
    assert q.do(q.sweeper.sweep_kept()) == 0
    q.redis.delete(q.keys.retry)
    if "records" in deleted:
        q.redis.delete(q.keys.records)
    assert sum(q.do(q.sweeper.sweep_kept()) for _ in range(3)) == 600
    assert sorted(q.redis.hkeys(q.keys.payloads)) == sorted(q.redis.zrange(q.keys.dead, 0, -1))
    assert len(q.kept(q.keys.dead)) == 100
    assert None not in q.kept(q.keys.dead)


def test_of_large_payloads_only_a_few_are_read_at_once(q: DrivenQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any is read, nobody knows that they are large: sixteen of 8 MiB were 128 MiB in one answer."""
    megabyte, largest = 1024 * 1024, 0
    read = q.connections.read

    async def weighing(*command: Any) -> Any:
        nonlocal largest
        answer = await read(*command)
        payloads = {"HSCAN": lambda: answer[1], "LRANGE": lambda: answer}.get(command[0], list)()
        largest = max(largest, sum(map(len, payloads)))
        return answer

    monkeypatch.setattr(q.connections, "read", weighing)
    q.redis.rpush(q.keys.pending, *(callback(n, megabyte) for n in range(40)))
    assert len(q.claim_all()) == 40
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)).returned == 40
    assert len(callback(0, megabyte)) <= largest < 4 * megabyte
    q.settle(REJECTED, *q.claim_all())
    q.redis.delete(q.keys.dead, q.keys.records)
    largest = 0
    assert sum(q.do(q.sweeper.sweep_kept()) for _ in range(3)) == 40
    assert megabyte < largest < 12 * megabyte  # that is one bucket of the hash, or two


def test_the_memory_of_returned_callbacks_is_forgotten_by_age(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(30)))
    q.settle(PutBack(), *q.claim().items)
    now_ms = q.do(q.queue.store_now_ms())
    assert q.do(q.sweeper.forget_returned(now_ms - 60_000)) == 0
    assert q.redis.hlen(q.keys.returned) == 30
    assert q.do(q.sweeper.forget_returned(now_ms + 60_000)) == 30
    assert len(q.claim().items) == 30


# --- waiting -------------------------------------------------------------------------------------


def test_waiting_tells_what_the_flush_decision_needs(q: DrivenQueue) -> None:
    nothing = q.do(q.queue.waiting(early_size=3))
    assert (nothing.pending, nothing.oldest_queued_at, nothing.early_queued_at, nothing.next_due_at) == (0,) + (
        None,
    ) * 3
    q.redis.rpush(q.keys.pending, callback(9))
    q.settle(RETRY_LATER, *q.claim().items)
    q.redis.rpush(q.keys.pending, *(b'{"_queued_at": %d}' % (1764000000 + n) for n in range(4)))
    waiting = q.do(q.queue.waiting(early_size=3))
    assert (waiting.pending, waiting.oldest_queued_at, waiting.early_queued_at) == (4, 1764000000.0, 1764000002.0)
    assert waiting.next_due_at is not None
    assert abs(waiting.next_due_at - waiting.at - 3600) < 5
    assert abs(waiting.at - time.time()) < 5


def test_an_arrival_ends_the_wait_and_changes_nothing(q: DrivenQueue) -> None:
    assert q.do(q.queue.wait_for_arrival(0.05)) is False
    assert q.do(q.queue.wait_for_arrival(0.0)) is False
    timer = threading.Timer(0.05, lambda: q.redis.rpush(q.keys.pending, callback(1), callback(2), callback(1)))
    timer.start()
    assert q.do(q.queue.wait_for_arrival(20.0)) is True
    timer.join()
    assert q.do(q.queue.wait_for_arrival(20.0)) is True
    assert q.pending == [callback(1), callback(2), callback(1)]


# --- trouble -------------------------------------------------------------------------------------

_OPERATIONS: tuple[Callable[[DrivenQueue, list[Claimed]], Any], ...] = (
    lambda q, held: q.try_claim(2),
    lambda q, held: q.settle(RETRY_LATER, *held[:1]),
    lambda q, held: q.settle(REJECTED, *held[1:2]),
    lambda q, held: q.settle(PutBack(), *held[2:3]),
    lambda q, held: q.do(q.expired.recover(3)),
    lambda q, held: q.do(q.expired.recover(0)),
    lambda q, held: q.do(q.queue.dead.retry(q.do(q.queue.dead.ids(offset=0, count=9)))),
    lambda q, held: q.do(q.queue.retries.hasten(q.do(q.queue.retries.ids(offset=0, count=9)))),
    lambda q, held: q.do(q.sweeper.sweep_kept()),
    lambda q, held: q.do(q.queue.keep_lock(30.0)),
    lambda q, held: q.do(q.queue.waiting(3)),
)


@pytest.mark.parametrize(
    "field",
    ["pending", "processing", "lock", "leases", "retry", "dead", "records", "payloads", "returned", "fence"],
)
def test_a_foreign_type_at_any_key_changes_nothing_and_loses_nothing(q: DrivenQueue, field: str) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(12)))
    one, two, three, four, *held = q.claim(8).items
    q.settle(RETRY_NOW, one)
    q.settle(REJECTED, two)
    q.settle(PutBack(), three)
    q.let_leases_run_out(four.lease, held[3].lease)
    key = getattr(q.keys, field)
    q.redis.rename(key, "aside")
    q.redis.xadd(key, {"foreign": "stream"})
    refused = []
    for operation in _OPERATIONS:
        before = q.contents()
        try:
            operation(q, held)
        except StoreMisuse as error:
            refused.append(error.kind)
            after = q.contents()
            after.pop(q.keys.fence.encode(), None)
            before.pop(q.keys.fence.encode(), None)
            assert after == before
    assert set(refused) == {"wrongtype"}
    q.redis.rename("aside", key)
    lost = Counter(callback(n) for n in range(12)) - q.everywhere
    assert not lost


def test_a_full_memory_takes_nothing_new_and_does_not_stop_what_frees_it(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(8)))
    stuck, held = q.claim(2).items
    q.let_leases_run_out(stuck.lease)
    q.do(q.queue.free_lock())
    q.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            q.do(q.queue.enqueue([callback(9)]))
        assert caught.value.kind == "oom"
        for outcome in (DELIVERED, RETRY_LATER, REJECTED, PutBack()):
            assert q.settle(outcome, *q.claim(1).items) == [Settled.DONE]
        assert q.do(q.expired.recover(3)) == Recovery(returned=1)
        assert q.do(q.queue.extend([held.lease], 60.0)) == [True]
    finally:
        q.redis.config_set("maxmemory", 0)
    assert q.everywhere == Counter(callback(n) for n in range(8) if n != 2)


def test_a_restart_of_the_server_forgets_the_scripts_and_nothing_is_noticed(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, callback(1))
    for _ in range(2):
        q.redis.script_flush()
        claimed = q.claim().items
        q.redis.script_flush()
        q.settle(PutBack(), *claimed)
    assert q.pending == [callback(1)]


def test_a_hundred_callbacks_cost_two_commands(q: DrivenQueue) -> None:
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(1000)))
    q.settle(DELIVERED, *q.claim(1).items)  # the scripts are known from here on
    q.redis.config_resetstat()
    while claimed := q.try_claim(100):
        if not claimed.items:
            break
        q.settle(DELIVERED, *claimed.items)
    stats = q.redis.info("commandstats")
    assert "cmdstat_eval" not in stats
    assert stats["cmdstat_evalsha"]["calls"] == 10 + 10 + 1


def test_what_is_delivered_is_not_looked_for_before_it_is_taken_out(q: DrivenQueue) -> None:
    """As many as a dispatcher holds; at 150 of them in a script, each used to be found first."""
    q.redis.rpush(q.keys.pending, *(callback(n) for n in range(850)))
    claimed = q.claim_all()
    q.redis.config_resetstat()
    for first in range(0, len(claimed), 150):
        q.settle(DELIVERED, *claimed[first : first + 150])
    stats = q.redis.info("commandstats")
    assert stats["cmdstat_lrem"]["calls"] == 850
    assert "cmdstat_lpos" not in stats


def test_no_script_holds_the_server_up_however_much_others_left_in_processing(q: DrivenQueue) -> None:
    """In one of three tries: on a busy machine a script takes long because others have the processor."""
    assert any(_slow_beside_many(q) == [] for _ in range(3))


def _slow_beside_many(q: DrivenQueue) -> list[bytes]:
    """The beginnings of commands that took ten times what they take on a quiet machine."""
    q.redis.flushall()
    for first in range(0, 100_000, 2000):
        q.redis.rpush(q.keys.processing, *(callback(1_000_000 + first + n, 1024) for n in range(2000)))
    q.do(q.queue.enqueue([callback(n, 1024) for n in range(1000)]))
    q.redis.config_set("slowlog-log-slower-than", 50_000)  # microseconds
    q.redis.slowlog_reset()
    claimed = list(q.claim(500).items)
    random.Random(1).shuffle(claimed)
    q.settle(DELIVERED, *claimed[:250])
    q.settle(RETRY_NOW, *claimed[250:])
    q.let_retries_be_due()
    claimed = q.claim_all()
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)).returned == len(claimed) == 750
    assert q.redis.llen(q.keys.processing) == 100_000
    return [entry["command"][:40] for entry in q.redis.slowlog_get()]


# --- keys ----------------------------------------------------------------------------------------


def test_all_keys_of_a_queue_share_a_slot_where_its_prefix_has_a_hash_tag() -> None:
    tagged = QueueKeys.of("{callbacks}:queue").all()
    assert len(set(tagged)) == len(tagged)
    assert len({key_slot(key.encode()) for key in tagged}) == 1


def _two_free_ports() -> int:
    """The first of two of which the other is 10,000 higher: that is where a node of a cluster talks to others."""
    while True:
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError, OverflowError):
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            other.bind(("127.0.0.1", port + 10_000))
            return port


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A cluster of one node: it refuses every key of another slot, and every key that was not named."""
    with Server(
        request.param, "--port", str(_two_free_ports()), "--bind", "127.0.0.1", "--cluster-enabled", "yes"
    ) as node:
        client: Any = node.client
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        give_up_at = time.monotonic() + 20
        while client.cluster("info").get("cluster_state") != "ok":
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        yield node


def test_every_script_names_all_its_keys_and_they_share_a_slot(cluster: Server) -> None:
    with DrivenQueue(cluster, "{callbacks}:queue") as q:
        q.do(q.queue.enqueue([callback(n) for n in range(6)]))
        outcomes: tuple[Outcome, ...] = (DELIVERED, RETRY_NOW, REJECTED, PutBack())
        for one, outcome in zip(q.claim(5).items, outcomes, strict=False):
            assert q.settle(outcome, one) == [Settled.DONE]
        q.let_leases_run_out()
        assert q.do(q.expired.recover(3)) == Recovery(returned=1)
        q.let_retries_be_due()
        held = q.claim().items
        assert q.do(q.queue.extend([one.lease for one in held], 60.0)) == [True] * 4
        q.let_leases_run_out(held[0].lease)
        assert q.do(q.expired.recover(0)) == Recovery(dead=1)
        first, second = q.do(q.queue.dead.ids(offset=0, count=9))
        assert (q.do(q.queue.dead.retry([first])), q.do(q.queue.dead.purge([second]))) == (1, 1)
        q.redis.hset(q.keys.records, "1-1-1", b"{}")
        assert (q.do(q.sweeper.sweep_kept()), q.do(q.queue.dead.trim(0, 1.0))) == (1, 0)
        q.settle(PutBack(), *held[1:])
        assert q.do(q.sweeper.forget_returned(10**14)) == 3
        assert q.do(q.queue.free_lock())
    with DrivenQueue(cluster, "callback_queue") as untagged, pytest.raises(StoreMisuse) as caught:
        untagged.do(untagged.queue.enqueue([callback(1)]))
    assert caught.value.kind == "crossslot"


def test_single_keys_can_have_names_of_their_own() -> None:
    keys = QueueKeys.of("q", pending="in", processing="at-work", lock="the-lock", last_send="last", stats="numbers")
    assert (keys.pending, keys.processing, keys.lock, keys.last_send) == ("in", "at-work", "the-lock", "last")
    assert (keys.stats_queued, keys.stats_sent, keys.stats_failed) == (
        "numbers:queued",
        "numbers:sent",
        "numbers:failed",
    )
    assert keys.leases == "q:leases"


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_that_nobody_waits_for_any_more_takes_nothing(kind: str) -> None:
    """A server that hangs finds it when it goes on: under a lease that nobody knows, callbacks would wait for long."""
    with Server(kind) as server, DrivenQueue(server) as q:
        q.redis.rpush(q.keys.pending, callback(1), callback(2))
        (first,) = q.claim(1).items
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            q.try_claim(1)
        time.sleep(1.5)  # past the moment until which the answer could have been meant for somebody
        server.send_signal(signal.SIGCONT)
        assert q.settle(DELIVERED, first) == [Settled.DONE]
        assert (q.pending, q.processing) == ([callback(2)], [])
        assert not q.redis.exists(q.keys.leases)
        assert q.try_claim(1) is not None
