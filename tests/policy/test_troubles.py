"""What an operator is told to look at."""

from __future__ import annotations

from typing import Any

import pytest

from cbq_exporter.model import LockLook, LockRule, LockView, Mode, QueueView, Snapshot, State
from cbq_exporter.policy.troubles import store_troubles, troubles

NOW = 1000.0
RULE = LockRule(no_ttl_after=60.0, max_ttl=600.0, dead_after=15.0)
THEIRS = b"worker_1"


def trouble(mode: Mode = Mode.DISPATCH, **fields: Any) -> list[str]:
    return troubles(QueueView("q", mode, lock_rule=RULE, **fields), NOW)


def look(ttl: float | None, since: float) -> dict[str, Any]:
    return {
        "lock": LockView(THEIRS.decode(), ttl, ours=False),
        "lock_look": LockLook(THEIRS, ttl, NOW - since, NOW - since, None, NOW),
    }


def test_a_queue_that_works_has_none() -> None:
    works: dict[str, Any] = {"lengths": {State.PENDING: 5}, "lock": LockView("daemon_1", 20.0, ours=True)}
    works |= {"stuck": 0, "retry_overdue": 0, "paused": False, "paused_destinations": 0}
    assert trouble(**works, oldest_at={State.PENDING: NOW - 10}) == []
    assert trouble(**works, oldest_at={State.PENDING: NOW - 100}) == ["callbacks wait for more than a minute"]


def test_only_where_a_daemon_is_to_send_is_it_missed() -> None:
    waits: dict[str, Any] = {"lengths": {State.PENDING: 1}, "oldest_at": {State.PENDING: NOW - 100}}
    assert trouble(**waits) == ["nobody sends: is the daemon running?"]
    theirs = trouble(Mode.SUPERVISE, **waits)
    assert theirs == trouble(Mode.OBSERVE, **waits) == ["callbacks wait for more than a minute"]
    for state in (State.PENDING, State.PROCESSING, State.RETRY):
        there: dict[str, Any] = {"lengths": {state: 3}}  # since when does not matter
        assert trouble(**there) == ["nobody sends: is the daemon running?"]
        assert trouble(**there, lock=LockView("daemon_1", 20.0, ours=True)) == []
        assert trouble(Mode.OBSERVE, **there) == trouble(lengths={state: 0}) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"error": "q:retry holds another type"}, ["q:retry holds another type"]),
        ({"paused": True, "alerts_paused": True}, ["paused by an operator", "actions on alerts paused by an operator"]),
        (
            {"paused_destinations": 1, "failing_destinations": 2},
            ["1 destination paused", "2 destinations left alone for failing"],
        ),
        (
            {"stuck": 1234, "retry_overdue": 1},
            ["1,234 stuck in processing: their sender is gone", "1 retry overdue"],
        ),
    ],
)
def test_each_is_named(fields: dict[str, Any], expected: list[str]) -> None:
    assert trouble(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"disk_write_failed": False, "memory_used": 9, "memory_max": 10, "replica": False}, []),
        ({"disk_write_failed": True}, ["the server's last write to its disk failed: it may refuse every change"]),
        (
            {"memory_used": 10, "memory_max": 10},
            ["the server's memory is full: producers are refused, or keys are evicted"],
        ),
        ({"replica": True}, ["the server is a replica: it refuses every change"]),
    ],
)
def test_what_all_queues_suffer_from(fields: dict[str, Any], expected: list[str]) -> None:
    def seen(mode: Mode) -> Snapshot:
        return Snapshot(up=True, at=NOW, duration=0.1, queues=(QueueView("q", mode),), **fields)

    assert store_troubles(seen(Mode.SUPERVISE)) == expected
    observed = store_troubles(seen(Mode.OBSERVE))
    assert observed == ([] if fields.get("replica") else expected), "a replica may be looked at"


def test_what_is_thought_of_a_lock() -> None:
    assert trouble(lock=LockView("worker_1", 100_000.0, ours=False)) == ["the lock expires only in 1d3h"]
    assert trouble(**look(ttl=20.0, since=5)) == []
    assert trouble(**look(ttl=None, since=20)) == [
        "the lock cannot expire by itself",
        "the lock is taken to be left behind in 40s (no expiry)",
    ]
    assert trouble(**look(ttl=7200.0, since=90)) == [
        "the lock expires only in 2h00m",
        "the lock was left behind (its TTL is too long, untouched for 1m30s)",
    ]
