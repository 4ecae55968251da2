"""The lock keeper and the recoverer on a real store: what they do is audited and counted, and never done blindly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from cbq_exporter.config.models import Config, QueueConfig, RedisConfig
from cbq_exporter.errors import StoreError
from cbq_exporter.metrics.instruments import Instruments, QueueInstruments
from cbq_exporter.metrics.series import Number
from cbq_exporter.model import Actor, LockLook, LockRule, OperationName, Recovery, ReleaseReason, Result, Trigger
from cbq_exporter.policy.lock import Release, Watch
from cbq_exporter.policy.stuck import StuckRule
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.lock_keeper import LockKeeper
from cbq_exporter.services.recoverer import Recoverer
from cbq_exporter.store.lock_watch import LockWatch
from cbq_exporter.store.opening import Store, open_store
from tests.support.servers import Server

NAME = "callbacks"
THEIRS = "worker_1764000000_1234"


def counted(number: Number) -> float:
    sample = number.sample()
    return 0.0 if sample is None else sample.value


class Part:
    """One queue of an open store with both services; ``auto`` False: they only look."""

    def __init__(self, server: Server, store: Store, *, auto: bool = True) -> None:
        self.redis: Any = server.client
        self.queue, self.healing = store.queues[NAME], store.healing[NAME]
        self.keys = self.queue.keys
        self.instruments: QueueInstruments = Instruments([NAME]).queue(NAME)
        self.audit = Audit(store)
        self.lock_keeper = LockKeeper(
            NAME,
            self.healing.lock,
            self.instruments,
            self.audit,
            rule=LockRule(no_ttl_after=60, max_ttl=600, dead_after=15),
            auto=auto,
            forget_after=75,
        )
        self.recoverer = Recoverer(
            NAME, self.healing, self.instruments, self.audit, rule=StuckRule(auto, 300, 3), every=15
        )

    async def results(self) -> list[tuple[str, Result, Mapping[str, Any]]]:
        entries = await self.audit.entries(NAME, count=100)
        assert all(entry.actor == Actor(Trigger.SCHEDULE) for entry in entries)
        return [(entry.operation, entry.result, entry.after) for entry in entries]

    def lock_was_seen_long_ago(self) -> None:
        self.redis.hset(self.keys.lock_seen, "untouched_ms", 1)

    def all_was_seen_long_ago(self) -> None:
        for name in self.redis.zrange(self.keys.sightings, 0, -1):
            self.redis.zadd(self.keys.sightings, {name: 1})


def on(server: Server, scenario: Callable[[Part], Awaitable[None]], *, auto: bool = True) -> None:
    async def run() -> None:
        config = Config(redis=RedisConfig(url=SecretStr(server.url)), queues=(QueueConfig(name=NAME),))
        async with open_store(config) as store:
            await scenario(Part(server, store, auto=auto))

    asyncio.run(run())


def test_a_stale_lock_is_watched_first_and_released_later(server: Server) -> None:
    async def scenario(part: Part) -> None:
        assert (await part.lock_keeper.run_once()).verdict is None
        part.redis.set(part.keys.lock, THEIRS)
        report = await part.lock_keeper.run_once()
        assert isinstance(report.verdict, Watch)
        assert report.released is None
        part.lock_was_seen_long_ago()
        assert (await part.lock_keeper.run_once()).released is ReleaseReason.NO_TTL
        assert not part.redis.exists(part.keys.lock)
        assert await part.results() == [
            (OperationName.UNLOCK, Result.STARTED, {}),
            (OperationName.UNLOCK, Result.DONE, {"lock": None}),
        ]
        assert counted(part.instruments.lock_releases[ReleaseReason.NO_TTL]) == 1

    on(server, scenario)


@pytest.mark.parametrize("command", [("EXPIRE", 30), ("SET", "worker_1764000099_0001")])
def test_a_lock_that_changes_in_the_last_moment_is_left_and_counted(
    server: Server, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(part: Part) -> None:
        release = part.healing.lock.release

        async def change_first(look: LockLook) -> bool:
            part.redis.execute_command(command[0], part.keys.lock, *command[1:])
            return await release(look)

        monkeypatch.setattr(LockWatch, "release", lambda self, look: change_first(look))
        part.redis.set(part.keys.lock, THEIRS)
        await part.lock_keeper.run_once()
        part.lock_was_seen_long_ago()
        report = await part.lock_keeper.run_once()
        assert (report.released, report.aborted) == (None, True)
        assert part.redis.exists(part.keys.lock)
        assert [result for _, result, _ in await part.results()] == [Result.STARTED, Result.CHANGED]
        assert counted(part.instruments.lock_release_aborts) == 1
        assert counted(part.instruments.lock_releases[ReleaseReason.NO_TTL]) == 0

    on(server, scenario)


def test_where_they_only_look_nothing_is_touched_and_nothing_audited(server: Server) -> None:
    async def scenario(part: Part) -> None:
        part.redis.set(part.keys.lock, THEIRS)
        part.redis.rpush(part.keys.processing, b"{}")
        for _ in range(2):
            lock, recovery = await part.lock_keeper.run_once(), await part.recoverer.run_once()
            part.lock_was_seen_long_ago()
            part.all_was_seen_long_ago()
        assert isinstance(lock.verdict, Release)
        assert recovery.look.stuck == 1
        assert (part.redis.get(part.keys.lock), part.redis.llen(part.keys.processing)) == (THEIRS.encode(), 1)
        assert await part.results() == []
        # Asked for, what is known goes at once.
        assert await part.healing.recover_stuck(300, 3) == Recovery(returned=1)

    on(server, scenario, auto=False)


def test_what_is_stuck_is_brought_back_ours_and_others(server: Server) -> None:
    async def scenario(part: Part) -> None:
        part.redis.rpush(part.keys.pending, b'{"n": 1}')
        part.redis.set(part.keys.lock, part.queue.lock_value)
        assert await part.queue.claim(count=1, max_bytes=100, lease=60.0, lock_ttl=30.0)
        part.redis.rpush(part.keys.processing, b'{"n": 2}')
        assert not (await part.recoverer.run_once()).own.total
        part.all_was_seen_long_ago()
        (lease,) = part.redis.zrange(part.keys.leases, 0, -1)
        part.redis.zadd(part.keys.leases, {lease: 1})
        report = await part.recoverer.run_once()
        assert (report.own, report.others) == (Recovery(returned=1), Recovery(returned=1))
        assert (await part.results())[-1] == (
            OperationName.RECOVER,
            Result.DONE,
            {"returned": 2, "dead": 0, "leases_dropped": 0},
        )
        assert counted(part.instruments.recovered[Trigger.SCHEDULE]) == 2
        assert len(await part.results()) == 2, "nothing to do is nothing to note"

    on(server, scenario)


def test_without_an_audit_nothing_is_changed(server: Server) -> None:
    async def scenario(part: Part) -> None:
        part.redis.set(part.keys.audit, "somebody else's")
        part.redis.set(part.keys.lock, THEIRS)
        part.redis.rpush(part.keys.processing, b"{}")
        await part.lock_keeper.run_once()
        await part.recoverer.run_once()
        part.lock_was_seen_long_ago()
        part.all_was_seen_long_ago()
        with pytest.raises(StoreError):
            await part.lock_keeper.run_once()
        with pytest.raises(StoreError):
            await part.recoverer.run_once()
        assert (part.redis.get(part.keys.lock), part.redis.llen(part.keys.processing)) == (THEIRS.encode(), 1)

    on(server, scenario)
