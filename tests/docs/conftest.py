"""A queue that is broken as the pages describe it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.servers import Server


@pytest.fixture
def broken(server: Server) -> Server:
    """A worker was killed: its lock has no expiry, two callbacks are in processing, three have waited since."""
    redis: Any = server.client
    enqueued_at = time.time() - 14 * 60
    items = [
        f'{{"url": "https://example.com/callback", "task_id": "{number}", "data": {{}}, "_queued_at": {enqueued_at}}}'
        for number in range(5)
    ]
    redis.rpush("callback_queue:processing", *items[:2])
    redis.rpush("callback_queue:pending", *items[2:])
    redis.set("callback_queue:lock", "worker_1764000000_1234")
    return server
