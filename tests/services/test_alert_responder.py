"""What alerts cause, on real stores: once, within the limits, only where it is needed, whatever crashes or races."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest

from cbq_exporter.config import Config, QueueConfig
from cbq_exporter.errors import StoreUnavailable
from cbq_exporter.model import Actor, AlertOutcome, AuditEntry, Dead, DeadReason, Settlement, Trigger
from cbq_exporter.policy.alerts import Alert
from cbq_exporter.services.alert_responder import STALE, AlertReport, AlertResponder, Received
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import Operation, Operations, Pause, PauseAlerts, ResumeAlerts
from cbq_exporter.store import alerts as store_alerts
from cbq_exporter.store.alerts import Alerts, AlertState
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.opening import Store, reader_of
from cbq_exporter.store.scripts import Script
from tests.support.daemons import until
from tests.support.interleaving import Actor as Runs
from tests.support.interleaving import Ends, Gate, Race, chosen_orders
from tests.support.queues import FAILURE, callback
from tests.support.servers import Server

T = TypeVar("T")

QUEUE = "callbacks"
STALE_LOCK = "worker_1764000000_4711"
ROUTES = [
    {"match": {"alertname": "Stuck"}, "action": "recover"},
    {"match": {"alertname": "Lock"}, "action": "unlock"},
    {"match": {"alertname": "Pause"}, "action": "pause"},
    {"match": {"alertname": "Resume"}, "action": "resume"},
    {"match": {"alertname": "Down"}, "action": "pause", "scope": "destination"},
    {"match": {"alertname": "Dead"}, "action": "retry_dead", "cooldown": 0.0},
    {"match": {"alertname": "Look"}, "action": "recover", "dry_run": True},
]


def alert(name: str, started: str = "1", *, firing: bool = True, **labels: str) -> Alert:
    return Alert(f"{name.lower()}-fingerprint", started, firing, {"alertname": name, "queue": QUEUE, **labels})


class Desk:
    """A daemon's part that minds alerts, on connections of its own kind."""

    def __init__(self, connections: Connections, config: Config) -> None:
        self.store = Store(connections, {}, {}, reader_of(config, connections), "test").with_queues(config)
        self.audit = Audit(self.store)
        self.operations = Operations(config, self.store, self.audit)
        self.counted: Counter[AlertOutcome] = Counter()
        self.woken = 0
        self.responder = AlertResponder(config, self.store, self.operations, count=self._count, wake=self._wake)

    def _count(self, outcome: AlertOutcome) -> None:
        self.counted[outcome] += 1

    def _wake(self) -> None:
        self.woken += 1


