"""What alerts may cause: admitted once, within the limits, and acted on one at a time, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cbq_exporter.model import AlertAction, AlertOutcome
from cbq_exporter.store import alerts as store_alerts
from cbq_exporter.store.alerts import UNKNOWN, Alerts, AlertsPause, AlertState, Intent, Limits, Turn, Verdict
from tests.support.queues import DrivenQueue
from tests.support.servers import Server

INTENT = Intent(
    alert="CbqStuckCallbacks",
    fingerprint="c0ffee",
    started="2026-11-25T00:00:00+00:00",
    place="alerts.routes[0]",
    route="r",
    target="t",
    action=AlertAction.RECOVER,
)
FREE = Limits(cooldown=0.0, max_per_hour=100)
ACCEPTED = Verdict(AlertOutcome.ACCEPTED, 0.0)
DUPLICATE = Verdict(AlertOutcome.DUPLICATE)
HOUR_MS = 3_600_000


class Scene:
    def __init__(self, driven: DrivenQueue) -> None:
        self.do, self.redis, self.keys = driven.do, driven.redis, driven.keys
        self.alerts = Alerts(driven.connections, driven.keys)

    def admit(self, alert_id: str, limits: Limits = FREE, intent: Intent = INTENT) -> Verdict:
        """It is only looked first, which must say the same and change nothing."""
        before = self.contents()
        would = self.do(self.alerts.admit(alert_id, intent, limits, only_look=True))
        assert self.contents() == before
        verdict = self.do(self.alerts.admit(alert_id, intent, limits))
        assert verdict.outcome is would.outcome
        return verdict

    def take(self) -> Turn | None:
        return self.do(self.alerts.take())

    def taken(self) -> Turn:
        turn = self.take()
        assert turn is not None
        return turn

    def end(self, turn: Turn, state: AlertState = AlertState.DONE) -> bool:
        return self.do(self.alerts.end(turn, state, "3 callbacks"))

    def turn_runs_out(self) -> None:
        assert 0 < self.redis.pttl(self.keys.alerts_turn) <= 30_000
        self.redis.pexpire(self.keys.alerts_turn, 0)

    def contents(self) -> dict[bytes, Any]:
        read = {
            b"hash": self.redis.hgetall,
            b"zset": lambda name: self.redis.zrange(name, 0, -1, withscores=True),
            b"string": self.redis.get,
        }
        return {name: read[self.redis.type(name)](name) for name in self.redis.keys("*")}


@pytest.fixture
def scene(each_server: Server) -> Iterator[Scene]:
    with DrivenQueue(each_server) as driven:
        yield Scene(driven)


def test_an_alert_is_admitted_once_until_it_ends_undone(scene: Scene) -> None:
    for state in AlertState:
        if state is AlertState.OPEN:
            continue
        assert scene.admit(state) == ACCEPTED
        assert scene.admit(state) == DUPLICATE
        turn = scene.taken()
        assert (turn.id, turn.taken, turn.intent) == (state, 1, INTENT)
        assert turn.admitted_at <= turn.now
        assert scene.admit(state) == DUPLICATE
        assert scene.end(turn, state)
        stays = state in (AlertState.DONE, AlertState.DRY_RUN)
        assert scene.admit(state) == (DUPLICATE if stays else ACCEPTED)
        if not stays:
            assert scene.end(scene.taken())
    assert scene.take() is None


def test_a_cooldown_holds_for_one_target(scene: Scene) -> None:
    limits = Limits(cooldown=300.0, max_per_hour=100)
    assert scene.admit("a", limits) == ACCEPTED
    verdict = scene.admit("b", limits)
    assert verdict.outcome is AlertOutcome.COOLDOWN
    assert 299 < (verdict.left or 0) <= 300
    elsewhere = Intent(**{name: getattr(INTENT, name) for name in INTENT.__struct_fields__} | {"target": "other"})
    assert scene.admit("b", limits, elsewhere) == ACCEPTED
    assert scene.end(scene.taken(), AlertState.FAILED)
    assert scene.admit("a", limits).outcome is AlertOutcome.COOLDOWN  # a failure counts
    scene.redis.pexpire(scene.keys.cooldown_of("t"), 0)
    assert scene.admit("a", limits) == ACCEPTED


def test_a_cooldown_that_is_made_shorter_holds_at_once(scene: Scene) -> None:
    assert scene.admit("a", Limits(cooldown=3600.0, max_per_hour=100)) == ACCEPTED
    scene.redis.set(scene.keys.cooldown_of("t"), f"a:{int(time.time() * 1000) - 200_000}", keepttl=True)
    verdict = scene.admit("b", Limits(cooldown=300.0, max_per_hour=100))
    assert verdict.outcome is AlertOutcome.COOLDOWN
    assert 90 < (verdict.left or 0) <= 101
    assert scene.admit("b", Limits(cooldown=100.0, max_per_hour=100)) == ACCEPTED


def test_what_was_done_before_the_clock_was_set_back_limits_nothing(scene: Scene) -> None:
    limits = Limits(cooldown=300.0, max_per_hour=1, repeat_after=600.0)
    ahead = 24 * HOUR_MS
    assert scene.admit("a", limits) == ACCEPTED
    assert scene.end(scene.taken())
    (action,) = scene.redis.zrange(scene.keys.actions_of("r"), 0, -1)
    scene.redis.zincrby(scene.keys.actions_of("r"), ahead, action)
    scene.redis.zincrby(scene.keys.alert_times, ahead, "a")
    scene.redis.set(scene.keys.cooldown_of("t"), f"a:{int(time.time() * 1000) + ahead}", px=ahead + 300_000)
    assert scene.admit("a", limits) == ACCEPTED
    turn = scene.taken()
    assert turn.id == "a"
    assert scene.take() is None
    assert scene.end(turn)
    assert scene.admit("b", limits).outcome is AlertOutcome.COOLDOWN
    assert scene.admit("b", Limits(cooldown=0.0, max_per_hour=1)).outcome is AlertOutcome.CAPPED


def test_a_cap_counts_the_last_hour(scene: Scene) -> None:
    limits = Limits(cooldown=0.0, max_per_hour=2)
    key = scene.keys.actions_of("r")
    assert [scene.admit(one, limits).outcome for one in "ab"] == [AlertOutcome.ACCEPTED] * 2
    verdict = scene.admit("c", limits)
    assert verdict.outcome is AlertOutcome.CAPPED
    assert 3590 < (verdict.left or 0) <= 3600
    assert 0 < scene.redis.pttl(key) <= HOUR_MS
    (oldest, _) = scene.redis.zrange(key, 0, -1)
    scene.redis.zincrby(key, -HOUR_MS, oldest)
    assert scene.admit("c", limits) == ACCEPTED
    assert oldest not in scene.redis.zrange(key, 0, -1)  # bounded
    assert scene.admit("d", limits).outcome is AlertOutcome.CAPPED


def test_the_same_firing_may_act_again_where_its_route_says_when(scene: Scene) -> None:
    limits = Limits(cooldown=0.0, max_per_hour=100, repeat_after=600.0)
    assert scene.admit("a", limits) == ACCEPTED
    assert scene.admit("a", limits) == DUPLICATE  # it has not ended yet
    assert scene.end(scene.taken())
    verdict = scene.admit("a", limits)
    assert verdict.outcome is AlertOutcome.DUPLICATE
    assert 590 < (verdict.left or 0) <= 600
    scene.redis.zincrby(scene.keys.alert_times, -600_000, "a")
    assert scene.admit("a") == DUPLICATE
    assert scene.admit("a", limits) == ACCEPTED


def test_what_was_not_needed_counts_for_no_limit(scene: Scene) -> None:
    limits = Limits(cooldown=300.0, max_per_hour=1)
    assert scene.admit("a", limits) == ACCEPTED
    assert scene.end(scene.taken(), AlertState.NOT_NEEDED)
    assert scene.admit("b", limits) == ACCEPTED
    assert scene.end(scene.taken(), AlertState.DONE)
    assert scene.admit("c", limits).outcome is AlertOutcome.COOLDOWN


def test_one_at_a_time_in_the_order_of_admission(scene: Scene) -> None:
    for one in "ab":
        scene.admit(one)
        scene.redis.zincrby(scene.keys.alerts_open, -HOUR_MS if one == "a" else 0, one)
    first = scene.taken()
    assert first.id == "a"
    assert scene.take() is None
    assert scene.do(scene.alerts.keep(first))
    assert scene.end(first)
    assert scene.taken().id == "b"


def test_whoever_lost_the_turn_can_say_nothing_any_more(scene: Scene) -> None:
    scene.admit("a")
    lost = scene.taken()
    scene.turn_runs_out()
    taken_up = scene.taken()
    assert (taken_up.id, taken_up.taken) == ("a", 2)
    assert not scene.do(scene.alerts.keep(lost))
    before = scene.contents()
    assert not scene.end(lost, AlertState.FAILED)
    assert scene.contents() == before
    assert scene.end(taken_up)
    assert scene.take() is None
    (listed,) = scene.do(scene.alerts.newest(10))
    assert (listed.state, listed.intent.detail) == (AlertState.DONE, "3 callbacks")


def test_a_pause_holds_up_everything(scene: Scene) -> None:
    scene.admit("a")
    scene.do(scene.alerts.pause(AlertsPause(1.0, "cli:alice", "maintenance", left=7200.0)))
    verdict = scene.admit("b")
    assert verdict.outcome is AlertOutcome.PAUSED
    assert 7190 < (verdict.left or 0) <= 7200
    assert scene.admit("a").outcome is AlertOutcome.PAUSED
    assert scene.take() is None  # also what was admitted before
    pause = scene.do(scene.alerts.paused())
    assert pause is not None
    assert (pause.by, pause.reason) == ("cli:alice", "maintenance")
    scene.do(scene.alerts.pause(AlertsPause(2.0, "cli:bob")))
    assert scene.admit("b") == Verdict(AlertOutcome.PAUSED)
    assert scene.do(scene.alerts.paused()) == AlertsPause(2.0, "cli:bob")
    assert scene.do(scene.alerts.resume())
    assert not scene.do(scene.alerts.resume())
    assert scene.do(scene.alerts.paused()) is None
    assert scene.taken().id == "a"
    assert scene.admit("b") == ACCEPTED


def test_what_is_remembered_is_bounded_by_count_and_age(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_alerts, "MOST", 3)
    for one in "abcdefgh":
        scene.admit(one)
        assert scene.end(scene.taken())
    names = [one.decode() for one in scene.redis.zrange(scene.keys.alert_times, 0, -1)]
    assert names == ["f", "g", "h"]
    assert {one.decode() for one in scene.redis.hkeys(scene.keys.alerts)} == {*names}
    scene.redis.zincrby(scene.keys.alert_times, -31 * 24 * HOUR_MS, "h")
    scene.admit("i")
    assert {one.decode() for one in scene.redis.hkeys(scene.keys.alerts)} == {"f", "g", "i"}
    assert scene.admit("h") == ACCEPTED


@pytest.mark.parametrize("text", [b"", b"open 1 {}", b"open 1 [", b"\xff", b"open x {}", b"nonsense"])
def test_what_somebody_else_wrote_is_nobodys_intent(scene: Scene, text: bytes) -> None:
    scene.admit("a")
    scene.redis.hset(scene.keys.alerts, "a", text)
    assert scene.do(scene.alerts.newest(1))[0].intent == UNKNOWN
    turn = scene.take()
    if turn is None:
        assert scene.redis.zcard(scene.keys.alerts_open) == 0
    else:
        assert turn.intent is UNKNOWN
        assert scene.end(turn, AlertState.FAILED)
