"""``callback_enqueue``: at once or when the transaction commits."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils.translation import gettext_lazy

from cbq_exporter.django import acallback_enqueue, callback_enqueue
from cbq_exporter.errors import EnqueueError, InvalidCallback, StoreUnavailable, UsageError
from tests.django.project.settings import caches
from tests.support.daemons import Daemon
from tests.support.servers import Server

URL = "https://example.com/callback"


def items(server: Server, key: str = "callback_queue:pending") -> list[dict[str, Any]]:
    found: Any = server.client.lrange(key, 0, -1)
    return [json.loads(item) for item in found]


def test_at_once(redis: Server) -> None:
    data = {"on": date(2026, 1, 2), "at": datetime(2026, 1, 2, tzinfo=UTC), "price": Decimal("1.50")}
    task_id = callback_enqueue(URL, {**data, "text": gettext_lazy("Home")}, prompt="p", extra=uuid.UUID(int=1))
    (item,) = items(redis)
    assert (item["url"], item["task_id"], item["prompt"], item["extra"]) == (URL, task_id, "p", str(uuid.UUID(int=1)))
    assert item["data"] == {"on": "2026-01-02", "at": "2026-01-02T00:00:00Z", "price": "1.50", "text": "Home"}
    assert callback_enqueue(URL, None, task_id="mine") == "mine"
    assert callback_enqueue(URL, None, task_id=0) == "0"
    assert redis.client.get("callback_queue:stats:queued") == b"3"


def test_when_the_transaction_commits(redis: Server) -> None:
    with transaction.atomic():
        callback_enqueue(URL, 1, on_commit=True)
        assert items(redis) == []
    assert [item["data"] for item in items(redis)] == [1]
    with transaction.atomic():
        callback_enqueue(URL, 2, on_commit=True)
        transaction.set_rollback(True)
    assert len(items(redis)) == 1
    with pytest.raises(InvalidCallback), transaction.atomic():
        callback_enqueue("example.com", 3, on_commit=True)
    callback_enqueue(URL, 4, on_commit=True, using="default")
    assert [item["data"] for item in items(redis)] == [1, 4]


def test_all_of_a_transaction_go_together_or_are_told_together(redis: Server) -> None:
    def several() -> None:
        with transaction.atomic():
            callback_enqueue(URL, 1, on_commit=True)
            transaction.on_commit(lambda: None)
            callback_enqueue(URL, 2, on_commit=True)
            with suppress(KeyError), transaction.atomic():
                callback_enqueue(URL, "no", on_commit=True)
                raise KeyError
            callback_enqueue(URL, 3, on_commit=True)

    several()
    with transaction.atomic():
        callback_enqueue(URL, 4, on_commit=True)
        with transaction.atomic():
            callback_enqueue(URL, 5, on_commit=True)
        callback_enqueue(URL, 6, on_commit=True)
    assert [item["data"] for item in items(redis)] == [1, 2, 3, 4, 5, 6]
    with override_settings(CACHES=caches("unix:///nowhere/s.sock")), pytest.raises(EnqueueError) as told:
        several()
    assert [json.loads(item)["data"] for item in told.value.not_enqueued] == [1, 2, 3]


def test_in_an_event_loop(redis: Server) -> None:
    task_id = asyncio.run(acallback_enqueue(URL, 1, status="failed"))
    assert [(item["task_id"], item["status"]) for item in items(redis)] == [(task_id, "failed")]


def test_one_of_several_queues_with_keys_of_its_own(redis: Server) -> None:
    queues = [{"name": "a", "prefix": "a"}, {"name": "b", "prefix": "b", "keys": {"pending": "jobs", "stats": "n"}}]
    with override_settings(CBQ_EXPORTER={"queues": queues}):
        callback_enqueue(URL, 1, queue="b")
        with pytest.raises(UsageError):
            callback_enqueue(URL, 1)
    assert len(items(redis, "jobs")) == 1
    assert redis.client.get("n:queued") == b"1"


def test_redis_away() -> None:
    with override_settings(CACHES=caches("unix:///nowhere/s.sock")):
        with pytest.raises(EnqueueError, match="1 not enqueued"):
            callback_enqueue(URL, 1)
        with pytest.raises(EnqueueError), transaction.atomic():
            callback_enqueue(URL, 1, on_commit=True)


def test_the_embedded_store_of_a_daemon(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(json.dumps({"data_dir": str(tmp_path / "data"), "queues": [{"name": "jobs", "mode": "observe"}]}))
    with override_settings(CBQ_EXPORTER={"config_file": str(file)}):
        with pytest.raises(StoreUnavailable, match="start it"):
            callback_enqueue(URL, 1)
        with Daemon(None, {"name": "jobs", "mode": "observe"}, folder=tmp_path) as daemon:
            callback_enqueue(URL, 1)
            assert daemon.metrics().get("cbq_queue_length", state="pending") == 1
