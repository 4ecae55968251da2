"""The operators' functions: the names and results of the existing project, done safely."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from cbq_exporter.django import (
    aclear_processing_queue,
    aforce_release_lock,
    aget_queue_status,
    areset_callback_queue,
    aundo_reset,
    clear_processing_queue,
    force_release_lock,
    get_queue_status,
    reset_callback_queue,
    undo_reset,
)
from cbq_exporter.errors import RefusedError, StoreMisuse, StoreUnavailable, UsageError
from tests.django.project.settings import DJANGO_OWN, DJANGO_REDIS, caches
from tests.support.acl import documented_user
from tests.support.queues import ExistingWorker, callback
from tests.support.servers import Server

WORKER = "worker_1764000000_4711"


def filled(server: Server) -> Any:
    """One that an existing worker died with: two pending, three in processing, its lock, without expiry."""
    redis: Any = server.client
    redis.rpush("callback_queue:pending", callback(1), callback(2))
    redis.rpush("callback_queue:processing", callback(3), callback(4), callback(5))
    redis.set("callback_queue:lock", WORKER)
    redis.set("callback_queue:last_send_time", "1764000000.25", ex=60)
    return redis


def audited(server: Server) -> list[tuple[str, str, str, str]]:
    """Actor, operation, result and reason of every entry."""
    redis: Any = server.client
    entries = [fields for _, fields in redis.xrange("callback_queue:audit")]
    return [
        (
            f"{entry[b'trigger'].decode()}:{entry[b'actor'].decode()}",
            *(entry[name].decode() for name in (b"operation", b"result", b"reason")),
        )
        for entry in entries
    ]


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [DJANGO_OWN, DJANGO_REDIS])
def test_status(server: Server, backend: str) -> None:
    with override_settings(CACHES=caches(server.url, backend)):
        assert get_queue_status() == {
            "pending_count": 0,
            "processing_count": 0,
            "lock_status": "unlocked",
            "lock_value": None,
            "last_send_time": None,
        }
        redis = filled(server)
        status = get_queue_status()
        assert asyncio.run(aget_queue_status()) == status
    assert status == {
        "pending_count": 2,
        "processing_count": 3,
        "lock_status": "locked",
        "lock_value": WORKER,
        "last_send_time": 1764000000.25,
    }
    existing = ExistingWorker(redis).status()
    assert (status["pending_count"], status["last_send_time"]) == (existing["pending"], existing["last_send"])


def test_a_lock_is_released_whoever_holds_it(redis: Server) -> None:
    assert force_release_lock() is False
    for expiry in (None, 30):
        redis.client.set("callback_queue:lock", WORKER, ex=expiry)
        assert force_release_lock() is True
        assert not redis.client.exists("callback_queue:lock")
    redis.client.set("callback_queue:lock", WORKER)
    assert asyncio.run(aforce_release_lock()) is True


def test_a_lock_that_is_not_the_expected_one_is_left(redis: Server) -> None:
    redis.client.set("callback_queue:lock", WORKER, ex=30)
    assert force_release_lock("worker_1_1") is False
    assert redis.client.get("callback_queue:lock") == WORKER.encode()
    assert force_release_lock(WORKER) is True
    assert [entry[2] for entry in audited(redis)] == ["refused", "started", "done"]


def test_what_is_in_processing_goes_back_in_its_order(redis: Server) -> None:
    filled(redis).delete("callback_queue:lock")
    assert clear_processing_queue() == 3
    pending: Any = redis.client.lrange("callback_queue:pending", 0, -1)
    assert pending == [callback(number) for number in (3, 4, 5, 1, 2)]
    assert asyncio.run(aclear_processing_queue()) == 0


def test_while_a_worker_has_the_lock_it_goes_back_behind_the_rest(redis: Server) -> None:
    filled(redis)
    assert clear_processing_queue() == 3
    pending: Any = redis.client.lrange("callback_queue:pending", 0, -1)
    assert pending[:2] == [callback(1), callback(2)]
    assert sorted(pending[2:]) == [callback(3), callback(4), callback(5)]


def test_a_reset_can_be_undone(redis: Server) -> None:
    before = filled(redis)
    assert reset_callback_queue() is True
    assert not before.exists("callback_queue:pending", "callback_queue:processing", "callback_queue:lock")
    assert get_queue_status()["lock_status"] == "unlocked"
    assert undo_reset() == 5
    assert (get_queue_status()["pending_count"], get_queue_status()["processing_count"]) == (2, 3)
    assert asyncio.run(areset_callback_queue()) is True
    assert asyncio.run(areset_callback_queue()) is True  # nothing is left, and that is what was asked for
    assert asyncio.run(aundo_reset()) == 5
    assert undo_reset() == 0
    with pytest.raises(RefusedError, match="no reset 1 of callbacks"):
        undo_reset("1")


def test_a_reset_is_done_while_a_worker_holds_the_lock(redis: Server) -> None:
    """As the existing one is: what is under way is kept, and sent again after an undo."""
    filled(redis).expire("callback_queue:lock", 30)
    assert reset_callback_queue() is True
    assert get_queue_status()["pending_count"] == 0


def test_the_audit_says_who(redis: Server) -> None:
    redis.client.set("callback_queue:lock", WORKER)
    force_release_lock()
    redis.client.set("callback_queue:lock", WORKER)
    force_release_lock(by="alice", reason="hung since noon")
    host = socket.gethostname()
    entries = audited(redis)
    assert entries[0][0].startswith("cli:django ")
    assert entries[0][0].endswith(f"@{host}")
    assert entries[2:] == [
        (f"cli:django alice@{host}", "unlock", "started", "hung since noon"),
        (f"cli:django alice@{host}", "unlock", "done", "hung since noon"),
    ]


def test_with_the_permissions_that_are_documented(server: Server) -> None:
    filled(server)
    with documented_user(server, "observe") as url, override_settings(CACHES=caches(url)):
        assert get_queue_status()["processing_count"] == 3
        with pytest.raises(StoreMisuse, match="lacks a permission"):
            force_release_lock()
    with documented_user(server, "supervise") as url, override_settings(CACHES=caches(url)):
        assert get_queue_status()["processing_count"] == 3
        assert (force_release_lock(), clear_processing_queue(), reset_callback_queue()) == (True, 3, True)
        assert undo_reset() == 5


# --- which server, which queue -------------------------------------------------------------------

QUEUES = [{"name": "videos", "prefix": "v"}, {"name": "images", "prefix": "i", "mode": "observe"}]


def test_one_of_several_queues(redis: Server) -> None:
    redis.client.rpush("i:processing", callback(1))
    with override_settings(CBQ_EXPORTER={"queues": QUEUES}):
        with pytest.raises(UsageError, match=r"videos, images"):
            get_queue_status()
        with pytest.raises(UsageError, match="no queue 'audio'"):
            reset_callback_queue(queue="audio")
        assert get_queue_status("images")["processing_count"] == 1
        assert get_queue_status("videos")["processing_count"] == 0
        assert clear_processing_queue(queue="images") == 1  # a daemon may only observe it; a person may act


def test_a_configuration_file(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "cbq.yaml"
    file.write_text(json.dumps({"redis": {"url": server.url}, "queues": [{"name": "jobs", "prefix": "j"}]}))
    server.client.rpush("j:pending", callback(1))
    with override_settings(CBQ_EXPORTER={"config_file": file}, CACHES={}):
        assert get_queue_status()["pending_count"] == 1


def test_redis_away(server: Server) -> None:
    with override_settings(CACHES=caches("unix:///nowhere/s.sock")):
        began = time.monotonic()
        for ask in (get_queue_status, force_release_lock, clear_processing_queue, reset_callback_queue):
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                ask()
        assert time.monotonic() - began < 5


def test_a_key_of_another_type(redis: Server) -> None:
    redis.client.set("callback_queue:pending", "text")
    with pytest.raises(StoreMisuse, match="another type"):
        get_queue_status()
