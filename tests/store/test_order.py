"""Callbacks of one key leave one after the other: whatever fails, returns or is killed in between."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.model import (
    Claim,
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    Held,
    Outcome,
    PutBack,
    Retry,
    Settled,
)
from cbq_exporter.store import sweeping
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.trash import Trash
from tests.support.queues import FAILURE, DrivenQueue
from tests.support.servers import Server

DELIVERED = Delivered()
RETRY_LATER = Retry(3600.0, FAILURE)
REJECTED = Dead(DeadReason.REJECTED, FAILURE)


@pytest.fixture
def q(each_server: Server) -> Iterator[DrivenQueue]:
    with DrivenQueue(each_server) as driven:
        yield driven


def item(key: Any, number: int, size: int = 0) -> bytes:
    return json.dumps({"url": "https://a.example/", "task_id": key, "data": number, "x": "x" * size}).encode()


def push(q: DrivenQueue, *payloads: bytes) -> None:
    q.redis.rpush(q.keys.pending, *payloads)


def claim(q: DrivenQueue, count: int = 100, max_bytes: int = 1 << 30) -> Claim:
    assert q.do(q.queue.keep_lock(30.0)).ours
    claimed = q.do(q.queue.claim(count=count, max_bytes=max_bytes, lease=60.0, lock_ttl=30.0, order_by="task_id"))
    assert claimed is not None
    return claimed


def numbers(claimed: Claim | list[Claimed]) -> list[int]:
    items = claimed.items if isinstance(claimed, Claim) else claimed
    return [json.loads(one.payload)["data"] for one in items]


def claim_of(claimed: Claimed) -> str:
    return claimed.lease.partition("|")[0].rpartition("-")[0]


def order(q: DrivenQueue) -> int:
    return int(q.redis.zcard(q.keys.order))


def test_what_is_claimed_together_is_in_order_and_what_comes_later_waits(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("b", 2), item("a", 3))
    one, two, three = claim(q).items
    push(q, item("a", 4), item("c", 5), item("b", 6))
    later = claim(q)
    assert (numbers(later), later.new, later.pending_left) == ([5], 3, 0)
    assert q.settle(DELIVERED, one) == [Settled.DONE]
    assert numbers(claim(q)) == []  # 3 is still under way
    q.settle(DELIVERED, three)
    assert numbers(claim(q)) == [4]
    q.settle(REJECTED, two)  # given up: it goes on with the next
    assert numbers(claim(q)) == [6]


def test_a_retry_holds_back_the_later_ones_of_its_key(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = claim(q).items
    q.settle(RETRY_LATER, one)
    q.settle(Held(), two)
    push(q, item("a", 3), item("b", 4))
    assert numbers(claim(q)) == [4]
    first, *others = q.redis.zrange(q.keys.retry, 0, -1, withscores=True)
    assert all(due > first[1] for _, due in others)  # nothing asks before it
    q.let_retries_be_due()
    again = claim(q)
    assert numbers(again) == [1, 2, 3]
    assert [one.attempts for one in again.items] == [1, 0, 0]
    for one in again.items:
        q.settle(DELIVERED, one)
    assert order(q) == 1  # that of b


def test_who_waits_for_nothing_any_more_is_due_at_once(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = claim(q).items
    q.settle(DELIVERED, one)
    q.settle(Held(), two)
    assert numbers(claim(q)) == [2]


def test_an_entry_that_stands_for_nobody_holds_nobody_up(q: DrivenQueue) -> None:
    """Of byte-identical callbacks that came back one has lost its turn."""
    push(q, item("a", 1))
    (one,) = claim(q).items
    push(q, item("a", 2))
    assert numbers(claim(q)) == []
    turn, _, rest = q.redis.zrange(q.keys.order, 0, 0)[0].decode().partition("|")
    key, _, place = turn.partition(":")
    q.redis.zadd(q.keys.order, {f"{key}:{int(place) + 1:0{len(place)}}|1{rest[1:].replace('-', '-9', 1)}": 0})
    assert q.settle(DELIVERED, one) == [Settled.DONE]
    assert numbers(claim(q)) == [2]


def test_a_place_is_kept_through_recovery_and_putting_back(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2), item("a", 3))
    one, two, three = claim(q).items
    q.settle(RETRY_LATER, one)
    q.settle(Held(), two)
    q.let_leases_run_out(three.lease)
    assert q.do(q.expired.recover(3)).returned == 1
    push(q, item("a", 4))
    assert numbers(claim(q)) == []
    q.let_retries_be_due()
    first, *rest = claim(q).items
    assert numbers([first, *rest]) == [1, 2, 3, 4]
    assert [one.recoveries for one in rest] == [0, 1, 0]
    q.do(q.queue.put_back([first, *rest]))
    assert numbers(claim(q)) == [1, 2, 3, 4]


def test_what_another_daemon_holds_is_waited_for(q: DrivenQueue, each_server: Server) -> None:
    push(q, item("a", 1), item("a", 2))
    (one,) = claim(q, 1).items
    q.do(q.queue.free_lock())
    with DrivenQueue(each_server, lock_value="worker_1764000000_2222") as other:
        assert numbers(claim(other)) == []
        q.settle(DELIVERED, one)
        assert numbers(claim(other)) == [2]


def test_a_callback_without_a_key_waits_for_nobody(q: DrivenQueue) -> None:
    broken = [b"{", b"[1]", b'"task_id"', b'{"task_id": null}', b'{"task_id": ["a"]}', b'{"data": 1}']
    push(q, *broken)
    assert len(claim(q).items) == len(broken)
    push(q, *broken)
    assert [one.turn for one in claim(q).items] == [""] * len(broken)
    assert order(q) == 0


def test_a_key_is_found_wherever_it_stands_and_only_at_the_top(q: DrivenQueue) -> None:
    same = [
        b'{"task_id": "a", "data": 1}',
        b'{"task_id":"a"}',
        b' {\n "url" : "x{", "task_id"\t:\n"a" }',
        b'{"data": {"task_id": "b"}, "task_id": "a"}',
        b'{"data": [{"task_id": "b"}], "task_id": "a"}',
        b'{"task_id": "\\u0061"}',
        b'{"x\\"task_id": "b", "task_id": "a"}',
        b'{"x": "task_id", "task_id": "a"}',
    ]
    none = [b'{"data": {"task_id": "a"}}', b'["task_id", "a"]', b'{"x": "\\"task_id\\": \\"a\\""}', b'{"x": "task_id"}']
    numbers = [b'{"task_id": 12}', b'{"task_id":12.0}', b'{"data": {}, "task_id": 1.2e1}']
    push(q, *same)
    keys = {one.turn.partition(":")[0] for one in claim(q).items}
    assert len(keys) == 1
    push(q, *none, *numbers)
    turns = [one.turn for one in claim(q).items]
    assert turns[: len(none)] == [""] * len(none)
    assert len({turn.partition(":")[0] for turn in turns[len(none) :]} - keys) == 1


def test_keys_are_told_apart_by_type_and_read_with_halves_of_pairs(q: DrivenQueue) -> None:
    push(q, item(1, 1), item("1", 2), item(1, 3), b'{"task_id": "a", "prompt": "\\ud83d", "data": 4}', item("a", 5))
    turns = [one.turn for one in claim(q).items]
    keys = [turn.partition(":")[0] for turn in turns]
    assert keys[0] == keys[2] != keys[1]
    assert keys[3] == keys[4]


def test_one_key_does_not_take_all_of_a_claim(q: DrivenQueue) -> None:
    push(q, *(item("a", n) for n in range(50)), item("b", 50))
    taken = claim(q)
    assert numbers(taken) == [*range(16), 50]
    assert q.redis.zcard(q.keys.retry) == 34
    for n in range(16):
        q.settle(DELIVERED, taken.items[n])
    assert numbers(claim(q)) == [*range(16, 32)]


def test_large_ones_keep_their_order_and_stay_within_the_budget(q: DrivenQueue) -> None:
    push(q, item("a", 1), *(item(key, n, 50_000) for n, key in enumerate("abacad", 2)))
    taken: list[Claimed] = []
    for _ in range(20):
        got = claim(q, max_bytes=110_000)
        assert sum(len(one.payload) for one in got.items) <= 110_000
        taken += got.items
    assert numbers(taken)[:1] == [1]
    left = {json.loads(one.payload)["task_id"]: one for one in taken}
    assert set(left) == set("abcd")
    while taken:
        one = taken.pop(0)
        q.settle(DELIVERED, one)
        if not taken:
            taken = list(claim(q).items)
    assert sum(q.everywhere.values()) == order(q) == 0


def test_what_somebody_has_deleted_is_waited_for_by_nobody(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2), item("a", 3))
    one, two, _ = claim(q).items
    q.settle(RETRY_LATER, one)
    q.settle(PutBack(), two)
    q.redis.delete(q.keys.pending, q.keys.processing, q.keys.retry, q.keys.leases, q.keys.returned)
    push(q, item("a", 4))
    assert numbers(claim(q)) == [4]
    assert order(q) == 1


def test_what_stands_in_the_order_for_nobody_is_swept_and_nothing_else(q: DrivenQueue) -> None:
    """Of 1,200 keys, whose callbacks never come again; in pages, however many there are between them."""
    push(q, *(item(f"gone {n}", n) for n in range(1200)))
    while claim(q, 250).items:
        pass
    q.redis.delete(q.keys.leases, q.keys.processing)
    push(q, *(item(f"k{n}", n) for n in range(100)), item("k0", 100))
    held = claim(q).items  # of k0 two: one is under way, one waits for it in retry
    assert numbers(claim(q)) == []
    q.settle(RETRY_LATER, *held[10:20])
    q.settle(PutBack(), *held[20:30])
    q.redis.delete(q.keys.pending)  # taken by somebody else: they are remembered for a while
    q.redis.zadd(q.keys.order, {"no turn": 0, "a:1|2|-": 0})
    before = set(q.redis.zrange(q.keys.order, 0, -1))
    assert q.do(q.sweeper.sweep_order()) == 1202
    left = set(q.redis.zrange(q.keys.order, 0, -1))
    assert {entry.split(b"|")[0].decode() for entry in left} >= {one.turn for one in held}
    assert (left < before, len(left)) == (True, 101)
    assert q.do(q.sweeper.sweep_order()) == 0


def test_a_sweep_of_the_order_goes_on_where_the_last_one_ended(q: DrivenQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_PAGES", 1)
    q.redis.zadd(q.keys.order, {f"{n:020x}:1|1-1-1|{n:040x}|0|0|1": 0 for n in range(1300)})
    assert [q.do(q.sweeper.sweep_order()) for _ in range(4)] == [500, 500, 300, 0]


def test_what_another_worker_took_out_of_pending_is_waited_for_until_nothing_is_there(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = claim(q).items
    q.settle(RETRY_LATER, two)
    q.settle(PutBack(), one)
    assert q.redis.lpop(q.keys.pending) == one.payload
    push(q, item("b", 3))
    q.let_retries_be_due()
    assert numbers(claim(q, 1)) == [3]
    q.let_retries_be_due()
    assert numbers(claim(q)) == [2]


def test_what_another_worker_took_and_left_has_its_place_again(q: DrivenQueue, each_server: Server) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = claim(q).items
    q.do(q.queue.put_back([one, two]))
    q.redis.lmove(q.keys.pending, q.keys.processing)
    healing = Healing(q.connections, q.keys)
    q.do(healing.sightings.look(3600.0))
    assert q.do(healing.recover_stuck(0.0, 3)).returned == 1
    assert [(again.turn, again.recoveries) for again in claim(q).items] == [(one.turn, 1), (two.turn, 0)]


def test_what_waits_since_before_there_was_an_order_has_its_place_among_the_others(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = q.claim().items
    q.settle(RETRY_LATER, two)
    push(q, item("a", 3))
    (three,) = claim(q).items
    q.let_retries_be_due()
    push(q, item("b", 4))
    assert numbers(claim(q)) == [4]
    push(q, item("a", 5))
    assert numbers(claim(q)) == []
    q.settle(DELIVERED, one, three)
    assert numbers(claim(q)) == [2, 5]


@pytest.mark.parametrize("count", [1, 700])
def test_a_reset_takes_the_places_along_and_an_undo_brings_them_back(q: DrivenQueue, count: int) -> None:
    push(q, item("a", 1), *(item(f"b{n}", n) for n in range(count)), item("a", 2), item("a", 3), item("a", 4))
    claimed = {number: one for one in claim(q, 4).items for number in numbers([one])}
    push(q, item("a", 5))
    while claim(q).pending_left:
        pass
    q.settle(RETRY_LATER, claimed[1])
    trash = Trash(q.connections, q.keys)
    trash_id = q.do(trash.move(3600.0, round(time.time() * 1000), {}))
    assert trash_id is not None
    assert order(q) == 0
    push(q, item("a", 6))
    (six,) = claim(q).items
    assert numbers([six]) == [6]

    async def put_back() -> int:
        return sum([part async for part in trash.put_back(trash_id)])

    assert q.do(put_back()) == count + 5
    q.settle(DELIVERED, six)
    q.let_leases_run_out()
    q.do(q.expired.recover(3))
    for_a: list[int] = []
    for _ in range(2000):
        q.let_retries_be_due()
        taken = claim(q).items
        if not taken:
            break
        for_a += [n for one in taken if b'"a"' in one.payload for n in numbers([one])]
        q.settle(DELIVERED, *taken)
    assert for_a == [1, 2, 3, 4, 5]
    assert sum(q.everywhere.values()) == order(q) == 0


def test_an_undo_enters_no_more_places_at_once_than_fit_in_a_moment(q: DrivenQueue) -> None:
    """500 in one script held the server up for twice as long as is allowed."""
    push(q, *(item(f"b{n}", n) for n in range(700)))
    while items := claim(q, 200).items:
        q.settle(RETRY_LATER, *items)
    trash = Trash(q.connections, q.keys)
    trash_id = q.do(trash.move(3600.0, round(time.time() * 1000), {}))
    assert trash_id is not None

    async def put_back() -> list[int]:
        return [part async for part in trash.put_back(trash_id)]

    parts = q.do(put_back())
    assert (sum(parts), max(parts) <= 250, order(q)) == (700, True, 700)


def test_nothing_of_it_is_left_without_it(q: DrivenQueue) -> None:
    push(q, item("a", 1), item("a", 2))
    one, two = q.claim().items
    assert one.turn == two.turn == ""
    assert not q.redis.exists(q.keys.order)


OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from((DELIVERED, DELIVERED, RETRY_LATER, Held(), PutBack(), REJECTED))


class Course:
    """Two daemons on one queue. All that is earlier of a key has ended or is taken by the same claim."""

    def __init__(self, one: DrivenQueue, other: DrivenQueue) -> None:
        self.one, self.other = one, other
        self.keys: list[str] = []  # by number
        self.ended: set[int] = set()
        self.under_way: list[Claimed] = []

    def push(self, key: str) -> None:
        self.keys.append(key)
        push(self.one, item(key, len(self.keys) - 1))

    def take(self, who: DrivenQueue, count: int) -> None:
        self.one.redis.delete(self.one.keys.lock)
        for claimed in claim(who, count).items:
            (number,) = numbers([claimed])
            together = {n for it in self.under_way if claim_of(it) == claim_of(claimed) for n in numbers([it])}
            earlier = {n for n in range(number) if self.keys[n] == self.keys[number]}
            assert earlier <= self.ended | together
            self.under_way.append(claimed)

    def settle(self, place: int, outcome: Outcome) -> None:
        it = self.under_way.pop(place)
        self.one.settle(outcome, it)
        if isinstance(outcome, Delivered | Dead):
            self.ended.update(numbers([it]))

    def expire(self, place: int) -> None:
        self.one.let_leases_run_out(self.under_way.pop(place).lease)
        self.one.do(self.one.expired.recover(100))

    def come_to_an_end(self) -> None:
        """With one retry coming due at a time: the rest is woken by what ends before it."""
        for _ in range(2 * len(self.keys) + 2):
            while self.under_way:
                self.settle(0, DELIVERED)
            for member in self.one.redis.zrange(self.one.keys.retry, 0, 0):
                self.one.redis.zadd(self.one.keys.retry, {member: 1})
            self.take(self.one, 100)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_course_none_is_taken_before_all_earlier_ones_of_its_key_have_ended(
    server: Server, data: st.DataObject
) -> None:
    server.client.flushall()
    with DrivenQueue(server) as one, DrivenQueue(server, lock_value="worker_1764000000_2222") as other:
        course = Course(one, other)
        for _ in range(data.draw(st.integers(5, 40))):
            what = data.draw(st.sampled_from(("push", "claim", "claim", "settle", "settle", "expire", "due")))
            # What is drawn must not hang on what is under way: how much is due by now is for the clock to say.
            some, outcome = data.draw(st.integers(0, 11)), data.draw(OUTCOMES)
            place = some % len(course.under_way) if course.under_way else None
            if what == "push":
                for key in data.draw(st.text("ab", min_size=1, max_size=4)):
                    course.push(key)
            elif what == "claim":
                course.take(data.draw(st.sampled_from((one, other))), data.draw(st.integers(1, 4)))
            elif what == "due":
                one.let_retries_be_due()
            elif place is not None and what == "settle":
                course.settle(place, outcome)
            elif place is not None:
                course.expire(place)
        course.come_to_an_end()
        assert course.ended == set(range(len(course.keys)))
        assert sum(one.everywhere.values()) == one.redis.zcard(one.keys.dead)
        assert one.redis.zcard(one.keys.order) == 0
