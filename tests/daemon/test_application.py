"""What a daemon keeps: nothing of queues that others have followed, and of many queues no more than there are."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import load
from cbq_exporter.daemon.application import Application
from cbq_exporter.daemon.attendant import Attendant
from cbq_exporter.services.operations.parts import Parts
from cbq_exporter.store.keys import QueueKeys
from tests.support.servers import Server


def test_nothing_is_left_of_what_a_reload_has_replaced(server: Server, tmp_path: Path) -> None:
    """They would only go when all is searched for garbage, which is seldom: each kept all destinations it knew."""
    file = tmp_path / "config.yaml"

    def write(size: int) -> None:
        queue = {"name": "callbacks", "batch": {"size": size}}
        config = {"redis": {"url": server.url}, "web": {"listen_address": "127.0.0.1:0"}, "queues": [queue]}
        file.write_text(json.dumps(config))

    async def scenario() -> int:
        application = Application(load(file, {}), SYSTEM_CLOCK)
        await application.start()
        try:
            for size in (2, 3, 4):
                write(size)
                reloaded = asyncio.Event()
                application.ask_to_reload(then=reloaded.set)
                await asyncio.wait_for(reloaded.wait(), 15)
            assert application.config.queues[0].batch.size == 4
            gc.unfreeze()
            return sum(isinstance(one, Attendant) for one in gc.get_objects())
        finally:
            await application.stop()

    write(1)
    assert asyncio.run(scenario()) == 1


def test_what_many_queues_cost_grows_with_their_number_and_not_with_its_square(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    count, compared = 40, 0
    all_keys = QueueKeys.all

    def counting(keys: QueueKeys) -> tuple[str, ...]:
        nonlocal compared
        compared += 1
        return all_keys(keys)

    def write(size: int) -> None:
        queues = [{"name": f"q{n}", "prefix": f"q{n}", "batch": {"size": size}} for n in range(count)]
        config = {"redis": {"url": server.url}, "web": {"listen_address": "127.0.0.1:0"}, "queues": queues}
        file.write_text(json.dumps(config))

    async def scenario() -> int:
        application = Application(load(file, {}), SYSTEM_CLOCK)
        await application.start()
        try:
            write(2)
            reloaded = asyncio.Event()
            application.ask_to_reload(then=reloaded.set)
            await asyncio.wait_for(reloaded.wait(), 15)
            assert {queue.batch.size for queue in application.config.queues} == {2}
            gc.unfreeze()
            return sum(isinstance(one, Parts) for one in gc.get_objects())
        finally:
            await application.stop()

    monkeypatch.setattr(QueueKeys, "all", counting)
    write(1)
    assert asyncio.run(scenario()) == count
    assert compared <= 5 * count
