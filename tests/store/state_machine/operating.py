"""What people do: each plans, and carries the plan out at once or when much has changed since."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cbq_exporter.errors import PreconditionChanged, RefusedError
from cbq_exporter.model import Actor, Trigger
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.operations import (
    Executed,
    Operation,
    Pause,
    Plan,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    RetryDead,
    RetryNow,
    Undo,
    Unlock,
    name_of,
)
from tests.store.state_machine.existing_software import LOCKS, ExistingSoftware, accidents
from tests.store.state_machine.healing import Healing
from tests.store.state_machine.world import HOUR, KEYS, QUEUE, either, payloads

LEAST_GROWTH = 1  # callbacks more than were planned: the tests make it so small
UNDO_AT_ONCE = 3  # callbacks, in one script
RETRIES_AT_ONCE = 2  # callbacks, in one page
ENDLESS_RECOVERIES = 10**9
_UNKNOWN = "0-0-0"

yes_or_no = st.booleans()
arrivals: st.SearchStrategy[list[bytes]] = st.one_of(
    st.just([]), st.lists(payloads, min_size=LEAST_GROWTH + 1, max_size=3)
)
destinations = st.sampled_from((None, "a.example"))


class Interrupted(Exception):
    """A person's Ctrl-C, between two scripts."""


def _interrupt(_done: int) -> None:
    raise Interrupted


