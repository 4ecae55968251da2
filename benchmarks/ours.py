"""cbq-exporter as a contestant: its configuration, its producer, and what is left of its queue.

As a program (``python -m benchmarks.ours REDIS URL COUNT``) it is the producer: bare RPUSH, as any software
does that knows nothing of the daemon.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from benchmarks.workers.payload import data

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "callback_queue"
PENDING = f"{PREFIX}:pending"
CONCURRENCY = 64
BATCH = 200
SETTINGS = f"batch.size {BATCH}, {CONCURRENCY} requests open, sending from a process of its own, log level warning"
_CHUNK = 1000


def command(
    folder: Path, redis_url: str, *, concurrency: int = CONCURRENCY, coalesce: Mapping[str, Any] | None = None
) -> Sequence[str]:
    """Writes the configuration into ``folder``; the command that runs the daemon with it."""
    settings = {
        "redis": {"url": redis_url},
        "data_dir": str(folder / "data"),
        "web": {"listen_address": "127.0.0.1:0"},
        "log": {"level": "warning"},
        "queues": [
            {
                "name": "callbacks",
                "prefix": PREFIX,
                "mode": "dispatch",
                "batch": {"size": BATCH, "max_delay": "0s"},
                "delivery": {
                    "concurrency": concurrency,
                    "own_process": True,
                    "per_destination": {"concurrency": concurrency},
                    "request": {"body": "data"},
                    "egress": {"allow": ["127.0.0.0/8"]},
                    "coalesce": coalesce,
                },
            }
        ],
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings, indent=2))  # JSON is YAML
    return [sys.executable, "-m", "cbq_exporter", "serve", "--config", str(path)]


def item(url: str, number: int) -> bytes:
    """One callback as existing producers write it; its ``data`` is the 1 KiB that is posted."""
    fields = {
        "url": url,
        "task_id": f"task-{number}",
        "status": "success",
        "data": data(number),
        "prompt": "a lighthouse in the fog",
        "created_at": None,
        "_queued_at": time.time(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def left(ask: Callable[..., Any]) -> int:
    """Callbacks that are not delivered, wherever they are; dead letters too, so that they are noticed."""
    lists = int(ask("LLEN", PENDING)) + int(ask("LLEN", f"{PREFIX}:processing"))
    return lists + int(ask("ZCARD", f"{PREFIX}:retry")) + int(ask("ZCARD", f"{PREFIX}:dead"))


def fill(client: redis.Redis, url: str, count: int) -> None:
    for first in range(0, count, _CHUNK):
        client.rpush(PENDING, *_items(url, first, min(first + _CHUNK, count)))


def _items(url: str, first: int, end: int) -> Iterator[bytes]:
    return (item(url, number) for number in range(first, end))


if __name__ == "__main__":
    with redis.Redis.from_url(sys.argv[1], socket_timeout=60) as connected:
        fill(connected, sys.argv[2], int(sys.argv[3]))
