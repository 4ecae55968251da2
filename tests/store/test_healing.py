"""What is seen of what others left behind, and how it is taken back: one promise a test, on a real Valkey and Redis."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cbq_exporter.errors import StoreMisuse
from cbq_exporter.model import Delivered, LockLook, ProcessingLook, Recovery
from cbq_exporter.store import sightings
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.healing import Healing
from tests.support.queues import DrivenQueue, callback
from tests.support.servers import Server

FAMILY = "cbq-exporter_1764000000_host_ab"
THEIRS = "worker_1763999999_0001"
AGE = 300.0  # seconds: stuck_after
SECOND = 1000


class FakeClock:
    """Elapsed time that stands still until it is moved."""

    def __init__(self) -> None:
        self.elapsed = 1000.0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return self.elapsed


class Driven(DrivenQueue):
    """A queue with its healing. ``sight`` and ``let_pass`` stand for looks and for the time between them."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.healing = Healing(self.connections, self.keys, FAMILY)

    def look(self) -> ProcessingLook:
        return self.do(self.healing.sightings.look(AGE, every=15.0))

    def recover(self, max_recoveries: int = 3) -> Recovery:
        return self.do(self.healing.recover_stuck(AGE, max_recoveries))

    def look_at_lock(self) -> LockLook:
        look = self.do(self.healing.lock.look())
        assert look is not None
        return look

    @property
    def sightings(self) -> dict[bytes, float]:
        return dict(self.redis.zrange(self.keys.sightings, 0, -1, withscores=True))

    def let_pass(self, seconds: float, *names: bytes) -> None:
        """Time passes for these sightings, or for all."""
        for name in names or tuple(self.sightings):
            self.redis.zincrby(self.keys.sightings, -seconds * SECOND, name)

    def others_claim(self, *payloads: bytes) -> None:
        self.redis.rpush(self.keys.processing, *payloads)


@pytest.fixture
def q(each_server: Server) -> Iterator[Driven]:
    with Driven(each_server) as driven:
        yield driven


# --- the lock ------------------------------------------------------------------------------------


def test_the_first_sight_of_a_lock_is_kept_by_its_value(q: Driven, each_server: Server) -> None:
    assert q.do(q.healing.lock.look()) is None
    q.redis.set(q.keys.lock, THEIRS)
    first = q.look_at_lock()
    assert (first.value, first.ttl, first.beat_at) == (THEIRS.encode(), None, None)
    assert first.first_seen_at == first.untouched_since == first.now
    with Driven(each_server) as restarted:
        again = restarted.look_at_lock()
    assert (again.first_seen_at, again.untouched_since) == (first.first_seen_at, first.untouched_since)
    assert 59_000 < q.redis.pttl(q.keys.lock_seen) <= 60_000, "it expires by itself where nobody looks"
    q.redis.set(q.keys.lock, THEIRS + "x")
    other = q.look_at_lock()
    assert other.first_seen_at == other.now
    q.redis.delete(q.keys.lock)
    assert q.do(q.healing.lock.look()) is None
    assert not q.redis.exists(q.keys.lock_seen)


def test_a_lock_that_is_prolonged_or_gets_an_expiry_is_touched(q: Driven) -> None:
    def pretend_seen_long_ago() -> None:
        q.redis.hset(q.keys.lock_seen, mapping={"first_ms": 1000, "untouched_ms": 1000})

    q.redis.set(q.keys.lock, THEIRS, ex=3600)
    q.look_at_lock()
    pretend_seen_long_ago()
    assert q.look_at_lock().untouched_since == 1
    q.redis.expire(q.keys.lock, 3620)
    prolonged = q.look_at_lock()
    assert (prolonged.first_seen_at, prolonged.untouched_since) == (1, prolonged.now)
    pretend_seen_long_ago()
    q.redis.persist(q.keys.lock)
    endless = q.look_at_lock()
    assert (endless.ttl, endless.untouched_since) == (None, endless.now)
    pretend_seen_long_ago()
    q.redis.expire(q.keys.lock, 30)
    assert q.look_at_lock().untouched_since > 1


