"""The audit: an entry before each change and one after it, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreError, StoreMisuse
from cbq_exporter.model import Actor, Result, Trigger
from cbq_exporter.store.audit import BEGINNING, MOST_ENTRIES
from tests.services.operating import ALICE, QUEUE, Operating
from tests.support.servers import Server


@pytest.fixture
def desk(each_server: Server) -> Iterator[Operating]:
    with Operating(each_server) as operating:
        yield operating


def test_an_entry_keeps_all_that_was_said(desk: Operating) -> None:
    before, after = {"lock": "worker_1\udcff", "ttl": None, "counts": {"pending": 3}}, {"locks": 1}
    reason = "tïcket 17\n" + "x" * 5000
    desk.do(
        desk.audit.record(
            QUEUE, ALICE, "unlock", reason=reason, before=dict(before, lock="w"), after=after, result=Result.DONE
        )
    )
    (entry,) = desk.entries
    assert (entry.actor, entry.operation, entry.queue, entry.result) == (ALICE, "unlock", QUEUE, Result.DONE)
    assert entry.reason == reason[:1000]
    assert entry.before == {"lock": "w", "ttl": None, "counts": {"pending": 3}}
    assert entry.after == after
    assert entry.at == pytest.approx(time.time(), abs=2)
    assert desk.counted == [("unlock", "cli", "done")]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, Result.DONE),
        (PreconditionChanged("another holder"), Result.CHANGED),
        (RefusedError("no"), Result.REFUSED),
        (CbqError("broken"), Result.FAILED),
        (ValueError("a fault"), Result.FAILED),
        (KeyboardInterrupt(), Result.FAILED),
        (asyncio.CancelledError(), Result.FAILED),
    ],
)
def test_each_end_is_told(server: Server, error: BaseException | None, result: Result) -> None:
    async def work(desk: Operating) -> None:
        async with desk.audit.audited(QUEUE, ALICE, "reset", before={"pending": 3}) as after:
            after["moved"] = 2
            if error is not None:
                raise error

    with Operating(server) as desk:

        async def caught() -> BaseException | None:
            try:
                await work(desk)
            except BaseException as ended:
                return ended
            return None

        assert desk.do(caught()) is error
        started, ended = desk.entries
        assert (started.result, started.before, started.after) == (Result.STARTED, {"pending": 3}, {})
        assert (ended.result, ended.before, ended.after["moved"]) == (result, {"pending": 3}, 2)
        assert ("error" in ended.after) == (error is not None)
        assert desk.counted == [("reset", "cli", str(result))]


def test_without_the_first_entry_nothing_is_changed(server: Server) -> None:
    with Operating(server) as desk:
        desk.redis.set(desk.keys.audit, "somebody else's")
        changed = []

        async def work() -> None:
            async with desk.audit.audited(QUEUE, ALICE, "reset"):
                changed.append(True)

        with pytest.raises(StoreMisuse):
            desk.do(work())
        assert not changed


def test_a_change_that_was_made_is_no_failure_because_its_last_entry_cannot_be_written(server: Server) -> None:
    with Operating(server) as desk:

        async def work() -> None:
            async with desk.audit.audited(QUEUE, ALICE, "reset"):
                desk.redis.rename(desk.keys.audit, "aside")
                desk.redis.set(desk.keys.audit, "somebody else's")

        desk.do(work())
        desk.redis.rename("aside", desk.keys.audit)
        assert desk.story == [("reset", "started")]


def test_choosing_entries(desk: Operating) -> None:
    bob = Actor(Trigger.API, "bob")
    for number in range(1200):
        actor, operation = (ALICE, "recover") if number % 3 else (bob, "unlock")
        desk.do(desk.audit.record(QUEUE, actor, operation, after={"n": number}, result=Result.DONE))

    def numbers(**chosen: object) -> list[int]:
        found = desk.do(desk.audit.entries(QUEUE, **chosen))  # type: ignore[arg-type]
        return [entry.after["n"] for entry in found]

    assert numbers(count=3) == [1197, 1198, 1199]
    assert numbers(count=2, operation="unlock") == [1194, 1197]
    assert numbers(count=400, actor="api") == list(range(0, 1200, 3))
    assert numbers(count=1, actor="alice@") == [1199]
    assert numbers(count=5, operation="reset") == []
    since = desk.do(desk.audit.entries(QUEUE, count=1))[0].at
    assert numbers(count=5000, since=since)[-1] == 1199
    assert numbers(count=5000, since=since + 3600) == []


def test_following_brings_what_was_and_what_comes(desk: Operating) -> None:
    async def work() -> list[int]:
        for number in range(3):
            await desk.audit.record(QUEUE, ALICE, "pause", after={"n": number}, result=Result.DONE)
        seen: list[int] = []
        async with asyncio.timeout(10):
            async for entry in desk.audit.follow(QUEUE, BEGINNING):
                seen.append(entry.after["n"])
                if len(seen) == 6:
                    break
                if len(seen) >= 3:
                    await desk.audit.record(QUEUE, ALICE, "pause", after={"n": len(seen)}, result=Result.DONE)
        return seen

    assert desk.do(work()) == [0, 1, 2, 3, 4, 5]


def test_it_is_bounded_by_count_and_by_age(desk: Operating) -> None:
    pipe = desk.redis.pipeline()
    for number in range(1, MOST_ENTRIES + 3000):
        pipe.xadd(desk.keys.audit, {"operation": "old"}, id=f"{number}-0")
    pipe.execute()
    desk.do(desk.audit.record(QUEUE, ALICE, "pause", result=Result.DONE))
    assert desk.redis.xlen(desk.keys.audit) < MOST_ENTRIES + 200
    assert desk.do(desk.audit.trim(QUEUE, 3600)) > MOST_ENTRIES - 200
    assert desk.entries[-1].operation == "pause"


def test_what_others_wrote_into_it_stops_nothing(desk: Operating) -> None:
    desk.redis.xadd(desk.keys.audit, {"trigger": b"\xff", "before": "[1", "result": "?", "more": "x"})
    desk.redis.xadd(desk.keys.audit, {"after": "[1]"})
    assert [entry.before for entry in desk.entries] == [{}, {}]


def test_a_full_memory_does_not_refuse_an_entry(desk: Operating) -> None:
    desk.redis.config_set("maxmemory", 1)
    try:
        desk.do(desk.audit.record(QUEUE, ALICE, "purge_dead", result=Result.DONE))
    finally:
        desk.redis.config_set("maxmemory", 0)
    assert desk.story == [("purge_dead", "done")]


def test_a_store_that_is_away_is_an_error(server: Server) -> None:
    with Server() as gone, Operating(gone) as desk:
        gone.stop()
        with pytest.raises(StoreError):
            desk.do(desk.audit.record(QUEUE, ALICE, "pause", result=Result.DONE))