class Stage:
    def __init__(self, server: Server) -> None:
        self.redis: Any = server.client
        self.loop = asyncio.new_event_loop()
        self.connections = Connections(server.url, shown_as="test")
        queue = QueueConfig(name=QUEUE, prefix="q", mode="supervise", recovery={"auto": False})
        self.config = Config(queues=(queue,), alerts={"routes": ROUTES})
        self.desk = Desk(self.connections, self.config)
        self.queue = self.desk.store.queues[QUEUE]
        self.keys = self.queue.keys
        self.alerts = Alerts(self.connections, self.keys)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.do(self.connections.close())
        self.loop.close()

    # --- what there is -----------------------------------------------------------------------

    def is_stuck(self, *payloads: bytes) -> None:
        """Claimed by others, and seen so long ago that it counts as stuck."""
        self.redis.rpush(self.keys.processing, *payloads)
        self.do(self.desk.store.healing[QUEUE].sightings.look(300.0))
        for name in self.redis.zrange(self.keys.sightings, 0, -1):
            self.redis.zadd(self.keys.sightings, {name: 1})

    def is_dead(self, *payloads: bytes) -> None:
        async def work() -> None:
            lender = Desk(self.connections, self.config).store.queues[QUEUE]
            lender.lock_value = "cbq-exporter_1_host_1"
            await lender.keep_lock(30.0)
            await lender.enqueue(payloads)
            claim = await lender.claim(count=len(payloads), max_bytes=1 << 30, lease=60.0, lock_ttl=30.0)
            assert claim is not None
            died = Dead(DeadReason.REJECTED, FAILURE)
            await lender.settle([Settlement(one, died, "http://a.example/", "a.example") for one in claim.items])
            await lender.free_lock()

        self.do(work())

    def holds(self, place: str) -> list[bytes]:
        found: list[bytes] = self.redis.lrange(f"q:{place}", 0, -1)
        return found

    def lock_is_old(self) -> None:
        self.do(self.desk.store.healing[QUEUE].lock.look())
        self.redis.hset(self.keys.lock_seen, mapping={"first_ms": 1, "untouched_ms": 1})

    # --- what is done ------------------------------------------------------------------------

    def receive(self, *alerts: Alert) -> list[AlertOutcome]:
        return [one.outcome for one in self.received(*alerts)]

    def received(self, *alerts: Alert) -> list[Received]:
        return self.do(self.desk.responder.receive(alerts))

    def act(self) -> dict[AlertState, int]:
        report: AlertReport = self.do(self.desk.responder.run_once())
        return dict(report.ended)

    def cause(self, one: Alert) -> dict[AlertState, int]:
        assert self.receive(one) == [AlertOutcome.ACCEPTED]
        return self.act()

    def operate(self, operation: Operation) -> None:
        async def work() -> None:
            plan = await self.desk.operations.plan(operation)
            await self.desk.operations.execute(plan, actor=Actor(Trigger.CLI, "alice"))

        self.do(work())

    @property
    def entries(self) -> list[AuditEntry]:
        return self.do(self.desk.audit.entries(QUEUE, count=1000))

    def audited(self) -> list[tuple[str, str, str]]:
        """Actor, operation and result of all that alerts did."""
        return [
            (str(one.actor), one.operation, str(one.result))
            for one in self.entries
            if one.actor.trigger is Trigger.ALERT
        ]


@pytest.fixture
def stage(server: Server) -> Iterator[Stage]:
    stage = Stage(server)
    try:
        yield stage
    finally:
        stage.close()


ONCE = [("alert:stuck-fingerprint", "recover", "started"), ("alert:stuck-fingerprint", "recover", "done")]


def test_an_alert_recovers_what_is_known_to_be_stuck_and_nothing_else(stage: Stage) -> None:
    stage.is_stuck(callback(1), callback(2))
    stage.redis.rpush(stage.keys.processing, callback(3))  # not seen yet
    (received,) = stage.received(alert("Stuck"))
    assert (received.outcome, received.why, received.place) == (
        AlertOutcome.ACCEPTED,
        "recover of callbacks",
        "alerts.routes[0]",
    )
    assert stage.desk.woken == 1
    assert stage.holds("pending") == []  # it is only written down
    assert stage.act() == {AlertState.DONE: 1}
    assert stage.holds("pending") == [callback(1), callback(2)]
    assert stage.holds("processing") == [callback(3)]
    assert stage.audited() == ONCE
    assert stage.entries[-1].reason == "alert Stuck, alerts.routes[0]"
    (listed,) = stage.do(stage.alerts.newest(10))
    assert (listed.state, listed.intent.alert, listed.intent.detail) == (AlertState.DONE, "Stuck", "callbacks 2")


def test_nothing_else_waits_for_long_labels(stage: Stage) -> None:
    turns = 0

    async def work() -> list[Received]:
        nonlocal turns
        receiving = asyncio.create_task(stage.desk.responder.receive([alert("x" * 1_000_000)]))
        while not receiving.done():
            turns += 1
            await asyncio.sleep(0.005)
        return receiving.result()

    config = Config(
        queues=stage.config.queues,
        alerts={"routes": [{"match": ['alertname=~".*(foo|bar)[a-z]{1,30}x.*y.*"'], "action": "recover"}]},
    )
    stage.desk = Desk(stage.connections, config)
    assert [one.outcome for one in stage.do(work())] == [AlertOutcome.UNMATCHED]
    assert turns > 5


