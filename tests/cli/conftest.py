"""The command line against a real store, in this process where that is enough, as a program otherwise."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli.main import app
from cbq_exporter.config import load
from cbq_exporter.model import Dead, DeadReason, Failure, Retry, Settled, Settlement
from cbq_exporter.store.opening import make_store
from cbq_exporter.store.queue import Queue
from tests.support.servers import Server

T = TypeVar("T")

UNAVAILABLE = Failure("http_5xx", 503, "answered 503", "<p>\x1b[2Jlater\n</p>")
NOT_FOUND = Failure("http_4xx", 404, "answered 404", "no such page")
QUEUE = "  - {name: callbacks, prefix: q}\n"
TWO_QUEUES = QUEUE + "  - {name: invoices, prefix: other, mode: observe}\n"


@dataclass(frozen=True)
class Corpse:
    """A dead letter to be: what it holds and why it died."""

    payload: bytes
    reason: DeadReason = DeadReason.REJECTED
    destination: str = "example.com"
    failure: Failure = NOT_FOUND


class Cli:
    """The program with a configuration that names ``server``; ``columns`` is what the environment says of the width."""

    columns: int | None = None

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.config_file = folder / "config.yaml"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("CBQ_", "FORCE_"))
        }
        self.configure()

    def configure(self, queues: str = QUEUE) -> None:
        self.config_file.write_text(f"redis: {{url: '{self.server.url}'}}\nqueues:\n{queues}")

    def __call__(self, *words: str, stdin: bytes = b"") -> Result:
        """Run in this process, without a terminal. ``-c`` is added."""
        environment = {"CBQ_REDIS_URL": None, "COLUMNS": None if self.columns is None else str(self.columns)}
        return CliRunner().invoke(app, [*words, "-c", str(self.config_file)], input=stdin, env=environment)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cbq_exporter", *words, "-c", str(self.config_file)]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run as a program, to be ended by the test."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*words), stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment)

    def on_queue(self, work: Callable[[Queue], Awaitable[T]], name: str = "callbacks") -> T:
        """What the daemon or a test's setup does to the queue."""

        async def run() -> T:
            store = make_store(load(self.config_file, {}).config, self.server.url, lock_value="daemon_1")
            try:
                return await work(store.queues[name])
            finally:
                await store.close()

        return asyncio.run(run())

    def bury(self, corpses: Sequence[Corpse]) -> list[str]:
        """Make dead letters the way they come to be; returns their ids in the order of death."""

        async def work(queue: Queue) -> list[str]:
            for first in range(0, len(corpses), 200):
                await _die(queue, corpses[first : first + 200])
            return await queue.dead.ids(offset=0, count=len(corpses))

        return self.on_queue(work)

    def put_off(
        self, delays: Sequence[tuple[str, float]], payload: bytes | None = None, failure: Failure = UNAVAILABLE
    ) -> list[str]:
        """Make callbacks that failed once, for these destinations and due in so many seconds; returns all ids, as due.

        Without ``payload`` they are items numbered from 0.
        """

        async def work(queue: Queue) -> list[str]:
            await queue.keep_lock(30)
            await queue.enqueue([payload or item(number) for number in range(len(delays))])
            claim = await queue.claim(count=len(delays), max_bytes=10**9, lease=30, lock_ttl=30)
            assert claim is not None
            settlements = [
                Settlement(one, Retry(delay, failure, True), f"http://{name}/x", name)
                for one, (name, delay) in zip(claim.items, delays, strict=True)
            ]
            assert await queue.settle(settlements) == [Settled.DONE] * len(delays)
            await queue.free_lock()
            return await queue.retries.ids(offset=0, count=1000)

        return self.on_queue(work)

    def pending(self) -> list[bytes]:
        found: list[bytes] = self.server.client.lrange("q:pending", 0, -1)  # type: ignore[assignment]
        return found

    def wait_for_pending(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.server.client.llen("q:pending") < count:
            assert time.monotonic() < deadline, "callbacks did not come"
            time.sleep(0.005)


async def _die(queue: Queue, corpses: Sequence[Corpse]) -> None:
    await queue.keep_lock(30)
    await queue.enqueue([corpse.payload for corpse in corpses])
    claim = await queue.claim(count=len(corpses), max_bytes=10**9, lease=30, lock_ttl=30)
    assert claim is not None
    assert len(claim.items) == len(corpses)
    settlements = [
        Settlement(one, Dead(corpse.reason, corpse.failure), f"http://{corpse.destination}/x", corpse.destination)
        for one, corpse in zip(claim.items, corpses, strict=True)
    ]
    assert await queue.settle(settlements) == [Settled.DONE] * len(corpses)
    await queue.free_lock()


@pytest.fixture
def cli(server: Server, tmp_path: Path) -> Cli:
    return Cli(server, tmp_path)


def item(number: int = 1, **fields: object) -> bytes:
    """As the existing producers write it."""
    whole = {"url": "http://example.com/x", "task_id": f"t{number}", "status": "success", "data": {"n": number}}
    return json.dumps({**whole, "created_at": None, "_queued_at": 1764000000.5, **fields}).encode()
