"""Operations: what is planned is what is done, or nothing is; and the audit has all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbq_exporter.config import DestinationConfig
from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreMisuse
from cbq_exporter.model import Actor, Mode, State, Trigger
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.operations import (
    Operation,
    Pause,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    RetryDead,
    RetryNow,
    Undo,
    Unlock,
)
from tests.services.operating import ALICE, QUEUE, Operating
from tests.support.queues import callback
from tests.support.servers import Server

STALE = "worker_1764000000_4711"


@pytest.fixture
def desk(server: Server) -> Iterator[Operating]:
    with Operating(server) as operating:
        yield operating


def stick(desk: Operating, count: int, first: int = 0) -> list[bytes]:
    """What an existing worker that died left in processing."""
    payloads = [callback(first + number) for number in range(count)]
    desk.redis.rpush(desk.keys.processing, *payloads)
    return payloads


# --- unlock --------------------------------------------------------------------------------------


def test_unlock_frees_a_lock_that_cannot_free_itself(desk: Operating) -> None:
    desk.redis.set(desk.keys.lock, STALE)
    plan = desk.plan(Unlock(QUEUE))
    assert plan.summary[0].startswith(f"the send lock is held by {STALE}, no expiry")
    assert (plan.refusal, plan.nothing_to_do, plan.counts) == (None, False, {"locks": 1})
    assert desk.execute(plan).counts == {"locks": 1}
    assert not desk.redis.exists(desk.keys.lock)
    started, done = desk.entries
    assert started.before["lock"] == done.before["lock"] == STALE
    assert desk.story == [("unlock", "started"), ("unlock", "done")]


def test_unlock_refuses_a_healthy_lock_without_force(desk: Operating) -> None:
    desk.redis.set(desk.keys.lock, STALE, ex=30)
    plan = desk.plan(Unlock(QUEUE))
    assert plan.refusal is not None
    assert STALE in plan.refusal
    with pytest.raises(RefusedError) as refused:
        desk.execute(plan)
    assert (str(refused.value), refused.value.unless) == (plan.refusal, "force")
    assert desk.redis.get(desk.keys.lock) == STALE.encode()
    assert desk.story == [("unlock", "refused")]
    desk.carry_out(Unlock(QUEUE, force=True))
    assert not desk.redis.exists(desk.keys.lock)


@pytest.mark.parametrize("force", [False, True])
def test_unlock_leaves_a_lock_that_changed_hands(desk: Operating, force: bool) -> None:
    desk.redis.set(desk.keys.lock, STALE)
    plan = desk.plan(Unlock(QUEUE, force))
    desk.redis.set(desk.keys.lock, "worker_2", ex=30)
    with pytest.raises(PreconditionChanged):
        desk.execute(plan)
    assert desk.redis.get(desk.keys.lock) == b"worker_2"
    assert desk.story == [("unlock", "started"), ("unlock", "changed")]


def test_unlock_leaves_a_lock_that_its_holder_prolonged(desk: Operating) -> None:
    desk.redis.set(desk.keys.lock, STALE)
    plan = desk.plan(Unlock(QUEUE))
    desk.redis.expire(desk.keys.lock, 30)
    with pytest.raises(PreconditionChanged):
        desk.execute(plan)
    assert desk.redis.exists(desk.keys.lock)


# --- recover -------------------------------------------------------------------------------------


def test_recover_puts_back_all_that_nobody_holds(desk: Operating) -> None:
    stuck = stick(desk, 3)
    desk.redis.rpush(desk.keys.pending, callback(9))
    plan = desk.plan(Recover(QUEUE))
    assert plan.counts == {"callbacks": 3}
    assert desk.execute(plan).counts["callbacks"] == 3
    assert desk.redis.lrange(desk.keys.pending, 0, -1) == [*stuck, callback(9)]
    assert desk.entries[-1].after["callbacks"] == 3


def test_recover_older_than_leaves_what_was_never_seen_before(desk: Operating) -> None:
    stick(desk, 3)
    assert desk.plan(Recover(QUEUE, older_than=60.0)).nothing_to_do
    desk.do(desk.healing.sightings.look(300.0))
    for name in desk.redis.zrange(desk.keys.sightings, 0, 1):
        desk.redis.zincrby(desk.keys.sightings, -120_000, name)
    assert desk.plan(Recover(QUEUE, only_known_stuck=True)).nothing_to_do  # stuck_after is 5m
    assert desk.carry_out(Recover(QUEUE, older_than=60.0)).counts["callbacks"] == 2
    for name in desk.redis.zrange(desk.keys.sightings, 0, -1):
        desk.redis.zincrby(desk.keys.sightings, -400_000, name)
    assert desk.carry_out(Recover(QUEUE, only_known_stuck=True)).counts["callbacks"] == 1


@pytest.mark.parametrize("operation", [Recover(QUEUE), Reset(QUEUE)])
def test_much_more_than_was_agreed_to_is_left_alone(desk: Operating, operation: Operation) -> None:
    stick(desk, 50)
    plan = desk.plan(operation)
    stick(desk, 101, first=1000)
    with pytest.raises(PreconditionChanged, match=r"50 callbacks .* were planned, now it is 151"):
        desk.execute(plan)
    assert desk.redis.llen(desk.keys.processing) == 151
    desk.redis.lpop(desk.keys.processing)
    desk.execute(plan)
    assert desk.redis.llen(desk.keys.processing) == 0


# --- reset and undo ------------------------------------------------------------------------------


def test_reset_says_how_to_undo_it_and_undo_does(desk: Operating) -> None:
    stuck = stick(desk, 2)
    desk.redis.set(desk.keys.lock, STALE)
    plan = desk.plan(Reset(QUEUE))
    assert plan.summary[0] == "callbacks holds 2 processing"
    assert "which frees it" in plan.summary[-2]
    trash_id = desk.execute(plan).undo
    assert trash_id is not None
    assert desk.redis.exists(desk.keys.processing, desk.keys.lock) == 0
    assert desk.entries[-1].after["undo"] == trash_id
    assert desk.carry_out(Undo(QUEUE, trash_id)).counts == {"callbacks": 2}
    assert desk.redis.lrange(desk.keys.processing, 0, -1) == stuck
    assert not desk.redis.exists(desk.keys.lock)  # its holder is long gone
    assert desk.plan(Undo(QUEUE)).nothing_to_do
    assert desk.plan(Undo(QUEUE, trash_id)).refusal is not None


def test_reset_does_not_pull_a_queue_from_under_a_foreign_worker(desk: Operating) -> None:
    stick(desk, 1)
    desk.redis.set(desk.keys.lock, STALE, ex=30)
    with pytest.raises(RefusedError) as refused:
        desk.carry_out(Reset(QUEUE))
    assert refused.value.unless == "force"
    assert desk.redis.llen(desk.keys.processing) == 1
    plan = desk.plan(Reset(QUEUE, force=True))
    assert desk.execute(plan).undo is not None


def test_reset_goes_beside_a_daemon_whose_claims_are_fenced(desk: Operating) -> None:
    stick(desk, 1)
    desk.do(desk.healing.lock.beat())
    desk.do(desk.queue.keep_lock(30))
    assert desk.carry_out(Reset(QUEUE)).undo is not None


def test_reset_sees_a_worker_that_came_after_the_plan(desk: Operating) -> None:
    stick(desk, 1)
    plan = desk.plan(Reset(QUEUE))
    desk.redis.set(desk.keys.lock, "worker_2", ex=30)
    with pytest.raises(PreconditionChanged):
        desk.execute(plan)
    assert desk.redis.llen(desk.keys.processing) == 1


# --- pauses --------------------------------------------------------------------------------------


def test_pause_and_resume(desk: Operating) -> None:
    for destination in (None, "slow.example"):
        assert desk.plan(Resume(QUEUE, destination)).nothing_to_do
        desk.carry_out(Pause(QUEUE, destination), reason="incident 7")
        again = desk.plan(Pause(QUEUE, destination))
        assert again.nothing_to_do
        assert "by cli:alice@host: incident 7" in again.summary[1]
    resume = desk.plan(Resume(QUEUE))
    desk.execute(resume)
    with pytest.raises(PreconditionChanged):
        desk.execute(resume)
    assert "paused are: slow.example" in desk.plan(Resume(QUEUE)).summary[1]


def test_a_destination_is_paused_by_the_name_that_the_configuration_gives_it(server: Server) -> None:
    destinations = (
        DestinationConfig(name="v2", match="https://b.example/v2/*"),
        DestinationConfig(name="partner", match="*.example"),
        DestinationConfig(name="legacy", match="old.test", paused=True),
    )
    with Operating(server, destinations=destinations) as desk:
        refused = desk.plan(Pause(QUEUE, "a.example"))
        with pytest.raises(RefusedError, match=r"what goes to a\.example is called partner: name that"):
            desk.execute(refused)
        # What goes to b.example is called v2 or partner: whoever names the host may mean either.
        for name in ("partner", "v2", "b.example", "elsewhere.test"):
            assert desk.carry_out(Pause(QUEUE, name)).counts == {"pauses": 1}
        assert (
            "not paused but by the configuration, which a reload can end"
            in desk.plan(Resume(QUEUE, "legacy")).summary[1]
        )
        desk.carry_out(Pause(QUEUE, "legacy"))
        assert "it stays paused by the configuration" in desk.plan(Resume(QUEUE, "legacy")).summary[1]
        assert desk.plan(Resume(QUEUE, "partner")).summary[1].endswith("goes out within seconds")


def test_pauses_are_bounded(desk: Operating) -> None:
    desk.redis.hset(desk.keys.paused, mapping={f"host{n}": "not even JSON" for n in range(1000)})
    with pytest.raises(CbqError, match="1000 destinations are paused"):
        desk.carry_out(Pause(QUEUE, "one.more"))
    assert desk.plan(Pause(QUEUE, "host1")).nothing_to_do


# --- all of them ---------------------------------------------------------------------------------

EVERY: list[Operation] = [
    Unlock(QUEUE),
    Recover(QUEUE),
    Recover(QUEUE, older_than=0.0),
    Recover(QUEUE, only_known_stuck=True),
    Reset(QUEUE),
    Undo(QUEUE),
    Pause(QUEUE),
    Pause(QUEUE, "a.example"),
    Resume(QUEUE),
    Resume(QUEUE, "b.example"),
    RetryDead(QUEUE, Selection()),
    PurgeDead(QUEUE, Selection()),
    RetryNow(QUEUE),
]


def _prepare(desk: Operating) -> None:
    """Something to do for each."""
    desk.carry_out(Pause(QUEUE, "b.example"))
    stick(desk, 2)
    desk.carry_out(Reset(QUEUE))
    stick(desk, 3)
    desk.do(desk.healing.sightings.look(300.0))
    for name in desk.redis.zrange(desk.keys.sightings, 0, -1):
        desk.redis.zincrby(desk.keys.sightings, -400_000, name)
    desk.redis.hset(desk.keys.payloads, "1-1-1", callback(77))
    desk.redis.zadd(desk.keys.dead, {"1-1-1": 1})
    desk.redis.hset(desk.keys.payloads, "1-1-2", callback(78))
    desk.redis.zadd(desk.keys.retry, {"1-1-2": 10**14})
    desk.redis.set(desk.keys.lock, STALE)
    desk.redis.delete(desk.keys.audit)


@pytest.mark.parametrize("operation", EVERY, ids=repr)
def test_a_plan_and_a_dry_run_change_nothing(desk: Operating, operation: Operation) -> None:
    _prepare(desk)
    before = desk.contents()
    plan = desk.plan(operation)
    assert plan.summary
    assert not desk.redis.exists(desk.keys.audit)
    executed = desk.execute(plan, dry_run=True, reason="to see")
    assert set(executed.counts.values()) <= {0}
    assert desk.contents() == before
    (entry,) = desk.entries
    assert (entry.result, entry.reason) == ("dry_run", "to see")


@pytest.mark.parametrize("operation", EVERY, ids=repr)
def test_nothing_is_changed_where_the_audit_cannot_be_written(desk: Operating, operation: Operation) -> None:
    _prepare(desk)
    desk.redis.set(desk.keys.audit, "somebody else's")
    before = desk.contents()
    with pytest.raises(StoreMisuse):
        desk.carry_out(operation)
    assert desk.contents() == before


@pytest.mark.parametrize("operation", EVERY, ids=repr)
def test_on_an_empty_store_each_is_planned_and_ends(desk: Operating, operation: Operation) -> None:
    plan = desk.plan(operation)
    desk.execute(plan)
    assert len(desk.entries) in (1, 2)
    assert desk.entries[-1].result == "done"


@pytest.mark.parametrize("trigger", [Trigger.SCHEDULE, Trigger.API, Trigger.ALERT])
@pytest.mark.parametrize("operation", EVERY, ids=repr)
def test_in_observe_mode_a_daemon_writes_nothing_at_all(server: Server, operation: Operation, trigger: Trigger) -> None:
    with Operating(server) as before:
        _prepare(before)
        contents = before.contents()
    with Operating(server, Mode.OBSERVE) as desk:
        for dry_run in (False, True):
            with pytest.raises(RefusedError, match="observe"):
                desk.execute(desk.plan(operation), Actor(trigger, "x"), dry_run=dry_run)
        assert desk.contents() == contents
        assert not desk.redis.exists(desk.keys.audit)


def test_a_person_may_act_in_observe_mode_and_is_told_of_it(server: Server) -> None:
    with Operating(server, Mode.OBSERVE) as desk:
        desk.redis.set(desk.keys.lock, "worker_1763999999_1234")
        plan = desk.plan(Unlock(QUEUE))
        assert "observe" in plan.summary[-1]
        desk.execute(plan)
        assert not desk.redis.exists(desk.keys.lock)
        assert "observe" not in "".join(desk.plan(Unlock(QUEUE)).summary)


def test_a_person_s_no_is_in_the_audit(desk: Operating) -> None:
    plan = desk.plan(Reset(QUEUE))
    desk.do(desk.operations.decline(plan, actor=ALICE, why="aborted"))
    (entry,) = desk.entries
    assert (entry.operation, entry.result, entry.after) == ("reset", "refused", {"why": "aborted"})


def test_what_is_paused_and_in_the_trash_is_seen_by_whoever_looks(desk: Operating) -> None:
    def seen() -> tuple[int, bool | None, int | None]:
        (view,) = desk.do(desk.store.reader.snapshot()).queues
        return view.lengths[State.TRASH], view.paused, view.paused_destinations

    stick(desk, 3)
    assert seen() == (0, False, 0)
    desk.carry_out(Reset(QUEUE))
    stick(desk, 2)
    desk.carry_out(Reset(QUEUE))
    desk.carry_out(Pause(QUEUE, "a.example"))
    assert seen() == (5, False, 1)
    desk.carry_out(Pause(QUEUE))
    desk.carry_out(Undo(QUEUE))
    assert seen() == (3, True, 1)
    desk.redis.hset(desk.keys.trash_notes, "other", "no note of ours")
    assert seen() == (3, True, 1)


def test_a_progress_is_told_to_its_end_and_kept_where_it_ends_early(desk: Operating) -> None:
    stick(desk, 450)
    told: list[int] = []
    desk.carry_out(Recover(QUEUE), progress=told.append)
    assert (told[-1], told == sorted(told)) == (450, True)

    def stop(done: int) -> None:
        if done >= 200:
            raise KeyboardInterrupt

    stick(desk, 450)
    with pytest.raises(KeyboardInterrupt):
        desk.carry_out(Recover(QUEUE), progress=stop)
    assert desk.story[-1] == ("recover", "failed")
    after = desk.entries[-1].after
    assert (200 <= after["progress"] < 450, after["error"]) == (True, "interrupted")
