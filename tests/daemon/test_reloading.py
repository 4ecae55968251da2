"""One reload at a time, each whole, whoever asks and whatever becomes of whoever asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import Config, load
from cbq_exporter.config.changes import Changes
from cbq_exporter.daemon.reloading import Reloader
from cbq_exporter.errors import CbqError
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Actor, Trigger

ALICE = Actor(Trigger.API, "alice")


class Part:
    """A reloader of one file, and what it has taken over."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.yaml"
        self.write(1)
        self.config = load(self.file, {}).config
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0
        self.during: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0.01)
        self.instruments = Instruments([])
        self.reloader = Reloader(self.file, lambda: self.config, self.take_over, self.instruments, SYSTEM_CLOCK)

    def write(self, size: int) -> None:
        self.file.write_text(f"queues: [{{name: a, batch: {{size: {size}}}}}]")

    async def take_over(self, config: Config, changes: Changes, actor: Actor) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.during()
        finally:
            self.under_way -= 1
        self.config = config
        self.sizes.append(config.queues[0].batch.size)

    @property
    def successful(self) -> float | None:
        return self.instruments.registry.get_sample_value("cbq_config_last_reload_successful")


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part(tmp_path)


def test_reloads_follow_each_other(part: Part) -> None:
    async def scenario() -> None:
        part.write(2)
        made = await asyncio.gather(*(part.reloader.reload(ALICE) for _ in range(5)))
        assert part.most_under_way == 1
        assert [bool(changes) for changes in made] == [True, False, False, False, False]

    asyncio.run(scenario())


def test_what_is_asked_for_many_times_is_done_once_more(part: Part) -> None:
    async def scenario() -> None:
        for _ in range(50):
            part.reloader.ask()
        running = asyncio.create_task(part.reloader.run())
        async with asyncio.timeout(10):
            while not part.under_way:
                await asyncio.sleep(0)
            part.write(3)
            for _ in range(50):
                part.reloader.ask()
            while len(part.sizes) < 2:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        running.cancel()
        assert part.sizes == [1, 3]

    asyncio.run(scenario())


def test_it_goes_on_without_whoever_asked_and_a_stop_waits_for_it(part: Part) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        part.during = gate.wait
        part.write(2)
        asking = asyncio.create_task(part.reloader.reload(ALICE))
        async with asyncio.timeout(10):
            while not part.under_way:
                await asyncio.sleep(0)
        asking.cancel()
        part.reloader.refuse()
        ending = asyncio.create_task(part.reloader.end())
        await asyncio.sleep(0)
        assert not ending.done()
        gate.set()
        await ending
        assert part.sizes == [2]
        with pytest.raises(CbqError, match="stopping"):
            await part.reloader.reload(ALICE)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [CbqError("a queue cannot be made ready"), RuntimeError("a fault of ours")])
def test_a_failure_is_told_and_the_next_one_may_do(part: Part, error: Exception) -> None:
    async def fail() -> None:
        raise error

    async def scenario() -> None:
        assert part.successful == 1
        part.during = fail
        with pytest.raises(type(error)):
            await part.reloader.reload(ALICE)
        assert part.successful == 0
        part.during = lambda: asyncio.sleep(0)
        await part.reloader.reload(ALICE)
        assert part.successful == 1

    asyncio.run(scenario())
