"""Existing software on the same queue: its producers, workers, clean-up task and operators' tools, unchanged."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from cbq_exporter.model import Claimed, Delivered, Outcome, PutBack, Recovery, Retry, Settled
from cbq_exporter.store.healing import Healing
from tests.support.queues import FAILURE, DrivenQueue, ExistingWorker, callback
from tests.support.servers import Server

DELIVERED = Delivered()


@pytest.fixture
def q(each_server: Server) -> Iterator[DrivenQueue]:
    with DrivenQueue(each_server) as driven:
        yield driven


@pytest.fixture
def worker(q: DrivenQueue) -> ExistingWorker:
    return ExistingWorker(q.redis)


def test_its_status_tool_reads_what_we_write(q: DrivenQueue, worker: ExistingWorker) -> None:
    for n in range(5):
        worker.queue(callback(n))
    one, two, three = q.claim(3).items
    q.settle(DELIVERED, one)
    q.settle(Retry(60.0, FAILURE), two)
    status = worker.status()
    assert (status["pending"], status["processing"]) == (2, 1)
    assert (status["queued"], status["sent"], status["failed"]) == (5, 1, 1)
    assert abs(status["last_send"] - time.time()) < 5
    assert status["lock"].startswith(b"cbq-exporter_")
    assert worker.redis.lindex(q.keys.processing, 0) == callback(2) == three.payload


def test_only_one_of_us_takes_a_batch(q: DrivenQueue, worker: ExistingWorker) -> None:
    worker.queue(callback(1))
    assert worker.take_lock()
    assert not q.do(q.queue.keep_lock(30.0)).ours
    assert q.try_claim() is None
    worker.release_lock()
    assert len(q.claim().items) == 1
    assert not worker.take_lock()


def test_when_it_deletes_our_lock_we_claim_no_more_but_finish_what_we_hold(
    q: DrivenQueue, worker: ExistingWorker
) -> None:
    for n in range(4):
        worker.queue(callback(n))
    held = q.claim(2).items
    worker.release_lock()
    assert q.try_claim() is None
    assert worker.take_lock()
    assert q.try_claim() is None
    assert worker.take() == [callback(2), callback(3)]
    assert not q.do(q.queue.free_lock())
    assert q.settle(DELIVERED, *held) == [Settled.DONE] * 2
    assert q.processing == [callback(2), callback(3)]
    assert [worker.finish(item) for item in q.processing] == [1, 1]


@pytest.mark.parametrize("tool", ["clean_up", "recover_all"])
def test_what_it_moves_back_while_we_send_is_sent_again_and_none_is_lost(
    q: DrivenQueue, worker: ExistingWorker, tool: str
) -> None:
    for n in range(3):
        worker.queue(callback(n))
    delivered, failed, unsent = q.claim().items
    getattr(worker, tool)()
    assert (len(q.pending), q.processing) == (3, [])
    assert q.settle(DELIVERED, delivered) == [Settled.MISSING]
    assert q.settle(Retry(60.0, FAILURE), failed) == [Settled.MISSING]
    assert q.settle(PutBack(), unsent) == [Settled.MISSING]
    assert Counter(q.pending) == Counter(callback(n) for n in range(3))
    assert q.everywhere == Counter(q.pending)
    assert q.settle(DELIVERED, *q.claim().items) == [Settled.DONE] * 3


def test_it_finishes_a_copy_that_we_had_recovered(q: DrivenQueue, worker: ExistingWorker) -> None:
    worker.queue(callback(1))
    (ours,) = q.claim().items
    q.let_leases_run_out()
    assert q.do(q.expired.recover(3)) == Recovery(returned=1)
    worker.release_lock()
    worker.take_lock()
    (theirs,) = worker.take()
    assert q.settle(DELIVERED, ours) == [Settled.FENCED]
    assert worker.finish(theirs) == 1
    assert q.everywhere == Counter()


@pytest.mark.parametrize("left_by", ["a worker", "a daemon"])
@pytest.mark.parametrize("holder", ["worker", "nobody", "us", "a foreign type"])
def test_what_we_bring_back_while_it_cuts_off_its_batch_is_not_cut_off_with_it(
    q: DrivenQueue, worker: ExistingWorker, holder: str, left_by: str
) -> None:
    left, waiting = [callback(n) for n in range(300)], [callback(n) for n in range(300, 330)]
    healing = Healing(q.connections, q.keys)
    if left_by == "a daemon":
        q.redis.rpush(q.keys.pending, *left)
        assert len(q.claim(300).items) == 300
        q.let_leases_run_out()
        q.do(q.queue.free_lock())
    else:
        q.redis.rpush(q.keys.processing, *left)
    q.redis.rpush(q.keys.pending, *waiting)
    if holder == "worker":
        assert worker.take_lock()
    elif holder == "us":
        q.do(q.queue.keep_lock(30.0))
    elif holder == "a foreign type":
        q.redis.rpush(q.keys.lock, "?")

    batch = q.redis.lrange(q.keys.pending, 0, 9)
    assert q.do(healing.recover_all()).returned == 300
    if holder != "worker":
        assert q.pending == [*left, *waiting]
        return
    q.redis.ltrim(q.keys.pending, len(batch), -1)
    assert q.pending[:20] == waiting[10:]
    assert Counter(q.pending[20:]) == Counter(left)


def test_its_ghosts_in_processing_stay_its_own(q: DrivenQueue, worker: ExistingWorker) -> None:
    # It acknowledges by another writing of the item, which is not found: the item stays for ever.
    worker.queue(callback(1))
    worker.take_lock()
    (item,) = worker.take()
    assert worker.finish(item.replace(b": ", b":")) == 0
    worker.release_lock()
    worker.queue(callback(2))
    (ours,) = q.claim().items
    assert q.do(q.expired.recover(3)) == Recovery()
    assert q.settle(DELIVERED, ours) == [Settled.DONE]
    assert q.processing == [callback(1)]


def test_its_reset_leaves_nothing_of_ours_that_comes_back_to_life(q: DrivenQueue, worker: ExistingWorker) -> None:
    for n in range(8):
        worker.queue(callback(n))
    retried, *held, returned = q.claim(7).items
    q.settle(Retry(3600.0, FAILURE), retried)
    q.settle(PutBack(), returned)
    worker.reset()
    assert q.settle(Retry(0.0, FAILURE), held[0]) == [Settled.MISSING]
    assert q.settle(PutBack(), held[1]) == [Settled.MISSING]
    assert q.do(q.queue.put_back([held[2]])) == 0
    q.let_leases_run_out()
    assert q.do(q.expired.recover(0)) == Recovery(leases_dropped=2)
    q.do(q.sweeper.sweep_kept())
    assert q.everywhere == Counter([callback(0)])  # a retry is whole, and is still owed
    # A new callback with the bytes of an old one is only itself.
    worker.queue(callback(3))
    assert [one.payload for one in q.claim().items] == [callback(3)]
    assert q.processing == [callback(3)]


class SideBySide:
    """A daemon and a worker on one queue, each with its mishaps."""

    def __init__(self, q: DrivenQueue, worker: ExistingWorker, seed: int) -> None:
        self.q = q
        self.worker = worker
        self.roll = random.Random(seed)
        self.ours: list[Claimed] = []
        self.theirs: list[bytes] = []
        self.delivered: Counter[bytes] = Counter()

    def we_send(self) -> None:
        q, roll = self.q, self.roll
        if q.do(q.queue.keep_lock(30.0)).ours:
            self.ours += q.claim(roll.randint(1, 9)).items
        roll.shuffle(self.ours)
        for one in [self.ours.pop() for _ in range(roll.randint(0, len(self.ours)))]:
            outcome: Outcome = roll.choice((DELIVERED, DELIVERED, PutBack(), Retry(0.0, FAILURE)))
            self.delivered[one.payload] += outcome == DELIVERED
            q.settle(outcome, one)
        if roll.random() < 0.3:
            q.do(q.queue.free_lock())

    def they_send(self) -> None:
        if self.worker.take_lock():
            self.theirs += self.worker.take(self.roll.randint(1, 9))
        while self.theirs and self.roll.random() < 0.8:
            item = self.theirs.pop()
            self.delivered[item] += 1
            self.worker.finish(item)
        self.worker.release_lock()  # a plain DEL: perhaps it is ours

    def they_clean_up(self) -> None:
        self.worker.clean_up(self.roll.choice([0.0, 300.0]))

    def they_start_anew(self) -> None:
        self.worker.recover_all()
        self.theirs.clear()

    def we_start_anew(self) -> None:
        self.ours.clear()
        self.q.let_leases_run_out()
        self.q.do(self.q.expired.recover(1000))

    def we_are_paused(self) -> None:
        self.q.let_leases_run_out(*(one.lease for one in self.ours[::2]))
        self.q.do(self.q.expired.recover(1000))

    def anything(self) -> None:
        mishaps = (self.they_clean_up, self.they_start_anew, self.we_start_anew, self.we_are_paused)
        self.roll.choice((*mishaps, *[self.we_send] * 20, *[self.they_send] * 20))()


@pytest.mark.parametrize("seed", range(3))
def test_side_by_side_in_any_order_every_callback_is_delivered(
    q: DrivenQueue, worker: ExistingWorker, seed: int
) -> None:
    both = SideBySide(q, worker, seed)
    items = [callback(n % 150) for n in range(200)]  # some twice
    for item in items:
        worker.queue(item)
        both.anything()
        both.anything()
    both.they_start_anew()
    worker.release_lock()
    q.let_retries_be_due()
    for one in q.claim_all():
        both.delivered[one.payload] += 1
        assert q.settle(DELIVERED, one) == [Settled.DONE]
    q.let_leases_run_out()
    q.do(q.expired.recover(1000))
    assert not Counter(items) - both.delivered
    assert q.everywhere == Counter()
    assert q.redis.zcard(q.keys.leases) == 0
