"""The doctor: what it finds on real servers, what it thinks of it, and that looking changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import fields, replace
from typing import Any

import pytest
import redis

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.model import LockRule, Mode
from cbq_exporter.services.doctor import Examination, Finding, Severity, examine, judge
from cbq_exporter.services.doctor.examination import TYPES, Comparison, Lock, Sample, compare
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.permissions import Missing, commands_of_scripts
from tests.support.queues import OURS, DrivenQueue, callback
from tests.support.servers import Server, major_version

KEYS = QueueKeys.of("callback_queue")
NOW = 1_764_000_000.0
HEALTHY = Examination(
    shown_as="redis://r",
    mode=Mode.DISPATCH,
    at=NOW,
    skew=0.1,
    info={
        "redis_version": "7.2.4",
        "maxmemory": "1000",
        "used_memory": "100",
        "maxmemory_policy": "noeviction",
        "aof_enabled": "1",
        "role": "master",
    },
    appendfsync="always",
    snapshots="",
    missing=Missing(),
    lengths={"pending": 5, "processing": 2, "leases": 2, "retry": 0, "dead": 0, "records": 0, "payloads": 0},
    sample=Sample(5, {}, NOW - 3),
    comparison=Comparison(0, 0, 0),
    lock=Lock("worker_1", 20.0),
    overdue=0,
    expired_leases=0,
    long_seen=0,
    last_beat_at=NOW - 2,
)


def _judge(seen: Examination, **more: Any) -> tuple[Finding, ...]:
    return judge(seen, queue="callbacks", stuck_after=300.0, lock_rule=LockRule(60.0, 600.0, dead_after=15.0), **more)


def _bad(seen: Examination) -> list[Finding]:
    return [finding for finding in _judge(seen) if finding.severity in (Severity.PROBLEM, Severity.WARNING)]


def test_nothing_is_wrong_with_a_healthy_queue() -> None:
    findings = _judge(HEALTHY)
    assert {finding.severity for finding in findings} == {Severity.OK}
    assert len({finding.check for finding in findings}) >= 12


def _info(**values: str) -> Examination:
    return replace(HEALTHY, info={**HEALTHY.info, **values})


@pytest.mark.parametrize(
    ("seen", "severity", "check", "found"),
    [
        (_info(redis_version="6.0.16"), "problem", "version", "redis 6.0.16"),
        (_info(valkey_version="7.1.9"), "problem", "version", "valkey 7.1.9"),
        (_info(redis_mode="cluster"), "problem", "version", "cluster"),
        (_info(redis_version="7.0.15"), "warning", "persistence", "Redis 7.0"),
        (_info(maxmemory_policy="allkeys-lru"), "problem", "eviction", "deletes whole lists"),
        (_info(maxmemory_policy="volatile-ttl"), "warning", "eviction", "the send lock"),
        (_info(used_memory="960"), "problem", "memory", "96%"),
        (_info(used_memory="850"), "warning", "memory", "85%"),
        (_info(aof_enabled="0"), "problem", "persistence", "loses every callback"),
        (replace(_info(aof_enabled="0"), snapshots="3600 1"), "warning", "persistence", "snapshots only"),
        (replace(_info(aof_enabled="0"), snapshots=None), "warning", "persistence", "no append-only file"),
        (replace(HEALTHY, appendfsync="no"), "warning", "persistence", "appendfsync no"),
        (_info(aof_last_write_status="err"), "problem", "persistence", "append-only file failed"),
        (_info(rdb_last_bgsave_status="err"), "problem", "persistence", "snapshot failed"),
        (_info(role="slave"), "problem", "replication", "it is a replica"),
        (_info(min_slaves_good_slaves="0"), "problem", "replication", "too few replicas"),
        (replace(HEALTHY, skew=-5.0), "warning", "clocks", "5.0 s behind"),
        (replace(HEALTHY, skew=5.0), "warning", "clocks", "5.0 s ahead of"),
        (replace(HEALTHY, sample=Sample(1, {}, NOW + 60)), "warning", "clocks", "producer's clock is 60.0 s ahead"),
        (replace(HEALTHY, refused=("LLEN q",)), "problem", "permissions", "LLEN q"),
        (replace(HEALTHY, missing=Missing(("LREM",), ("q:x",))), "problem", "permissions", "LREM, key q:x"),
        (replace(HEALTHY, foreign={"q:dead": "list"}), "problem", "keys", "q:dead is a list"),
        (replace(HEALTHY, sample=Sample(9, {"invalid_url": 2})), "warning", "items", "2 invalid_url"),
        (replace(HEALTHY, comparison=Comparison(0, 2, 0)), "warning", "leases", "2 leases without a callback"),
        (replace(HEALTHY, expired_leases=1), "warning", "leases", "1 lease ran out"),
        (replace(HEALTHY, overdue=3), "warning", "retries", "3 overdue"),
        (replace(HEALTHY, lengths={**HEALTHY.lengths, "retry": 2}), "problem", "retries", "2 of the retries"),
        (replace(HEALTHY, last_beat_at=NOW - 400), "problem", "daemon", "7m old, and callbacks wait"),
        (replace(HEALTHY, last_beat_at=None, lengths={}), "warning", "daemon", "no daemon has given a sign"),
        (replace(HEALTHY, lock=Lock("worker_1", None)), "problem", "lock", "cannot expire"),
        (replace(HEALTHY, lock=Lock("worker_1", 7200.0)), "problem", "lock", "for another 2h"),
        (replace(HEALTHY, comparison=Comparison(2, 0, 0), long_seen=2), "warning", "processing", "more than 5m ago"),
        (replace(HEALTHY, comparison=Comparison(2, 0, 1)), "warning", "processing", "more than once"),
        (
            replace(HEALTHY, lengths={**HEALTHY.lengths, "dead": 1, "payloads": 1}),
            "warning",
            "dead",
            "1 dead letter",
        ),
        (replace(HEALTHY, paused=("",)), "warning", "paused", "the queue is paused"),
        (replace(HEALTHY, paused=("a.example",)), "warning", "paused", "a.example"),
        (replace(HEALTHY, left_alone=("a.example",)), "warning", "receivers", "a.example left alone"),
        (
            replace(HEALTHY, lengths={**HEALTHY.lengths, "trash": 1}, oldest_trash_until=NOW - 86_400),
            "warning",
            "trash",
            "24h ago",
        ),
    ],
)
def test_one_thing_is_wrong(seen: Examination, severity: str, check: str, found: str) -> None:
    """It is found, with what to do; and nothing else is."""
    (finding,) = _bad(seen)
    assert (finding.severity, finding.check) == (severity, check)
    assert found in finding.found
    assert finding.todo


def test_what_stops_callbacks_comes_before_what_may_lose_them() -> None:
    seen = replace(_info(aof_enabled="0", rdb_last_bgsave_status="err"), last_beat_at=None)
    assert [(one.check, one.found[:8]) for one in _bad(seen)] == [
        ("persistence", "the last"),
        ("daemon", "no daemo"),
        ("persistence", "off: a r"),
    ]


def test_what_is_to_be_done_about_a_pause_can_be_typed_as_it_stands() -> None:
    (finding,) = _bad(replace(HEALTHY, paused=("a.example",)))
    assert finding.todo.endswith("cbq-exporter resume -q callbacks --destination a.example")


@pytest.mark.parametrize(
    ("seen", "check", "found"),
    [
        (replace(HEALTHY, appendfsync="everysec"), "persistence", "up to a second"),
        (_info(maxmemory_policy="allkeys-lru", maxmemory="0"), "eviction", "without effect"),
        (replace(_info(role="slave"), mode=Mode.OBSERVE, lengths={}), "replication", "a replica"),
        (replace(HEALTHY, mode=Mode.OBSERVE), "mode", "observe: a daemon of this configuration only looks"),
        (replace(HEALTHY, mode=Mode.SUPERVISE), "mode", "supervise: a daemon of this configuration heals, and sends"),
        (replace(HEALTHY, missing=None), "permissions", "before Redis 7"),
        (replace(HEALTHY, refused=("CONFIG GET",)), "permissions", "CONFIG GET"),
        (replace(HEALTHY, comparison=Comparison(1, 0, 0)), "processing", "other workers are sending"),
        (
            replace(HEALTHY, lengths={**HEALTHY.lengths, "trash": 1}, oldest_trash_until=NOW + 86_400 * 3),
            "trash",
            "1 reset kept; the oldest for another 3d",
        ),
    ],
)
def test_good_to_know(seen: Examination, check: str, found: str) -> None:
    assert _bad(seen) == []
    (finding,) = (finding for finding in _judge(seen) if finding.severity == Severity.NOTE)
    assert finding.check == check
    assert found in finding.found


def test_the_worst_comes_first_and_the_configuration_is_judged_as_well() -> None:
    seen = replace(HEALTHY, foreign={"q:dead": "list"}, appendfsync="everysec")
    severities = [finding.severity for finding in _judge(seen, config_warnings=["queues[0]: odd"])]
    assert severities == sorted(severities, key=list(Severity).index)
    assert severities[:3] == [Severity.PROBLEM, Severity.WARNING, Severity.NOTE]


def test_a_server_that_is_down_is_all_there_is_to_say() -> None:
    (finding,) = _judge(Examination("redis://r", Mode.DISPATCH, error="cannot be reached"))
    assert (finding.severity, finding.found) == (Severity.PROBLEM, "cannot be reached")


def test_ghosts_and_empty_leases() -> None:
    def lease(payload: bytes) -> bytes:
        sha = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
        return f"1764000000000-1-1|{sha}|0|0|1764000000000".encode()

    assert compare([b"a", b"b"], [lease(b"a"), lease(b"b")]) == Comparison(0, 0, 0)
    assert compare([b"a", b"b", b"b", b"b"], [lease(b"a")]) == Comparison(3, 0, 2)
    assert compare([b"b", b"b"], [lease(b"b")]) == Comparison(1, 0, 0)
    assert compare([b"a"], [lease(b"a"), lease(b"b"), b"no lease"]) == Comparison(0, 2, 0)


def test_the_type_of_every_key_is_known() -> None:
    assert {field.name for field in fields(QueueKeys)} <= set(TYPES)


# --- on real servers -----------------------------------------------------------------------------


def _examine(url: str, mode: Mode = Mode.DISPATCH, clock: Clock = SYSTEM_CLOCK) -> Examination:
    async def work() -> Examination:
        connections = Connections(url, shown_as="test")
        try:
            return await examine(connections, KEYS, mode, stuck_after=300.0, clock=clock)
        finally:
            await connections.close()

    return asyncio.run(work())


def test_an_empty_store(each_server: Server) -> None:
    seen = _examine(each_server.url)
    assert seen.error is None
    assert seen.refused == ()
    assert seen.foreign == {}
    assert seen.missing == (Missing() if major_version(each_server.kind) >= 7 else None)
    assert seen.lock_is_free
    assert (seen.appendfsync, seen.snapshots, seen.info["aof_enabled"]) == ("everysec", "", "0")
    assert set(seen.lengths.values()) == {0}
    assert [finding.check for finding in _bad(seen)] == ["persistence", "daemon"]


def test_a_queue_that_nobody_has_used_may_be_the_wrong_one(server: Server) -> None:
    def told() -> list[str]:
        return [one.found for one in _judge(_examine(server.url)) if one.check == "queue"]

    assert told() == ["no trace of a callback, nor any key on this server"]
    redis.Redis(unix_socket_path=str(server.socket), db=3).set("a", 1)
    server.client.set("callback_queue:schema", 1)  # only a daemon was here
    assert told() == ["no trace of a callback; this server has keys in db0 (1), db3 (1)"]
    server.client.set("callback_queue:stats:queued", 1)
    assert told() == []


def test_looking_changes_nothing_and_finds_what_is_there(each_server: Server) -> None:
    client: Any = each_server.client
    with DrivenQueue(each_server) as driven:
        client.rpush(KEYS.pending, callback(1), callback(2))
        driven.claim()
        client.rpush(KEYS.processing, b"ghost", b"ghost", callback(9))
        client.rpush(KEYS.pending, callback(3), b"{broken", b'{"url": 5}')
        client.zadd(KEYS.leases, {"no lease": 1})
        client.zadd(KEYS.retry, {"x": 1})
        client.zadd(KEYS.sightings, {"a#0": (time.time() - 400) * 1000, "b#0": (time.time() - 200) * 1000})
        client.zadd(KEYS.daemons, {"d1": 5000, "d2": 9000})
        client.zadd(KEYS.trash, {"t1": 7000})
        client.hset(KEYS.paused, mapping={"": "{}", "a.example": "{}"})
        client.hset(KEYS.breakers, "b.example", "open 1764000030000 1 1764000000000")
        client.set(KEYS.fence, "5")
        client.rpush(KEYS.dead, "what is this")
        before = driven.contents()
        seen = _examine(each_server.url)
        assert driven.contents() == before
    assert seen.sample == Sample(3, {"invalid_json": 1, "invalid_url": 1}, 1764000000.123)
    assert seen.comparison == Comparison(untracked=3, empty_leases=1, repeated=1)
    assert seen.foreign == {KEYS.dead: "list"}
    assert seen.lock is not None
    assert seen.lock.value == OURS
    assert seen.lock.ttl is not None
    assert 0 < seen.lock.ttl <= 30
    assert (seen.overdue, seen.expired_leases, seen.long_seen) == (1, 1, 1)
    assert (seen.last_beat_at, seen.oldest_trash_until) == (9.0, 7.0)
    assert set(seen.paused) == {"", "a.example"}
    assert seen.left_alone == ("b.example",)
    assert "dead" not in seen.lengths


def test_a_clock_that_is_wrong(server: Server) -> None:
    class Behind:
        def now(self) -> float:
            return time.time() - 100

        def monotonic(self) -> float:
            return time.monotonic()

    seen = _examine(server.url, clock=Behind())
    assert seen.skew == pytest.approx(100, abs=1)


def test_long_queues_are_not_read_as_a_whole(server: Server) -> None:
    client: Any = server.client
    big = callback(1, size=100_000)
    for _ in range(10):
        client.rpush(KEYS.pending, *[big] * 100)
        client.rpush(KEYS.processing, *[big] * 100)
    before = client.info("stats")["total_net_output_bytes"]
    seen = _examine(server.url)
    sent = client.info("stats")["total_net_output_bytes"] - before
    assert sent < 4 * 1024 * 1024  # of 200 MB
    assert 2 <= seen.sample.looked_at <= 30
    assert seen.comparison is None
    assert seen.lengths["processing"] == 1000


def test_what_a_user_of_few_permissions_lacks(each_server: Server) -> None:
    client: Any = each_server.client
    url = f"unix://few:secret@{each_server.socket}"

    def found(mode: Mode, *rules: str) -> Examination:
        client.execute_command("ACL", "SETUSER", "few", "reset", "on", ">secret", "-@all", *rules)
        return _examine(url, mode)

    try:
        all_but_one = ("+@all", "-@dangerous", "+info", "~callback_queue:*")
        if major_version(each_server.kind) < 7:  # it does not tell
            assert found(Mode.DISPATCH, *all_but_one, "-lrem").missing is None
            return
        assert found(Mode.DISPATCH, *all_but_one).missing == Missing()
        assert found(Mode.DISPATCH, *all_but_one, "-lrem", "-blmove").missing == Missing(("LREM", "BLMOVE"))
        assert found(Mode.SUPERVISE, *all_but_one, "-blmove").missing == Missing()
        assert found(Mode.SUPERVISE, *all_but_one, "-evalsha").missing == Missing(("EVALSHA",))
        others = [f"~{key}" for key in KEYS.all() if key != KEYS.dead]
        assert found(Mode.SUPERVISE, "+@all", "-@dangerous", "+info", *others).missing == Missing((), (KEYS.dead,))
        seen = found(Mode.OBSERVE, "+@connection", "+info", "+llen", "~callback_queue:*")
        assert seen.missing is None
        assert f"GET {KEYS.lock}" in seen.refused
        assert not any(name.startswith("LLEN") for name in seen.refused)
    finally:
        client.execute_command("ACL", "DELUSER", "few")


def test_the_commands_of_the_scripts_are_found() -> None:
    assert {"LREM", "ZADD", "HSET", "LMOVE", "SET", "DEL"} <= set(commands_of_scripts())


def test_a_store_that_is_down(tmp_path: Any) -> None:
    seen = _examine(f"unix://{tmp_path}/none.sock")
    assert seen.error is not None
    assert "cannot be reached" in seen.error