def test_what_was_seen_of_a_lock_before_the_stores_clock_was_set_back_was_not_seen(q: Driven) -> None:
    q.redis.set(q.keys.lock, THEIRS, ex=3600)
    later = int(q.look_at_lock().now + 300) * 1000
    q.redis.hset(q.keys.lock_seen, mapping={"first_ms": later, "untouched_ms": later})
    look = q.look_at_lock()
    assert look.first_seen_at == look.untouched_since == look.now


def test_only_the_lock_that_was_looked_at_is_released(q: Driven) -> None:
    def after(*command: Any) -> bool:
        q.redis.set(q.keys.lock, FAMILY, ex=30)
        look = q.look_at_lock()
        q.redis.execute_command(*command)
        return q.do(q.healing.lock.release(look))

    assert after("PING")
    assert not q.redis.exists(q.keys.lock)
    assert not after("SET", q.keys.lock, THEIRS), "somebody else has it now"
    assert q.redis.get(q.keys.lock) == THEIRS.encode()
    assert not after("EXPIRE", q.keys.lock, 31), "it was prolonged"
    assert not after("PERSIST", q.keys.lock)
    assert not after("ZADD", q.keys.daemons, 5, FAMILY), "its holder lives"
    assert not after("DEL", q.keys.lock)
    q.redis.set(q.keys.lock, THEIRS)
    look = q.look_at_lock()
    q.redis.expire(q.keys.lock, 1000)
    assert not q.do(q.healing.lock.release(look)), "it can free itself now"
    assert q.do(q.healing.lock.release(look, even_if_touched=True))


def test_a_heartbeat_is_seen_with_the_lock_of_its_daemon_and_old_ones_go(q: Driven) -> None:
    q.redis.zadd(q.keys.daemons, {"cbq-exporter_1_long_gone": 1000})
    q.do(q.healing.lock.beat())
    q.redis.set(q.keys.lock, FAMILY, ex=30)
    look = q.look_at_lock()
    assert look.beat_at is not None
    assert 0 <= look.now - look.beat_at < 5
    assert q.redis.zrange(q.keys.daemons, 0, -1) == [FAMILY.encode()]


# --- looking at processing -----------------------------------------------------------------------


def test_what_others_claimed_is_stuck_only_when_it_was_seen_long_ago(q: Driven, each_server: Server) -> None:
    q.others_claim(callback(1), callback(2))
    look = q.look()
    assert (look.untracked, look.new, look.stuck, look.gone) == (2, 2, 0, 0)
    assert q.recover() == Recovery(), "however long ago it was queued"
    q.let_pass(AGE - 5)
    with Driven(each_server) as restarted:
        assert (restarted.look().new, restarted.look().stuck) == (0, 0)
        assert restarted.recover() == Recovery()
        restarted.let_pass(6)
        assert restarted.look().stuck == 2
        assert restarted.recover() == Recovery(returned=2)
    assert (q.pending, q.processing) == ([callback(1), callback(2)], [])
    look = q.look()
    assert look == ProcessingLook(at=look.at), "all of it is gone"
    assert not q.sightings


def test_what_two_see_at_once_keeps_the_first_time(q: Driven) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(60)
    before = q.sightings
    assert q.do(q.connections.run_named("sight", [q.keys.sightings], [60_000, 0, *before])) == 0
    assert q.sightings == before


def test_the_sightings_go_by_themselves_where_nobody_looks(q: Driven) -> None:
    q.others_claim(callback(1))
    q.look()
    assert q.redis.pttl(q.keys.sightings) == pytest.approx((AGE + 45) * SECOND, abs=2 * SECOND)


