"""A reset and its undo: everything goes and everything comes back, whatever its size and whatever happens meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.model import Dead, DeadReason, Delivered, Retry, Settled
from cbq_exporter.store.trash import Trash
from tests.support.queues import FAILURE, DrivenQueue, callback
from tests.support.servers import Server

WEEK = 7 * 86_400.0
KEPT = ("fence", "paused", "breakers", "audit", "trash", "trash_notes", "daemons", "lock_seen", "answers")


class Bin:
    """A driven queue with its trash."""

    def __init__(self, driven: DrivenQueue) -> None:
        self.driven = driven
        self.trash = Trash(driven.connections, driven.keys)

    def reset(self, keep: float = WEEK) -> str:
        now_ms = self.driven.do(self.driven.queue.store_now_ms())
        count = self.driven.redis.llen(self.driven.keys.pending)
        trash_id = self.driven.do(self.trash.move(keep, now_ms, {"pending": count}))
        assert trash_id is not None
        return trash_id

    def undo(self, trash_id: str, steps: int = 10**9) -> int:
        """How many were put back in up to ``steps`` scripts."""

        async def work() -> int:
            done = 0
            parts = self.trash.put_back(trash_id)
            for _ in range(steps):
                try:
                    done += await anext(parts)
                except StopAsyncIteration:
                    break
            await parts.aclose()
            return done

        return self.driven.do(work())

    def in_trash(self, trash_id: str) -> Counter[bytes]:
        redis, there = self.driven.redis, self.driven.keys.trash_of(trash_id)
        found = [*redis.lrange(there.pending, 0, -1), *redis.lrange(there.processing, 0, -1)]
        for key in (there.retry, there.dead):
            found += [redis.hget(there.payloads, name) for name in redis.zrange(key, 0, -1)]
        return Counter(found)

    def left_over(self) -> set[str]:
        """Keys of resets."""
        return {key.decode() for key in self.driven.redis.keys(f"{self.driven.keys.trash}:*")}


@pytest.fixture
def box(each_server: Server) -> Iterator[Bin]:
    with DrivenQueue(each_server) as driven:
        yield Bin(driven)


def fill(driven: DrivenQueue, first: int = 0, each: int = 3) -> list[bytes]:
    """Some in every state, those that were claimed with memories; returns all that are not delivered."""
    numbers = iter(range(first, first + 10**6))
    everything = []

    def more(count: int) -> list[bytes]:
        payloads = [callback(next(numbers)) for _ in range(count)]
        driven.do(driven.queue.enqueue(payloads))
        everything.extend(payloads)
        return payloads

    more(each)
    driven.settle(Retry(3600, FAILURE), *driven.claim(each).items)
    more(each)
    driven.settle(Dead(DeadReason.REJECTED, FAILURE), *driven.claim(each).items)
    more(each)
    driven.do(driven.queue.put_back(driven.claim(each).items))
    driven.claim(1)
    more(each)
    return everything


def values(driven: DrivenQueue) -> dict[bytes, Any]:
    """All of the database by meaning: how a hash is laid out is the server's business."""
    redis = driven.redis
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"hash": redis.hgetall,
        b"string": redis.get,
    }
    return {key: read[redis.type(key)](key) for key in redis.keys("*")}


def test_everything_goes_and_comes_back_as_it_was(box: Bin) -> None:
    driven = box.driven
    everything = fill(driven)
    before = values(driven)
    trash_id = box.reset()
    assert {key.decode() for key in driven.contents()} <= {
        getattr(driven.keys, name) for name in KEPT
    } | box.left_over()
    assert box.in_trash(trash_id) == Counter(everything)
    ttl = driven.redis.pttl(driven.keys.trash_of(trash_id).pending) / 1000
    assert WEEK <= ttl <= WEEK + 700
    assert driven.redis.get(driven.keys.fence) is not None  # ids are made from it: they must stay unique
    assert box.undo(trash_id) == len(everything)
    after = values(driven)
    gone = {driven.keys.lock.encode(), driven.keys.last_send.encode()}
    assert after == {key: value for key, value in before.items() if key not in gone}
    assert driven.redis.ttl(driven.keys.pending) == -1


def test_it_comes_back_in_front_of_what_arrived_since(box: Bin) -> None:
    driven = box.driven
    fill(driven)
    old = driven.pending
    trash_id = box.reset()
    new = [callback(900 + n) for n in range(3)]
    driven.do(driven.queue.enqueue(new))
    box.undo(trash_id)
    assert driven.pending == old + new
    assert int(driven.redis.get(driven.keys.stats_queued)) == 12 + 3
    assert box.left_over() == set()
    assert driven.do(box.trash.all()) == []


def test_two_resets_are_both_kept_and_come_back_one_by_one(box: Bin) -> None:
    driven = box.driven
    first = [callback(n) for n in range(3)]
    driven.do(driven.queue.enqueue(first))
    older = box.reset()
    second = [callback(10 + n) for n in range(2)]
    driven.do(driven.queue.enqueue(second))
    newer = box.reset()
    assert [(one.id, one.callbacks) for one in driven.do(box.trash.all())] == [(older, 3), (newer, 2)]
    box.undo(newer)
    box.undo(older)
    assert driven.pending == first + second