def test_the_same_alert_again_or_resolved_does_nothing_more(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    stage.cause(alert("Stuck"))
    stage.is_stuck(callback(2))
    outcomes = stage.receive(
        alert("Stuck"), alert("Stuck", firing=False), alert("Stuck", "2"), alert("Nobody"), alert("Stuck", queue="x")
    )
    assert outcomes == ["duplicate", "resolved", "cooldown", "unmatched", "unknown_queue"]
    assert stage.act() == {}
    assert stage.holds("processing") == [callback(2)]
    assert stage.audited() == ONCE
    assert stage.desk.counted == Counter(["accepted", *outcomes])


def test_what_is_not_needed_is_looked_at_again_when_it_comes_again(stage: Stage) -> None:
    assert stage.receive(alert("Stuck")) == [AlertOutcome.NOT_NEEDED]
    stage.is_stuck(callback(1))
    assert stage.cause(alert("Stuck")) == {AlertState.DONE: 1}
    # Needed when it was received, and not any more when it is its turn.
    stage.redis.delete(stage.keys.cooldown_of(stage.do(stage.alerts.newest(1))[0].intent.target))
    stage.is_stuck(callback(2))
    assert stage.receive(alert("Stuck", "2")) == [AlertOutcome.ACCEPTED]
    stage.redis.delete(stage.keys.processing, stage.keys.sightings)
    assert stage.act() == {AlertState.NOT_NEEDED: 1}
    stage.is_stuck(callback(3))
    assert stage.cause(alert("Stuck", "2")) == {AlertState.DONE: 1}
    assert stage.audited() == ONCE * 2


def test_a_lock_goes_only_where_the_keeper_would_take_it(stage: Stage) -> None:
    assert stage.receive(alert("Lock")) == [AlertOutcome.NOT_NEEDED]
    stage.redis.set(stage.keys.lock, STALE_LOCK, ex=30)
    assert stage.receive(alert("Lock")) == [AlertOutcome.NOT_NEEDED]
    stage.redis.set(stage.keys.lock, STALE_LOCK)
    assert stage.receive(alert("Lock")) == [AlertOutcome.NOT_NEEDED]
    stage.lock_is_old()
    assert stage.cause(alert("Lock")) == {AlertState.DONE: 1}
    assert not stage.redis.exists(stage.keys.lock)
    assert stage.audited()[-1] == ("alert:lock-fingerprint", "unlock", "done")


def test_a_queue_and_a_destination_are_paused_and_resumed(stage: Stage) -> None:
    assert stage.cause(alert("Pause")) == {AlertState.DONE: 1}
    assert stage.receive(alert("Pause", "2")) == [AlertOutcome.COOLDOWN]
    assert stage.cause(alert("Down", "1", destination="A.example")) == {AlertState.DONE: 1}
    assert stage.cause(alert("Down", "2", destination="b.example")) == {AlertState.DONE: 1}  # a cooldown of its own
    assert {*stage.redis.hkeys(stage.keys.paused)} == {b"", b"a.example", b"b.example"}
    assert stage.cause(alert("Resume")) == {AlertState.DONE: 1}
    assert {*stage.redis.hkeys(stage.keys.paused)} == {b"a.example", b"b.example"}


def test_dead_letters_are_sent_again_but_not_those_that_die_meanwhile(stage: Stage) -> None:
    assert stage.receive(alert("Dead")) == [AlertOutcome.NOT_NEEDED]
    stage.is_dead(callback(1))
    assert stage.receive(alert("Dead")) == [AlertOutcome.ACCEPTED]
    admitted_ms = int(stage.redis.zrange(stage.keys.alert_times, 0, -1, withscores=True)[0][1])
    until(lambda: stage.do(stage.queue.store_now_ms()) > admitted_ms + 50)
    stage.is_dead(callback(2))
    assert stage.act() == {AlertState.DONE: 1}
    assert stage.holds("pending") == [callback(1)]
    assert stage.redis.zcard(stage.keys.dead) == 1


def test_a_dry_run_is_limited_and_audited_and_changes_nothing(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    assert stage.receive(alert("Look"), alert("Look"), alert("Look", "2")) == ["dry_run", "duplicate", "cooldown"]
    assert stage.act() == {AlertState.DRY_RUN: 1}
    assert stage.holds("processing") == [callback(1)]
    assert stage.audited() == [("alert:look-fingerprint", "recover", "dry_run")]


def test_looking_changes_nothing(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    names = {*stage.redis.keys("*")}
    looked = stage.do(stage.desk.responder.look([alert("Stuck"), alert("Look"), alert("Lock")]))
    assert [one.outcome for one in looked] == ["accepted", "dry_run", "not_needed"]
    assert {*stage.redis.keys("*")} == names
    assert not stage.desk.counted
    assert not stage.desk.woken


def test_a_pause_of_alerts_holds_up_what_is_written_down_too(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    assert stage.receive(alert("Stuck")) == [AlertOutcome.ACCEPTED]
    stage.operate(PauseAlerts(QUEUE))
    assert stage.act() == {}
    assert stage.receive(alert("Pause")) == [AlertOutcome.PAUSED]
    stage.operate(ResumeAlerts(QUEUE))
    assert stage.act() == {AlertState.DONE: 1}
    results = [(one.operation, str(one.result)) for one in stage.entries if one.actor.trigger is Trigger.CLI]
    assert results == [(name, end) for name in ("pause_alerts", "resume_alerts") for end in ("started", "done")]


def test_nobody_acts_on_what_is_too_old_or_never_ends(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    assert stage.receive(alert("Stuck")) == [AlertOutcome.ACCEPTED]
    (name,) = stage.redis.zrange(stage.keys.alerts_open, 0, -1)
    stage.redis.zincrby(stage.keys.alerts_open, -STALE * 1000 - 1000, name)
    assert stage.act() == {AlertState.EXPIRED: 1}
    assert stage.audited() == [("alert:stuck-fingerprint", "recover", "refused")]
    assert stage.holds("pending") == []

    assert stage.receive(alert("Pause")) == [AlertOutcome.ACCEPTED]
    for _ in range(3):
        assert stage.do(stage.alerts.take()) is not None
        stage.redis.delete(stage.keys.alerts_turn)
    assert stage.act() == {AlertState.FAILED: 1}
    assert not stage.redis.exists(stage.keys.paused)


def test_what_somebody_else_did_meanwhile_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage.receive(alert("Pause")) == [AlertOutcome.ACCEPTED]
    execute = stage.desk.operations.execute

    async def late(plan: Any, **options: Any) -> Any:
        if options["actor"].trigger is Trigger.ALERT:
            other = await stage.desk.operations.plan(Pause(QUEUE))
            await execute(other, actor=Actor(Trigger.CLI, "alice"))
        return await execute(plan, **options)

    monkeypatch.setattr(stage.desk.operations, "execute", late)
    assert stage.act() == {AlertState.CHANGED: 1}


class Slow:
    """Lets the operation of an alert wait, once it has begun, until ``go_on``."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        expired = stage.desk.store.healing[QUEUE].expired
        recover = expired.recover

        async def late(most: int) -> Any:
            self.begun.set()
            await self.go_on.wait()
            return await recover(most)

        monkeypatch.setattr(store_alerts, "TURN", 0.3)
        monkeypatch.setattr(expired, "recover", late)
        assert stage.desk.operations._parts[QUEUE].healing.expired is expired


def test_a_turn_lasts_as_long_as_its_action_and_nobody_else_begins(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(stage, monkeypatch)
    stage.is_stuck(callback(1))
    assert stage.receive(alert("Stuck")) == [AlertOutcome.ACCEPTED]

    async def work() -> None:
        acting = asyncio.create_task(stage.desk.responder.run_once())
        await slow.begun.wait()
        other = Desk(stage.connections, stage.config).responder
        ends_monotonic = asyncio.get_running_loop().time() + 3 * store_alerts.TURN
        while asyncio.get_running_loop().time() < ends_monotonic:
            assert not (await other.run_once()).ended
            await asyncio.sleep(0.02)
        slow.go_on.set()
        assert (await acting).ended == {AlertState.DONE: 1}

    stage.do(work())
    assert stage.audited() == ONCE


def test_whoever_lost_its_turn_stops(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(stage, monkeypatch)
    stage.is_stuck(callback(1))
    assert stage.receive(alert("Stuck")) == [AlertOutcome.ACCEPTED]

    async def work() -> None:
        acting = asyncio.create_task(stage.desk.responder.run_once())
        await slow.begun.wait()
        stage.redis.set(stage.keys.alerts_turn, "somebody else's", ex=60)
        assert not (await acting).ended

    stage.do(work())
    assert stage.holds("processing") == [callback(1)]
    assert [result for _, _, result in stage.audited()] == ["started", "failed"]
    assert stage.redis.zcard(stage.keys.alerts_open) == 1  # theirs


def test_a_store_that_is_away_fails_the_rest_and_what_was_decided_stands(stage: Stage) -> None:
    stage.is_stuck(callback(1))
    broken = Breaking(stage.connections, after=8, error=StoreUnavailable("away", kind="connect"))
    desk = Desk(broken, stage.config)
    with pytest.raises(StoreUnavailable):
        stage.do(desk.responder.receive([alert("Stuck"), alert("Pause"), alert("Down", destination="a")]))
    assert desk.counted[AlertOutcome.ACCEPTED] == 1
    assert desk.counted[AlertOutcome.FAILED] == 2
    assert desk.woken == 1
    again = stage.receive(alert("Stuck"), alert("Pause"), alert("Down", destination="a"))
    assert again == ["duplicate", "accepted", "accepted"]


# --- crashes ---------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a process."""


class Breaking(Connections):
    """``inner``, until so many scripts and commands were run; then ``error``, before the next or after it."""

    def __init__(self, inner: Connections, *, after: int, error: BaseException, late: bool = False) -> None:
        self.shown_as = inner.shown_as
        self._inner = inner
        self._left = after
        self._error = error
        self._late = late
        self.broke = False

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self._step(late=False)
        answer = await self._inner.run(script, keys, args)
        self._step(late=True)
        return answer

    async def read(self, *command: Any) -> Any:
        self._step(late=False)
        return await self._inner.read(*command)

    async def read_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self._step(late=False)
        return await self._inner.read_many(commands)

    async def close(self) -> None:
        """The inner ones stay open."""

    def _step(self, *, late: bool) -> None:
        if late is not self._late:
            return
        if self._left <= 0:
            self.broke = True
            raise self._error
        self._left -= 1


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["Stuck", "Lock", "Pause", "Dead"])
def test_a_crash_at_any_step_neither_repeats_nor_forgets(stage: Stage, name: str, late: bool) -> None:
    """The daemon ends around its n-th step, for every n. Alertmanager, where it has no answer, sends it again."""
    steps = 0
    while True:
        stage.redis.flushall()
        stage.redis.script_flush()
        if name == "Stuck":
            stage.is_stuck(callback(1), callback(2))
        elif name == "Lock":
            stage.redis.set(stage.keys.lock, STALE_LOCK)
            stage.lock_is_old()
        elif name == "Dead":
            stage.is_dead(callback(1), callback(2))
        dying = Breaking(stage.connections, after=steps, error=Killed(), late=late)
        answered = stage.do(_until_killed(Desk(dying, stage.config), alert(name)))
        if not answered:
            assert stage.receive(alert(name)) in (["accepted"], ["duplicate"])
        stage.redis.delete(stage.keys.alerts_turn)  # thirty seconds later
        ended = stage.act()
        assert sum(ended.values()) <= 1
        _was_done_once(stage, name)
        states = [one.state for one in stage.do(stage.alerts.newest(10))]
        assert states in ([AlertState.DONE], [AlertState.NOT_NEEDED])  # it was done, and only its end is not known
        if not dying.broke:
            break
        steps += 1
    assert steps > (5 if late else 10)


async def _until_killed(desk: Desk, one: Alert) -> bool:
    """Whether Alertmanager had an answer."""
    answered = False
    with contextlib.suppress(Killed):
        await desk.responder.receive([one])
        answered = True
        await desk.responder.run_once()
    return answered


def _was_done_once(stage: Stage, name: str) -> None:
    done = [one for one in stage.audited() if one[2] == "done"]
    assert len(done) <= 1
    if name == "Stuck":
        assert stage.holds("pending") == [callback(1), callback(2)]
        assert stage.holds("processing") == []
    elif name == "Lock":
        assert not stage.redis.exists(stage.keys.lock)
    elif name == "Pause":
        assert stage.redis.hkeys(stage.keys.paused) == [b""]
    else:
        assert sorted(stage.holds("pending")) == [callback(1), callback(2)]
        assert stage.redis.zcard(stage.keys.dead) == 0


# --- races -----------------------------------------------------------------------------------


def replica(stage: Stage, *alerts: Alert) -> Runs:
    """A daemon that receives alerts and acts on what is written down, once."""

    async def run(gate: Gate) -> tuple[list[AlertOutcome], int]:
        desk = Desk(gate.connections(stage.connections), stage.config)
        received = await desk.responder.receive(alerts)
        report = await desk.responder.run_once()
        return [one.outcome for one in received], report.ended.get(AlertState.DONE, 0)

    return run


def test_two_replicas_with_the_same_alert_act_once(stage: Stage) -> None:
    def prepare() -> None:
        stage.redis.flushdb()
        # Not by the loop that the race runs in: what a look at processing would write.
        stage.redis.rpush(stage.keys.processing, callback(1))
        stage.redis.zadd(stage.keys.sightings, {f"{_sha1(callback(1))}#0": 1})

    def check(ends: Ends) -> None:
        outcomes = sorted(outcome for received, _ in (ends["one"], ends["two"]) for outcome in received)
        assert outcomes.count("accepted") == 1
        assert set(outcomes) <= {"accepted", "duplicate", "not_needed"}
        assert stage.redis.lrange(stage.keys.pending, 0, -1) == [callback(1)]
        results = [fields[b"result"] for _, fields in stage.redis.xrange(stage.keys.audit)]
        assert results == [b"started", b"done"]
        assert sum(done for _, done in (ends["one"], ends["two"])) == 1

    race = Race({"one": replica(stage, alert("Stuck")), "two": replica(stage, alert("Stuck"))}, prepare, check)
    ends = chosen_orders(race, stage.loop, examples=150)
    seen = {outcome for one in ends for received, _ in one.values() for outcome in received}
    assert {"accepted", "duplicate"} <= seen


def test_two_replicas_with_different_alerts_keep_the_limits_together(stage: Stage) -> None:
    def prepare() -> None:
        stage.redis.flushdb()

    def check(ends: Ends) -> None:
        outcomes = sorted(outcome for received, _ in ends.values() for outcome in received)
        assert outcomes.count("accepted") == 1
        assert set(outcomes) <= {"accepted", "cooldown", "not_needed"}
        assert sum(done for _, done in ends.values()) == 1

    actors = {name: replica(stage, alert("Pause", name)) for name in ("one", "two", "three")}
    chosen_orders(Race(actors, prepare, check), stage.loop, examples=100)


def _sha1(payload: bytes) -> str:
    return hashlib.sha1(payload, usedforsecurity=False).hexdigest()