class Operating(ExistingSoftware, Healing):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.plans: dict[int, Plan] = {}
        self._noted: dict[str, dict[str, int]] = {}  # id of a reset: what it moved

    # --- what they want ----------------------------------------------------------------------

    @rule(data=st.data(), who=either)
    def a_person_plans(self, data: st.DataObject, who: int) -> None:
        self.plans[who] = self.plan(self._wish(data))

    @precondition(lambda self: self.plans)
    @rule(data=st.data(), dry_run=st.sampled_from((False, False, False, True)))
    def a_person_carries_out_what_was_planned(self, data: st.DataObject, dry_run: bool) -> None:
        plan = self.plans.pop(data.draw(st.sampled_from(sorted(self.plans))))
        self.carry_out(plan, dry_run=dry_run)

    @rule(data=st.data())
    def a_person_acts(self, data: st.DataObject) -> None:
        self.carry_out(self.plan(self._wish(data)))

    @rule(force=yes_or_no)
    def a_person_resets(self, force: bool) -> None:
        self.carry_out(self.plan(Reset(QUEUE, force=force)))

    @rule(
        force=st.sampled_from((False, False, True)),
        resets=yes_or_no,
        before=st.sampled_from((*LOCKS, "unlock")),
        after=st.lists(accidents, min_size=1, max_size=2),
    )
    def the_lock_changes_while_a_person_plans(self, force: bool, resets: bool, before: str, after: list[str]) -> None:
        self.meddle("unlock")
        self.meddle(before)
        plan = self.plan((Reset if resets else Unlock)(QUEUE, force=force))
        for what in after:
            self.meddle(what)
        self.carry_out(plan)

    @rule(some=st.lists(payloads, min_size=LEAST_GROWTH + 1, max_size=3))
    def others_claim_while_a_person_recovers(self, some: list[bytes]) -> None:
        plan = self.plan(Recover(QUEUE))
        for payload in some:
            self.others_hold(payload)
        self.carry_out(plan)

    @precondition(lambda self: self.model.trash)
    @rule(interrupted=yes_or_no)
    def a_person_undoes(self, interrupted: bool) -> None:
        plan = self.plan(Undo(QUEUE))
        if interrupted and plan.trashed is not None:
            self._break_off(plan)
        else:
            self.carry_out(plan)

    @precondition(lambda self: self.model.retry)
    @rule(destination=destinations, interrupted=yes_or_no)
    def a_person_retries_now(self, destination: str | None, interrupted: bool) -> None:
        """Perhaps not all of it: Ctrl-C comes after the first page."""
        plan = self.plan(RetryNow(QUEUE, destination))
        if interrupted and not plan.nothing_to_do:
            self._retries_now(plan, self._names_of_retry()[:RETRIES_AT_ONCE], "failed", progress=_interrupt)
        else:
            self.carry_out(plan)

    @rule(data=st.data(), arrive=arrivals, claimed=yes_or_no)
    def two_people_want_the_same(self, data: st.DataObject, arrive: list[bytes], claimed: bool) -> None:
        """Each has looked before the other acts; and callbacks arrive, or are claimed by a worker already."""
        wish = self._wish(data)
        plans = self.plan(wish), self.plan(wish)
        for payload in arrive:
            if claimed:
                self.others_hold(payload)
            else:
                self.others_produce(payload)
        for plan in plans:
            self.carry_out(plan)

    def _wish(self, data: st.DataObject) -> Operation:
        model = self.model
        kinds = ["unlock", "recover", "reset", "undo", "pause", *["resume"] * bool(model.paused)]
        kinds += ["retry now"] * bool(model.retry)
        match data.draw(st.sampled_from([*kinds, *["retry dead", "purge dead"] * bool(model.dead)])):
            case "unlock":
                return Unlock(QUEUE, force=data.draw(yes_or_no))
            case "recover":
                older_than, only_known = data.draw(st.sampled_from(((None, False), (HOUR, False), (None, True))))
                return Recover(QUEUE, older_than, only_known)
            case "reset":
                return Reset(QUEUE, force=data.draw(yes_or_no))
            case "undo":
                return Undo(QUEUE, data.draw(st.sampled_from((*model.trash, None, "no such"))))
            case "pause":
                return Pause(QUEUE, data.draw(destinations))
            case "resume":
                return Resume(QUEUE, data.draw(destinations))
            case "retry now":
                return RetryNow(QUEUE, data.draw(destinations))
            case "retry dead":
                return RetryDead(QUEUE, self._selection(data))
        return PurgeDead(QUEUE, self._selection(data))

    def _selection(self, data: st.DataObject) -> Selection:
        ids = st.lists(st.sampled_from((*self.model.dead, _UNKNOWN)), min_size=1, max_size=3, unique=True)
        return data.draw(
            st.one_of(
                st.just(Selection()),
                ids.map(lambda some: Selection(tuple(some))),
                st.sampled_from(("rejected", "no_data", "poison")).map(lambda reason: Selection(reason=reason)),
                st.just(Selection(destination="a.example")),
                st.just(Selection(older_than=HOUR)),
            )
        )

    # --- planning ----------------------------------------------------------------------------

    def plan(self, operation: Operation) -> Plan:
        before = len(self.connections.ran)
        plan = self.do(self.operations.plan(operation))
        assert len(self.connections.ran) == before, "a plan only looks"
        refused, counts = self._expected_plan(operation)
        assert plan.refusal is not None if refused else plan.refusal is None
        assert plan.nothing_to_do == (not refused and counts is None)
        assert counts is None or plan.counts == counts
        return plan

    def _expected_plan(self, operation: Operation) -> tuple[bool, dict[str, int] | None]:
        """Whether it is refused, and what is counted: None where there is nothing to do, or where it is refused."""
        model = self.model
        lock = model.lock
        match operation:
            case Unlock():
                refused = lock is not None and lock.is_sane and not operation.force
                return refused, {"locks": 1} if lock is not None and not refused else None
            case Reset():
                foreign = lock is not None and lock.is_sane and lock.value not in model.beats
                if foreign and not operation.force:
                    return True, None
                there = model.callbacks or model.leases or +model.stats or lock
                return False, model.counts if there else None
            case Undo():
                kept = {name: one for name, one in model.trash.items() if not one.expired}
                name = operation.trash_id or next(reversed(kept), None)
                if name is None:
                    return False, None
                return name not in kept, None if name not in kept else self._noted[name]
            case Recover():
                count = self._recoverable(operation)
                return False, {"callbacks": count} if count else None
            case Pause():
                return False, None if operation.destination in model.paused else {"pauses": 1}
            case Resume():
                return False, {"pauses": 1} if operation.destination in model.paused else None
            case RetryNow():
                waiting = len(model.waiting_to_be_tried(operation.destination))
                return False, {"callbacks": waiting} if waiting else None
            case RetryDead() | PurgeDead():
                chosen = self._chosen(operation.selection, None)
                return False, {"letters": len(chosen)} if chosen else None
        raise NotImplementedError(operation)

    def _recoverable(self, operation: Recover) -> int:
        model = self.model
        if operation.older_than is not None or operation.only_known_stuck:
            return model.leases_over + self.sightings()[0].total()
        return max(0, model.processing.total() - (len(model.leases) - model.leases_over))

    def _chosen(self, selection: Selection, until: float | None) -> list[str]:
        """The dead letters of a selection, in the order in which they are taken; ``until`` is epoch seconds."""
        died = {name.decode(): ms / 1000 for name, ms in self.redis.zrange(KEYS.dead, 0, -1, withscores=True)}
        return [
            name
            for name in selection.ids or died
            if name in died
            and (until is None or died[name] <= until)
            and selection.reason in (None, self.model.dead[name].reason)
            and selection.destination in (None, self.model.dead[name].destination)
            and (selection.older_than is None or died[name] < HOUR)
        ]

    # --- carrying out ------------------------------------------------------------------------

    def carry_out(self, plan: Plan, *, dry_run: bool = False) -> None:
        if plan.refusal is not None:
            self._execute(plan, "refused", dry_run=dry_run)
        elif dry_run or plan.nothing_to_do:
            executed = self._execute(plan, "dry_run" if dry_run else "done", dry_run=dry_run)
            assert executed is not None
            assert not any(executed.counts.values())
        else:
            _CARRIED_OUT[type(plan.operation)](self, plan)

    def _execute(self, plan: Plan, expected: str, **options: Any) -> Executed | None:
        """Says whether it ends as ``expected``, and is audited so; what was done, where something was."""
        forced = getattr(plan.operation, "force", False)
        # A daemon's claims are fenced: its lock may go to the trash.
        may_free = forced or (isinstance(plan.operation, Reset) and self.model.lock_value in self.model.beats)
        executed, result = None, "done"
        self.connections.audited.clear()
        try:
            executed = self.do(
                self.operations.execute(plan, actor=Actor(Trigger.CLI, "alice@host"), **options),
                may_free_lock=may_free,
            )
        except PreconditionChanged:
            result = "changed"
        except RefusedError:
            result = "refused"
        except Interrupted:
            result = "failed"
        name = name_of(plan.operation)
        if executed is not None and options.get("dry_run"):
            result = "dry_run"
        assert result == expected
        once = result in ("refused", "dry_run") or plan.nothing_to_do
        assert self.connections.audited == [(name, one) for one in ((result,) if once else ("started", result))]
        return executed

    def _unlocks(self, plan: Plan) -> None:
        was, lock = plan.lock, self.model.lock
        assert was is not None
        same = lock is not None and lock.value == was.value.decode()
        if same and lock is not None and not plan.operation.force:  # type: ignore[union-attr]
            same = (
                not lock.is_sane and (lock.ttl is None) == (was.ttl is None) and (lock.ttl or 0) <= (was.ttl or 0) + 1
            )
        if self._execute(plan, "done" if same else "changed"):
            self.model.release_lock()

    def _recovers(self, plan: Plan) -> None:
        model, operation = self.model, plan.operation
        assert isinstance(operation, Recover)
        if _has_grown(plan.counts["callbacks"], self._recoverable(operation)):
            self._execute(plan, "changed")
            return
        order, (old, _), known = self.processing, self.sightings(), set(model.dead)
        most = 3 if operation.only_known_stuck else None
        returned, dead, dropped = model.recover_expired(order, ENDLESS_RECOVERIES if most is None else most)
        everything = operation.older_than is None and not operation.only_known_stuck
        others, died = model.recover_others(order, None if everything else old, most)
        executed = self._execute(plan, "done")
        assert executed is not None
        assert executed.counts == {
            "callbacks": returned + others,
            "dead": dead + died.total(),
            "leases_dropped": dropped,
        }
        self.letters_have_come(known, died)

    def _resets(self, plan: Plan) -> None:
        model, operation = self.model, plan.operation
        assert isinstance(operation, Reset)
        lock = model.lock
        grown = _has_grown(sum(plan.counts.values()), model.callbacks.total())
        foreign = lock is not None and lock.value not in model.beats
        known = lock is not None and plan.lock is not None and plan.lock.value.decode() == lock.value
        in_the_way = foreign and not (known and lock is not None and not lock.is_sane)
        moved = (*_MOVED, KEYS.lock, KEYS.last_send, KEYS.sightings)
        if grown or (in_the_way and not operation.force) or not self.redis.exists(*moved):
            self._execute(plan, "changed")
            return
        executed = self._execute(plan, "done")
        assert executed is not None
        assert executed.counts == model.counts
        assert executed.undo is not None
        self._noted[executed.undo] = model.counts
        model.reset(executed.undo)

    def _undoes(self, plan: Plan) -> None:
        assert plan.trashed is not None
        trash_id = plan.trashed.id
        kept = self.model.trash.get(trash_id)
        if kept is None or kept.expired:
            self._execute(plan, "changed")
            return
        in_order = self._in_order(trash_id)
        executed = self._execute(plan, "done")
        assert executed is not None
        assert executed.counts == {"callbacks": kept.callbacks.total()}
        self.model.undo(trash_id, in_order=in_order)

    def _in_order(self, trash_id: str) -> bool:
        return bool(self.redis.exists(KEYS.order, KEYS.trash_of(trash_id).order))

    def _break_off(self, plan: Plan) -> None:
        """After its first script: what is where then is taken from the store, but none may be missing or new."""
        assert plan.trashed is not None
        model, trash_id = self.model, plan.trashed.id
        back = model.trash[trash_id]
        back.begun = True
        in_order = self._in_order(trash_id)
        self._execute(plan, "failed", progress=_interrupt)
        if self.redis.zscore(KEYS.trash, trash_id) is None:  # it was little
            model.undo(trash_id, in_order=in_order)
            return
        there = KEYS.trash_of(trash_id)
        split = len(back.pending) - self.redis.llen(there.pending)
        if split:
            whole = back.pending + model.pending
            at = len(back.pending) - split
            back.pending, model.pending = whole[:at], whole[at:]
        left = Counter[bytes](self.redis.lrange(there.processing, 0, -1))
        model.processing += back.processing - left
        back.processing = left
        _move(back.retry, model.retry, self._names("zrange", there.retry))
        _move(back.dead, model.dead, self._names("zrange", there.dead))
        _move(back.leases, model.leases, self._names("zrange", there.leases))
        moved_orphans = back.orphans - self._names("hkeys", there.records)
        back.orphans -= moved_orphans
        model.orphans |= moved_orphans
        if not self.redis.exists(there.returned):
            model.memory = back.memory | model.memory
            back.memory = {}

    def _names(self, command: str, key: str) -> set[str]:
        found = self.redis.zrange(key, 0, -1) if command == "zrange" else self.redis.hkeys(key)
        return {name.decode() for name in found}

    def _pauses(self, plan: Plan) -> None:
        destination = plan.operation.destination  # type: ignore[union-attr]
        if self._execute(plan, "changed" if destination in self.model.paused else "done"):
            self.model.paused.add(destination)

    def _resumes(self, plan: Plan) -> None:
        destination = plan.operation.destination  # type: ignore[union-attr]
        if self._execute(plan, "done" if destination in self.model.paused else "changed"):
            self.model.paused.remove(destination)

    def _handles_letters(self, plan: Plan) -> None:
        operation, letters = plan.operation, plan.letters
        assert isinstance(operation, RetryDead | PurgeDead)
        assert letters is not None
        chosen = self._chosen(operation.selection, letters.at)
        executed = self._execute(plan, "changed" if len(chosen) < letters.count else "done")
        assert executed is None or executed.counts == {"letters": len(chosen)}
        for name in chosen:
            if isinstance(operation, RetryDead):
                self.model.dead_retry(name)
            else:
                self.model.dead_purge(name)

    def _retries(self, plan: Plan) -> None:
        self._retries_now(plan, self._names_of_retry(), "done")

    def _retries_now(self, plan: Plan, looked_at: Sequence[str], expected: str, **options: Any) -> None:
        """What was claimed since it was planned has failed again: that waits. The others keep their order."""
        model, planned = self.model, plan.retries
        assert planned is not None
        waiting = model.waiting_to_be_tried(planned.destination)
        made = [name for name in looked_at if name in waiting and int(name[:13]) <= round(planned.at * 1000)]
        last = self.redis.zrevrangebyscore(KEYS.retry, time.time() * 1000, "-inf", start=0, num=1, withscores=True)
        executed = self._execute(plan, expected, **options)
        assert executed is None or executed.counts == {"callbacks": len(made)}
        for name in made:
            model.retry[name].due = self.redis.zscore(KEYS.retry, name)
        times = [ms for _, ms in last] + [model.retry[name].due or 0.0 for name in made]
        assert all(one < other for one, other in pairwise(times))
        assert times[-1:] <= [time.time() * 1000]

    def _names_of_retry(self) -> list[str]:
        return [name.decode() for name in self.redis.zrange(KEYS.retry, 0, -1)]

    # --- time --------------------------------------------------------------------------------

    @precondition(lambda self: any(not one.begun for one in self.model.trash.values()))
    @rule(data=st.data(), at_once=yes_or_no)
    def a_reset_has_been_kept_for_long_enough(self, data: st.DataObject, at_once: bool) -> None:
        """One that is partly put back does not expire. Upkeep comes at once, or later."""
        names = [name for name, one in self.model.trash.items() if not one.begun]
        name = data.draw(st.sampled_from(names))
        self.redis.zadd(KEYS.trash, {name: self.tick()}, xx=True)
        self.model.trash[name].expired = True
        if at_once:
            self.upkeep(data, keep=len(self.model.dead))


def _has_grown(planned: int, now: int) -> bool:
    """Beyond what somebody who agreed to the one would agree to."""
    return now > planned + max(LEAST_GROWTH, 0.1 * planned)


def _move(back: dict[str, Any], now: dict[str, Any], left: set[str]) -> None:
    for name in [name for name in back if name not in left]:
        now[name] = back.pop(name)


_MOVED = (
    *(KEYS.pending, KEYS.processing, KEYS.leases, KEYS.retry, KEYS.dead, KEYS.records, KEYS.payloads, KEYS.returned),
    *(KEYS.stats_queued, KEYS.stats_sent, KEYS.stats_failed),
)
_CARRIED_OUT: dict[type[Operation], Callable[[Operating, Plan], None]] = {
    Unlock: Operating._unlocks,
    Recover: Operating._recovers,
    Reset: Operating._resets,
    Undo: Operating._undoes,
    Pause: Operating._pauses,
    Resume: Operating._resumes,
    RetryDead: Operating._handles_letters,
    PurgeDead: Operating._handles_letters,
    RetryNow: Operating._retries,
}