def test_a_lease_from_before_the_reset_settles_after_the_undo_and_not_between(box: Bin) -> None:
    driven = box.driven
    driven.do(driven.queue.enqueue([callback(1)]))
    claimed = driven.claim().items
    trash_id = box.reset()
    assert driven.settle(Delivered(), *claimed) == [Settled.FENCED]
    box.undo(trash_id)
    assert driven.settle(Delivered(), *claimed) == [Settled.DONE]
    assert driven.everywhere == Counter()


@pytest.mark.parametrize("arriving", [0, 30, 2000])
def test_an_undo_that_is_broken_off_anywhere_loses_and_doubles_nothing(box: Bin, arriving: int) -> None:
    """Others work on the queue between its steps: they add, they send. The trash does not expire meanwhile."""
    driven = box.driven
    everything = Counter(fill(driven, each=700))
    trash_id = box.reset()
    new = [callback(500_000 + n) for n in range(arriving)]
    fill_again = fill(driven, first=800_000, each=20)
    driven.do(driven.queue.enqueue(new))
    everything += Counter(new) + Counter(fill_again)
    steps = 0
    while driven.redis.zscore(driven.keys.trash, trash_id) is not None:
        box.undo(trash_id, steps=1)
        steps += 1
        assert driven.everywhere + box.in_trash(trash_id) == everything, f"after step {steps}"
        if driven.redis.zscore(driven.keys.trash, trash_id) is not None:
            assert driven.redis.ttl(driven.keys.trash_of(trash_id).pending) in (-1, -2)
            extra = callback(600_000 + steps)
            driven.do(driven.queue.enqueue([extra]))
            everything[extra] += 1
            sent = driven.claim(2).items
            driven.settle(Delivered(), *sent)
            everything -= Counter(one.payload for one in sent)
        assert steps < 100
    assert steps > 1
    assert box.left_over() == set()
    for key in (driven.keys.retry, driven.keys.dead):
        assert None not in driven.kept(key)


def test_two_operators_who_undo_at_once_put_everything_back_once(box: Bin) -> None:
    driven = box.driven
    everything = fill(driven, each=1200)
    order = driven.pending
    trash_id = box.reset()
    fill_again = fill(driven, first=800_000, each=600)
    done = 0
    for _ in range(100):
        if driven.redis.zscore(driven.keys.trash, trash_id) is None:
            break
        done += box.undo(trash_id, steps=1)
    assert done == len(everything)
    assert driven.everywhere == Counter(everything) + Counter(fill_again)
    assert driven.pending[: len(order)] == order
    with pytest.raises(PreconditionChanged, match="is not in the trash any more"):
        box.undo(trash_id)


def test_what_has_expired_is_not_put_back_but_deleted(box: Bin) -> None:
    driven = box.driven
    driven.do(driven.queue.enqueue([callback(1)]))
    trash_id = box.reset(keep=0.0)
    assert driven.do(box.trash.all()) == []
    with pytest.raises(PreconditionChanged):
        box.undo(trash_id)
    assert box.left_over()
    assert driven.do(box.trash.expired()) == [trash_id]
    assert driven.do(box.trash.drop_expired(trash_id))
    assert not driven.do(box.trash.drop_expired(trash_id))
    assert box.left_over() == set()
    driven.do(driven.queue.enqueue([callback(2)]))
    kept = box.reset()
    assert driven.do(box.trash.expired()) == []
    assert not driven.do(box.trash.drop_expired(kept))


def test_with_a_full_memory_a_reset_and_its_undo_still_work(box: Bin) -> None:
    driven = box.driven
    everything = Counter(fill(driven))
    driven.redis.config_set("maxmemory", 1)
    try:
        trash_id = box.reset()
        box.undo(trash_id)
    finally:
        driven.redis.config_set("maxmemory", 0)
    assert driven.everywhere == everything


def test_large_payloads_come_back_in_bounded_steps(box: Bin) -> None:
    driven = box.driven
    old = [callback(n, size=1 << 20) for n in range(12)]
    new = [callback(100 + n, size=1 << 20) for n in range(12)]
    driven.do(driven.queue.enqueue(old))
    trash_id = box.reset()
    driven.do(driven.queue.enqueue(new))
    assert 0 < box.undo(trash_id, steps=1) < 8  # 4 MiB, and the one that exceeds it
    assert Counter(driven.pending) + box.in_trash(trash_id) == Counter(old + new)
    box.undo(trash_id)
    assert driven.pending == old + new


def test_a_million_callbacks_go_and_come_back_at_once(server: Server) -> None:
    with DrivenQueue(server) as driven:
        box = Bin(driven)
        for _ in range(100):
            driven.redis.rpush(driven.keys.pending, *[b"x" * 20] * 10_000)
        began = time.monotonic()
        trash_id = box.reset()
        moved = time.monotonic() - began
        driven.do(driven.queue.enqueue([callback(1)]))
        began = time.monotonic()
        assert box.undo(trash_id) == 1_000_000
        back = time.monotonic() - began
        print(f"a million callbacks: reset {1000 * moved:.1f} ms, undo {1000 * back:.1f} ms")
        assert moved < 0.05
        assert back < 0.05
        assert driven.redis.llen(driven.keys.pending) == 1_000_001
