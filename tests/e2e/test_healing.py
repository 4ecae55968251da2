"""Real daemons beside workers that die: what these leave behind is found, and taken back by the rules."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.bare_client import PREFIX, item, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon, queue, until
from tests.support.servers import Server

LOCK, PROCESSING, PENDING = f"{PREFIX}:lock", f"{PREFIX}:processing", f"{PREFIX}:pending"
THEIRS = "worker_1764000000_1234"
LONG_AGO = 1_700_000_000.0  # _queued_at: no reason for anything

# Everything is quick, and two seconds are long ago.
QUICK: dict[str, Any] = {
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"every": "100ms", "stuck_after": "2s", "max_recoveries": 2},
    "lock": {"ttl": "1s", "check_every": "100ms", "stale": {"no_ttl_after": "1s", "max_ttl": "60s"}},
}


def released(daemon: Daemon, reason: str) -> float:
    return daemon.metrics().get("cbq_lock_releases_total", reason=reason) or 0.0


def audit(server: Server, operation: str) -> list[dict[bytes, bytes]]:
    client: Any = server.client
    entries = [fields for _, fields in client.xrange(f"{PREFIX}:audit")]
    return [fields for fields in entries if operation.encode() in fields.values()]


def test_a_lock_without_expiry_goes_and_the_daemon_sends(server: Server) -> None:
    server.client.set(LOCK, THEIRS)
    with CountingReceiver() as receiver, Daemon(server.url, queue(QUICK)) as daemon:
        server.client.rpush(PENDING, item(receiver.url, 1))
        began = time.monotonic()
        until(lambda: daemon.metrics().get("cbq_lock_first_seen_timestamp_seconds"))
        assert daemon.metrics().get("cbq_lock_stale") == 0
        wait_until_settled(server.client)
        assert time.monotonic() - began > 0.9
        assert released(daemon, "no_ttl") == 1
        assert len(audit(server, "unlock")) == 2  # begun, and done


@pytest.mark.parametrize(
    ("value", "ttl_ms", "reason"),
    [(THEIRS, 3_600_000, "ttl_beyond_max"), ("cbq-exporter_1764000000_host_dead", 50_000, "holder_dead")],
)
def test_what_else_is_left_behind_goes_too(server: Server, value: str, ttl_ms: int, reason: str) -> None:
    server.client.set(LOCK, value, px=ttl_ms)
    with Daemon(server.url, queue(QUICK, mode="supervise")) as daemon:
        until(lambda: not server.client.exists(LOCK))
        until(lambda: released(daemon, reason) == 1)


def test_a_lock_with_a_sane_ttl_or_a_living_holder_stays(server: Server) -> None:
    server.client.set(LOCK, THEIRS, ex=50)
    # Shorter than the holder is watched, and longer than a busy machine lets it wait between two signs of life.
    patient = {"stale": {"no_ttl_after": "2500ms", "max_ttl": "60s"}}
    with Daemon(server.url, queue(QUICK, mode="supervise", lock=patient)) as daemon:
        runs = "cbq_task_runs_total"
        until(lambda: (daemon.metrics().get(runs, task="check-lock:callbacks") or 0) > 15)
        assert server.client.get(LOCK) == THEIRS.encode()
        # Prolonged beyond the maximum, again and again: its holder lives.
        for _ in range(20):
            server.client.set(LOCK, THEIRS, ex=3600)
            time.sleep(0.1)  # the holder's pace
            server.client.expire(LOCK, 3700)
            time.sleep(0.1)
        assert server.client.get(LOCK) == THEIRS.encode()
        assert daemon.metrics().get("cbq_lock_releases_total") == 0


def test_where_it_is_only_to_look_it_counts_and_touches_nothing(server: Server) -> None:
    look_only = queue(QUICK, mode="supervise", recovery={"auto": False}, lock={"stale": {"auto": False}})
    server.client.set(LOCK, THEIRS)
    server.client.rpush(PROCESSING, item("http://127.0.0.1:9/", 1))
    with Daemon(server.url, look_only) as daemon:
        until(lambda: daemon.metrics().get("cbq_lock_stale") == 1)
        until(lambda: daemon.metrics().get("cbq_stuck_callbacks") == 1)
        assert server.client.get(LOCK) == THEIRS.encode()
        assert server.client.llen(PROCESSING) == 1
        assert not server.client.exists(f"{PREFIX}:audit")


def test_what_a_worker_left_is_sent_only_after_it_was_seen_for_long_enough_restarts_included(server: Server) -> None:
    with CountingReceiver() as receiver:
        config = queue(QUICK)
        with Daemon(server.url, config) as daemon:
            server.client.rpush(PROCESSING, *(item(receiver.url, n, queued_at=LONG_AGO) for n in range(3)))
            until(lambda: server.client.zcard(f"{PREFIX}:sightings") == 3)
            first_seen = time.monotonic()
            daemon.kill()
        with Daemon(server.url, config) as daemon:
            wait_until_settled(server.client)
            assert 1.9 < time.monotonic() - first_seen < 10
            assert list(receiver.accepted.values()) == [1, 1, 1]
            assert daemon.metrics().get("cbq_recovered_callbacks_total", trigger="schedule") == 3
            assert len(audit(server, "recover")) >= 2


def test_one_that_gets_stuck_again_and_again_ends_as_a_dead_letter(server: Server) -> None:
    poison = item("http://127.0.0.1:9/", 1)
    server.client.rpush(PROCESSING, poison)
    with Daemon(server.url, queue(QUICK, mode="supervise", recovery={"stuck_after": "600ms"})) as daemon:
        for recovery in range(2):
            until(lambda: server.client.lmove(PENDING, PROCESSING, "LEFT", "RIGHT"), what=recovery)
        until(lambda: daemon.metrics().get("cbq_recovery_ineffective_callbacks") == 1)
        until(lambda: server.client.zcard(f"{PREFIX}:dead") == 1)
        assert server.client.hvals(f"{PREFIX}:payloads") == [poison]
        assert daemon.metrics().get("cbq_callbacks_dead_total", reason="poison") == 1


def test_two_that_supervise_recover_each_once(server: Server) -> None:
    config = queue(QUICK, mode="supervise")
    count = 500
    server.client.rpush(PROCESSING, *(item("http://127.0.0.1:9/", n) for n in range(count)))
    before = server.client.lrange(PROCESSING, 0, -1)
    with Daemon(server.url, config) as one, Daemon(server.url, config) as other:
        until(lambda: server.client.llen(PENDING) == count)
        until(lambda: sum(d.metrics().get("cbq_recovered_callbacks_total") or 0 for d in (one, other)) == count)
        assert server.client.lrange(PENDING, 0, -1) == before
        assert server.client.llen(PROCESSING) == 0