def test_our_own_claims_are_not_others(q: Driven) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    (ours,) = q.claim(1).items
    q.others_claim(callback(2))
    q.redis.lpop(q.keys.pending)
    look = q.look()
    assert (look.untracked, look.leases_over) == (1, 0)
    q.let_leases_run_out()
    assert q.look().leases_over == 1
    assert q.do(q.expired.recover(3)).returned == 1
    assert q.pending == [ours.payload]


def test_of_equal_callbacks_the_one_that_is_left_counts_as_the_youngest(q: Driven) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(AGE + 5)
    q.others_claim(callback(1))
    look = q.look()
    assert (look.new, look.stuck) == (1, 1)
    q.redis.lrem(q.keys.processing, 1, callback(1))  # one of them is done: nobody knows which
    look = q.look()
    assert (look.gone, look.untracked, look.stuck) == (1, 1, 0)
    assert q.recover() == Recovery()
    for _ in range(3):
        q.others_claim(callback(1))
        assert q.look().new == 1
    assert len(q.sightings) == 4


def test_a_look_holds_no_numbers_of_callbacks_that_need_no_new_name(q: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set for each of 100,000 took 25 MiB."""
    noted: list[object] = []
    names = sightings._names

    def noting(copies: Counter[bytes], used: dict[bytes, set[int]]) -> Iterator[str]:
        noted.append(dict(used))
        return names(copies, used)

    monkeypatch.setattr(sightings, "_names", noting)
    q.others_claim(*(callback(n) for n in range(50)))
    assert (q.look().new, q.look().new) == (50, 0)
    q.others_claim(callback(7))
    assert q.look().new == 1
    assert noted[:2] == [{}, {}]
    assert noted[2] == {hashlib.sha1(callback(7)).digest(): {0}}


def test_a_leap_of_the_stores_clock_makes_nothing_old(q: Driven) -> None:
    clock = FakeClock()
    healing = Healing(q.connections, q.keys, FAMILY, clock=clock)
    q.others_claim(callback(1))
    q.redis.set(q.keys.lock, THEIRS)

    def looks() -> tuple[ProcessingLook, LockLook]:
        lock = q.do(healing.lock.look())
        assert lock is not None
        return q.do(healing.sightings.look(AGE)), lock

    looks()
    q.let_pass(AGE + 5)
    q.redis.hset(q.keys.lock_seen, mapping={"first_ms": 1000, "untouched_ms": 1000})
    look, lock = looks()
    assert (look.stuck, look.begun_anew, lock.untouched_since) == (1, False, 1)
    clock.elapsed -= 60  # the store's went a minute ahead of ours
    look, lock = looks()
    assert (look.stuck, look.begun_anew, lock.untouched_since) == (0, True, lock.now)
    assert q.do(healing.recover_stuck(AGE, 3)) == Recovery()
    look, lock = looks()
    assert (look.begun_anew, look.new, lock.untouched_since < lock.now + 1) == (False, 0, True)


def test_a_bounded_part_is_looked_at_the_oldest_first(q: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sightings, "MOST_SIGHTINGS", 50)
    q.others_claim(*(callback(n) for n in range(80)))
    assert q.look().untracked == 50
    q.let_pass(AGE + 5)
    assert q.recover() == Recovery(returned=50)
    assert q.pending == [callback(n) for n in range(50)]
    assert q.look().new == 30


# --- taking back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3000, 300_000])
def test_all_go_in_front_of_pending_in_their_order_whatever_their_size(q: Driven, size: int) -> None:
    count = 60 if size > 10_000 else 1500
    stuck = [callback(n, size) for n in range(count)]
    fresh = [callback(n, size) for n in range(count, count + 40)]
    q.others_claim(*stuck)
    q.look()
    q.let_pass(AGE + 5)
    q.others_claim(*fresh)
    q.redis.rpush(q.keys.pending, callback(9_999))
    look = q.look()
    assert (look.stuck, look.new) == (len(stuck), len(fresh))
    seen: list[int] = []
    recovery = q.do(q.healing.recover_stuck(AGE, 3, progress=seen.append))
    assert recovery == Recovery(returned=len(stuck))
    assert q.pending == [*stuck, callback(9_999)]
    assert q.processing == fresh
    assert seen == sorted(seen)
    assert seen[-1] == len(stuck)
    assert len(q.sightings) == len(fresh)


def test_what_stands_between_others_is_found_too(q: Driven) -> None:
    every_third = [callback(n) for n in range(0, 900, 3)]
    q.others_claim(*every_third)
    q.look()
    q.let_pass(AGE + 5)
    q.redis.delete(q.keys.processing)
    q.others_claim(*(callback(n) for n in range(900)))
    assert q.recover().returned == 300
    assert q.pending == every_third
    assert q.processing == [callback(n) for n in range(900) if n % 3]


def test_recovered_too_often_is_a_dead_letter_with_its_reason(q: Driven) -> None:
    poison = callback(1)
    for recoveries in (1, 2):
        q.others_claim(poison)
        assert q.look().ineffective == (recoveries > 2)
        q.let_pass(AGE + 5)
        assert q.recover(max_recoveries=2) == Recovery(returned=1)
        assert q.redis.lpop(q.keys.pending) == poison
    q.others_claim(poison, callback(2))
    assert q.look().ineffective == 1
    q.let_pass(AGE + 5)
    assert q.recover(max_recoveries=2) == Recovery(returned=1, dead=1)
    (letter,) = q.do(q.queue.dead.read(q.do(q.queue.dead.ids(offset=0, count=9)), with_payload=True))
    assert (letter.payload, letter.reason, letter.url) == (poison, "poison", "https://client.example/hook")
    assert "3 times" in letter.failure.detail
    assert q.pending == [callback(2)]
    assert q.look().ineffective == 0


def test_our_own_claim_of_it_goes_on_counting(q: Driven) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(AGE + 5)
    q.recover()
    (claimed,) = q.claim().items
    assert (claimed.attempts, claimed.recoveries) == (0, 1)


def test_what_we_claimed_between_the_look_and_the_script_is_left_alone(
    q: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    q.others_claim(callback(1), callback(2))
    q.look()
    q.let_pass(AGE + 5)
    move = q.healing._move

    async def claim_first(*arguments: Any) -> list[int]:
        """The second goes back to pending, and comes to the same place under a lease of ours."""
        q.redis.lmove(q.keys.processing, q.keys.pending, "RIGHT", "RIGHT")
        await q.queue.keep_lock(30.0)
        assert await q.queue.claim(count=5, max_bytes=1 << 30, lease=60.0, lock_ttl=30.0)
        return await move(*arguments)

    monkeypatch.setattr(q.healing, "_move", claim_first)
    assert q.recover() == Recovery(returned=1)
    assert (q.pending, q.processing) == ([callback(1)], [callback(2)])


def test_what_was_seen_anew_between_the_look_and_the_script_is_young(
    q: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(AGE + 5)
    move = q.healing._move

    async def see_anew_first(*arguments: Any) -> list[int]:
        """Another daemon saw it go, and come again."""
        q.let_pass(-AGE)
        return await move(*arguments)

    monkeypatch.setattr(q.healing, "_move", see_anew_first)
    assert q.recover() == Recovery()
    assert q.processing == [callback(1)]


def test_what_has_moved_between_the_look_and_the_script_waits_for_the_next(
    q: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    q.others_claim(callback(1), callback(2), callback(3))
    q.look()
    q.let_pass(AGE + 5)
    move = q.healing._move

    async def acknowledge_first(*arguments: Any) -> list[int]:
        q.redis.lrem(q.keys.processing, 1, callback(1))
        return await move(*arguments)

    monkeypatch.setattr(q.healing, "_move", acknowledge_first)
    assert q.recover() == Recovery()
    monkeypatch.undo()
    assert q.recover() == Recovery(returned=2)
    assert (q.pending, q.processing) == ([callback(2), callback(3)], [])


def test_two_at_once_recover_everything_once(q: Driven, each_server: Server) -> None:
    payloads = [callback(n % 700) for n in range(1000)]
    q.others_claim(*payloads)
    q.look()
    q.let_pass(AGE + 5)

    async def both() -> tuple[Recovery, Recovery]:
        connections = Connections(each_server.url, shown_as="test")
        other = Healing(connections, q.keys)
        try:
            return await asyncio.gather(q.healing.recover_stuck(AGE, 3), other.recover_stuck(AGE, 3))
        finally:
            await connections.close()

    first, second = q.do(both())
    assert first.returned + second.returned == len(q.pending)
    q.recover()
    assert Counter(q.pending) == Counter(payloads)
    assert not q.processing


def test_a_person_takes_back_all_that_no_live_lease_holds_at_once(q: Driven) -> None:
    q.redis.rpush(q.keys.pending, callback(1), callback(2))
    dead, live = q.claim(2).items
    q.let_leases_run_out(dead.lease)
    q.others_claim(*(callback(n) for n in range(3, 8)), live.payload)
    assert q.do(q.healing.count_recoverable()) == 7
    assert q.do(q.healing.recover_all()).returned == 6
    # One of two equal callbacks is ours: the other waits.
    assert q.processing == [live.payload, live.payload]
    assert q.pending == [*(callback(n) for n in range(3, 8)), callback(1)]
    assert q.settle(Delivered(), live)
    assert q.do(q.healing.recover_all()).returned == 1
    assert not q.processing


def test_a_persons_recovery_by_age_uses_what_was_seen_and_kills_nothing(q: Driven) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(120)
    q.others_claim(callback(2))
    q.look()
    for _ in range(3):
        assert q.do(q.healing.count_recoverable(older_than=60.0)) == 1
        assert q.do(q.healing.recover_all(older_than=60.0)) == Recovery(returned=1)
        assert q.pending == [callback(1)]
        q.redis.lmove(q.keys.pending, q.keys.processing, "LEFT", "LEFT")
        q.look()
        # Of the first only. (The other may have been seen within the same millisecond.)
        first = hashlib.sha1(callback(1)).hexdigest().encode()
        q.let_pass(120, *(name for name in q.sightings if name.startswith(first)))
    assert not q.redis.exists(q.keys.dead)


def test_payloads_are_bytes_and_never_change(q: Driven) -> None:
    payloads = [b'{"n": 1.10}', b"\xff\x00\r\n", b"", b"123", b"-0", callback(1, 3_000_000), b"123"]
    q.others_claim(*payloads)
    assert q.do(q.healing.recover_all()).returned == len(payloads)
    assert q.pending == payloads


@pytest.mark.parametrize("key", ["sightings", "leases", "pending", "returned", "processing", "dead", "fence"])
def test_a_foreign_type_at_a_key_stops_it_before_anything_is_moved(q: Driven, key: str) -> None:
    q.others_claim(callback(1))
    q.look()
    q.let_pass(AGE + 5)
    name = getattr(q.keys, key)
    q.redis.delete(name)
    q.redis.xadd(name, {"not": "ours"})
    before = q.contents()
    with pytest.raises(StoreMisuse, match="another type"):
        q.recover()
    assert q.contents() == before


def test_a_full_memory_does_not_stop_it(q: Driven) -> None:
    q.others_claim(*(callback(n) for n in range(10)))
    q.look()
    q.let_pass(AGE + 5)
    q.others_claim(callback(10))
    q.redis.set(q.keys.lock, THEIRS)
    q.redis.config_set("maxmemory", 1)
    try:
        assert q.look().new == 1
        assert q.recover() == Recovery(returned=10)
        q.do(q.healing.lock.beat())
        assert q.do(q.healing.lock.release(q.look_at_lock()))
    finally:
        q.redis.config_set("maxmemory", 0)
