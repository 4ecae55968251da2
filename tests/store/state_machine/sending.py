"""What daemons do to send: the lock, claims, and the ends of claims, late ones included."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from cbq_exporter.model import (
    Claim,
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    Failure,
    Held,
    Outcome,
    PutBack,
    Retry,
    Settled,
)
from cbq_exporter.model import Settlement as Settle
from tests.store.state_machine.model import (
    LOCK_TTL,
    MOST_OF_A_KEY,
    NEW_TURN,
    NOW,
    ORDER_BY,
    PERHAPS,
    Kept,
    Lease,
    Lock,
    Taken,
)
from tests.store.state_machine.world import HOUR, KEYS, World, destination_of, either, payloads

FAILURE = Failure("http_5xx", 503)
outcomes: st.SearchStrategy[Outcome] = st.sampled_from(
    (
        Delivered(),
        PutBack(),
        Retry(HOUR, FAILURE),
        Retry(HOUR, FAILURE, attempt_used=False),
        Held(),
        Dead(DeadReason.REJECTED, FAILURE),
        Dead(DeadReason.NO_DATA, FAILURE, attempt_used=False),
    )
)
counts = st.integers(1, 5)
sizes = st.sampled_from([1, 60, 400, 10_000])
parts = st.sampled_from([None, 0, 1])


class Sending(World):
    @rule(some=st.lists(payloads, min_size=1, max_size=3))
    def enqueue(self, some: list[bytes]) -> None:
        length = self.do(self.any_queue.enqueue(some))
        self.model.pending += some
        self.model.accepted.update(some)
        self.model.stats["queued"] += len(some)
        assert length == len(self.model.pending)

    # --- the lock ----------------------------------------------------------------------------

    @rule(who=either)
    def keep_lock(self, who: int) -> None:
        daemon, model = self.daemons[who], self.model
        state = self.do(daemon.queue.keep_lock(LOCK_TTL))
        if model.lock is None or model.lock.value == daemon.value:
            model.lock = Lock(daemon.value, LOCK_TTL)
        assert state.ours == (model.lock.value == daemon.value)
        if model.lock.ttl is None:
            assert state.ttl is None
        else:
            assert state.ttl is not None
            assert model.lock.ttl - 20 < state.ttl <= model.lock.ttl

    @rule(who=either)
    def free_lock(self, who: int) -> None:
        daemon, is_ours = self.daemons[who], self.model.lock_value == self.daemons[who].value
        assert self.do(daemon.queue.free_lock(), may_free_lock=is_ours) == is_ours
        if is_ours:
            self.model.lock = None

    # --- claiming ----------------------------------------------------------------------------

    @rule()
    def the_order_is_turned_on_or_off(self) -> None:
        self.order_by = None if self.order_by else ORDER_BY

    @rule(who=either, count=counts, max_bytes=sizes, from_pending=parts)
    def lead_and_claim(self, who: int, count: int, max_bytes: int, from_pending: int | None) -> None:
        """As a daemon does: the lock first. It is somebody else's at times."""
        self.keep_lock(who)
        self.claim(who, count, max_bytes, from_pending)

    @rule(who=either, count=counts, max_bytes=sizes, from_pending=parts)
    def claim(self, who: int, count: int, max_bytes: int, from_pending: int | None) -> None:
        daemon, model = self.daemons[who], self.model
        claim = self.do(
            daemon.queue.claim(
                count=count,
                max_bytes=max_bytes,
                lease=HOUR,
                lock_ttl=LOCK_TTL,
                from_pending=from_pending,
                order_by=self.order_by,
            )
        )
        if model.lock_value != daemon.value:
            assert claim is None
            return
        assert claim is not None
        model.lock = Lock(daemon.value, LOCK_TTL)
        known = set(model.retry)
        expected, from_retry, new = model.claim(
            count, max_bytes, count if from_pending is None else from_pending, ordered=self.order_by is not None
        )
        assert [(one.payload, one.attempts, one.recoveries) for one in claim.items] == [
            (one.payload, one.attempts, one.recoveries) for one in expected
        ]
        assert (claim.from_retry, claim.new) == (from_retry, new)
        assert claim.pending_left == len(model.pending)
        assert (claim.next_due_ms is None) == (not model.retry)
        self._turns_are_given(claim, expected, known)
        for one in claim.items:
            model.processing[one.payload] += 1
            model.leases[one.lease] = Lease(one)
        self.claimed += claim.items

    def _turns_are_given(self, claim: Claim, expected: Sequence[Taken], known: set[str]) -> None:
        """What was set aside is not told; ``known`` are the retries that there were before."""
        model = self.model
        new = [name.decode() for name in self.redis.zrange(KEYS.retry, 0, -1) if name.decode() not in known]
        new.sort(key=lambda name: int(name.rpartition("-")[2]))
        set_aside = sorted(name for name in model.retry if name.startswith(NEW_TURN))
        assert len(new) == len(set_aside)
        for name, number in zip(new, set_aside, strict=True):
            model.retry[name] = model.retry.pop(number)
        given = [(want.turn, got.turn) for want, got in zip(expected, claim.items, strict=True)]
        waiting: list[tuple[str, Kept]] = [
            (n, one) for n, one in model.retry.items() if n in new or NEW_TURN in one.turn
        ]
        for name, kept in waiting:
            turn = json.loads(self.redis.hget(KEYS.records, name))["turn"]
            given.append((kept.turn, turn))
            kept.turn = turn
        last = dict(model.last_turns)
        for want, turn in sorted(given):
            if NEW_TURN not in want:
                assert turn == want
                continue
            key = want.partition(":")[0]
            assert turn.partition(":")[0] == key
            assert turn > last.get(key, ""), "a turn is later than all that were given before"
            last[key] = turn
        model.last_turns = last

    # --- settling ----------------------------------------------------------------------------

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), fates=st.lists(outcomes, min_size=1, max_size=5))
    def settle_all_held(self, data: st.DataObject, fates: list[Outcome]) -> None:
        held = data.draw(st.permutations([lease.claimed for lease in self.model.leases.values()]))
        self.settle(list(zip(held, fates * len(held), strict=False)))

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def settle_some_held(self, data: st.DataObject) -> None:
        held = st.sampled_from([lease.claimed for lease in self.model.leases.values()])
        self.settle(data.draw(st.lists(st.tuples(held, outcomes), min_size=1, max_size=4)))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def settle_any(self, data: st.DataObject) -> None:
        """Of the claims that ever were: held, given away, in the trash, settled before, and some twice in one call."""
        ever = st.sampled_from(self.claimed)
        self.settle(data.draw(st.lists(st.tuples(ever, outcomes), min_size=1, max_size=4)))

    def settle(self, chosen: Sequence[tuple[Claimed, Outcome]]) -> None:
        settlements = [Settle(claimed, outcome, "", destination_of(claimed.payload)) for claimed, outcome in chosen]
        few = len(self.ordered) <= MOST_OF_A_KEY
        settled = self.do(self.any_queue.settle(settlements))
        assert settled == [self.model.settle(one.claimed, one.outcome, one.destination) for one in settlements]
        self._waiting_ones_are_woken(all_of_them=few)

    def _waiting_ones_are_woken(self, *, all_of_them: bool) -> None:
        """Those that the model says; of very many some may have to ask."""
        for name, kept in self.model.retry.items():
            if kept.due in (NOW, PERHAPS):
                due = self.redis.zscore(KEYS.retry, name)
                is_due = due <= time.time() * 1000 + 1
                assert is_due or kept.due == PERHAPS or not all_of_them
                kept.due = due if is_due else None

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.claimed), min_size=1, max_size=4, unique_by=id))
        few = len(self.ordered) <= MOST_OF_A_KEY
        returned = self.do(self.any_queue.put_back(chosen))
        settled = [self.model.settle(one, PutBack(), "") for one in reversed(chosen)]
        assert returned == settled.count(Settled.DONE)
        self._waiting_ones_are_woken(all_of_them=few)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        chosen = [one.lease for one in data.draw(st.lists(st.sampled_from(self.claimed), min_size=1, max_size=4))]
        assert self.do(self.any_queue.extend(chosen, HOUR)) == [name in self.model.leases for name in chosen]
        for name in chosen:
            if name in self.model.leases:
                self.model.leases[name].ran_out = None

    # --- time --------------------------------------------------------------------------------

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data())
    def leases_run_out(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(self.model.leases)), min_size=1, unique=True)):
            self.lease_runs_out(name)

    @precondition(lambda self: self.model.retry)
    @rule(data=st.data())
    def retries_become_due(self, data: st.DataObject) -> None:
        for name in data.draw(st.lists(st.sampled_from(sorted(self.model.retry)), min_size=1, unique=True)):
            self.retry_becomes_due(name)
