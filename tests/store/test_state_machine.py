"""Anything that daemons, producers, people and the existing software can do to a queue, in any order, against a model.

After every step the store holds exactly what the model says, and every callback that was ever accepted is in one
place, was taken out by somebody, or was lost with a worker of the existing software that was killed between its two
commands. Time passes where the test rewrites what is kept of it.

CBQ_TEST_EXAMPLES=5000 makes the run long and random; without it, it is short and always the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from cbq_exporter.model import Delivered, Outcome
from cbq_exporter.services import retries
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.operations import RetryDead, Undo, parts
from cbq_exporter.store import trash
from tests.store.state_machine.invariants import Invariants
from tests.store.state_machine.model import ORDER_BY
from tests.store.state_machine.operating import LEAST_GROWTH, RETRIES_AT_ONCE, UNDO_AT_ONCE, Operating
from tests.store.state_machine.sending import Sending, outcomes
from tests.store.state_machine.world import KEYS, PAYLOADS, PREFIX, QUEUE, WatchedConnections, payloads
from tests.support.foreign_worker import ForeignWorker
from tests.support.servers import Server


class Machine(Sending, Operating, Invariants):
    @initialize(
        fates=st.lists(st.tuples(payloads, outcomes), max_size=6),
        held=st.lists(payloads, max_size=4),
        others_held=st.lists(payloads, max_size=4),
        queued=st.lists(payloads, max_size=4),
        ordered=st.booleans(),
    )
    def there_is_something_in_every_place(
        self,
        fates: list[tuple[bytes, Outcome]],
        held: list[bytes],
        others_held: list[bytes],
        queued: list[bytes],
        ordered: bool,
    ) -> None:
        self.order_by = ORDER_BY if ordered else None
        for payload, outcome in fates:
            self.others_produce(payload)
            before = len(self.claimed)
            self.lead_and_claim(0, 1, 1, None)
            self.settle([(claimed, outcome) for claimed in self.claimed[before:]])
        for payload in held:
            self.others_produce(payload)
        self.lead_and_claim(0, 5, 10_000, None)
        for payload in others_held:
            self.others_hold(payload)
        for payload in queued:
            self.others_produce(payload)

    def teardown(self) -> None:
        """Whatever happened, all that is left can still be delivered, and nothing is left behind it."""
        if self.has_failed:
            return
        for who in range(len(self.workers)):
            self.a_worker_ends_what_it_was_at(who)
        self.meddle("unlock")
        while any(not one.expired for one in self.model.trash.values()):
            self.carry_out(self.plan(Undo(QUEUE)))
        for name in self.model.leases:
            self.lease_runs_out(name)
        self.connections.check()
        self.recoverer_runs(self.daemons[0], 10**6)
        assert not self.model.leases, "of a lease without a callback nothing is left"
        self.connections.check()
        self.time_passes_for_all_that_others_hold(0)
        self.recoverer_runs(self.daemons[0], 10**6)
        assert not self.model.processing
        if self.model.dead:
            self.carry_out(self.plan(RetryDead(QUEUE, Selection())))
        for name in self.model.retry:
            self.retry_becomes_due(name)
        self.connections.check()
        self.keep_lock(0)
        waited = 0
        while self.model.pending or self.model.retry:
            before = len(self.model.pending)
            # What a claim puts aside counts as read: it may have had no room for any to be sent.
            if not self._deliver_what_may_go() and len(self.model.pending) == before:
                waited += 1
                assert waited == 1, "it waits for what has ended"
                for name in self.model.retry:  # a minute later: nobody has woken it
                    self.retry_becomes_due(name)
        self._the_order_forgets_what_is_nowhere()
        assert self.redis.llen(KEYS.processing) == 0
        self.the_store_holds_what_the_model_holds()

    def _deliver_what_may_go(self) -> int:
        first = len(self.claimed)
        self.claim(0, 50, 10_000, None)
        claimed = self.claimed[first:]
        if claimed:
            self.settle([(one, Delivered()) for one in claimed])
        return len(claimed)

    def _the_order_forgets_what_is_nowhere(self) -> None:
        """As soon as it is in the way of another of its key."""
        self.order_by = ORDER_BY
        self.what_was_returned_is_forgotten()
        for key in {json.dumps(json.loads(one)["task_id"]) for one in PAYLOADS if b"task_id" in one} | {'"7"'}:
            self.others_produce(b'{"url": "http://a.example", "task_id": ' + key.encode() + b"}")
        while self.model.pending:
            assert self._deliver_what_may_go()
        assert not self.model.retry
        assert not self.ordered


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few callbacks reach them."""
    monkeypatch.setattr(parts, "_LEAST_GROWTH", LEAST_GROWTH)
    monkeypatch.setattr(trash, "_MOST_ITEMS", UNDO_AT_ONCE)
    monkeypatch.setattr(retries, "PAGE", RETRIES_AT_ONCE)


@pytest.mark.usefixtures("small_bounds")
def test_no_callback_is_ever_lost_or_made_up(each_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # thousands of recoveries
    examples = int(os.environ.get("CBQ_TEST_EXAMPLES", "0"))
    loop = asyncio.new_event_loop()
    connections = WatchedConnections(each_server.url)
    with ForeignWorker(each_server.url, PREFIX) as one, ForeignWorker(each_server.url, PREFIX) as other:
        try:
            run_state_machine_as_test(
                lambda: Machine(each_server, connections, (one, other), loop),  # type: ignore[arg-type]
                settings=settings(
                    max_examples=examples or 150,
                    stateful_step_count=50,
                    derandomize=not examples,
                    database=None,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            loop.run_until_complete(connections.close())
            loop.close()
