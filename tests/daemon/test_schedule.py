"""What runs when, and that a scheduler which has stopped is noticed and started over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.daemon.schedule import Schedule
from cbq_exporter.daemon.watchdog import watch
from cbq_exporter.errors import StoreUnavailable
from cbq_exporter.metrics.instruments import Instruments


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


def make() -> tuple[Schedule, Instruments]:
    instruments = Instruments([])
    return Schedule(instruments, SYSTEM_CLOCK), instruments


def value(instruments: Instruments, name: str, task: str) -> float:
    found = instruments.registry.get_sample_value(f"cbq_{name}", {"task": task})
    assert found is not None
    return found


def test_a_job_says_itself_when_it_runs_next_and_can_be_woken() -> None:
    async def scenario() -> None:
        schedule, instruments = make()
        runs: list[float] = []

        async def job() -> float | None:
            runs.append(asyncio.get_running_loop().time())
            return 0.05 if len(runs) < 3 else None

        schedule.again("flush", job, longest_sleep=60.0)
        schedule.start()
        await until(lambda: len(runs) == 3)
        assert runs[1] - runs[0] >= 0.045
        schedule.wake("flush")
        await until(lambda: len(runs) == 4)
        await schedule.stop()
        assert value(instruments, "task_runs_total", "flush") == 4
        assert value(instruments, "task_failures_total", "flush") == 0

    asyncio.run(scenario())


def test_a_wake_during_a_run_is_not_lost_and_runs_never_overlap() -> None:
    async def scenario() -> None:
        schedule, _ = make()
        gate = asyncio.Event()
        runs = running = most = 0

        async def job() -> float | None:
            nonlocal runs, running, most
            runs += 1
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1
            return None

        schedule.again("flush", job, longest_sleep=60.0)
        schedule.start()
        await until(lambda: runs == 1)
        schedule.wake("flush")
        schedule.wake("flush")
        gate.set()
        await until(lambda: runs == 2)
        await schedule.stop()
        assert (runs, most) == (2, 1)

    asyncio.run(scenario())


def test_a_wake_in_a_while_moves_a_run_forward_and_never_back() -> None:
    async def scenario() -> None:
        schedule, _ = make()
        loop = asyncio.get_running_loop()
        runs: list[float] = []

        async def job() -> float | None:
            runs.append(loop.time())
            if len(runs) == 1:
                schedule.wake("flush", 0.1)  # during a run
            return None

        schedule.again("flush", job, longest_sleep=60.0)
        schedule.start()
        await until(lambda: len(runs) == 2)
        assert runs[1] - runs[0] >= 0.095
        schedule.wake("flush", 0.1)
        schedule.wake("flush", 30.0)
        await until(lambda: len(runs) == 3)
        assert runs[2] - runs[1] >= 0.095
        await schedule.stop()

    asyncio.run(scenario())


def test_a_failing_job_goes_on_with_a_pause_and_tells_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        schedule, instruments = make()
        runs = 0

        async def job() -> float | None:
            nonlocal runs
            runs += 1
            if runs <= 3:
                raise StoreUnavailable("Redis at nowhere cannot be reached", kind="connect")
            return None

        schedule.again("flush", job, longest_sleep=60.0)
        schedule.start()
        await until(lambda: runs == 1)
        await until(lambda: schedule.trouble("flush"))
        assert schedule.trouble("flush") == "Redis at nowhere cannot be reached"
        await until(lambda: runs == 4 and schedule.trouble("flush") is None)
        await schedule.stop()
        assert value(instruments, "task_failures_total", "flush") == 3
        assert value(instruments, "task_runs_total", "flush") == 4

    with caplog.at_level(logging.WARNING, "cbq_exporter"):
        asyncio.run(scenario())
    assert [record.message for record in caplog.records] == ["a task fails and will be tried again"]


def test_a_scheduler_that_has_died_is_noticed_and_started_over() -> None:
    """Its own words for itself stay «running»: only the missing heartbeat tells."""

    async def scenario() -> None:
        schedule, _ = make()
        runs = 0

        async def job() -> None:
            nonlocal runs
            runs += 1

        schedule.every("look", 0.05, job)
        schedule.start()
        await until(lambda: runs > 1)
        scheduler = schedule._scheduler
        assert scheduler is not None
        # What a single exception in its wake-up does: no timer is set any more.
        scheduler._stop_timer()
        scheduler.wakeup = scheduler._start_timer = lambda *_: None
        scheduler._stop_timer()
        before = runs
        watching = asyncio.create_task(watch(schedule, look_every=0.05, silence=1.5))
        await until(lambda: runs > before + 1)
        assert scheduler is not schedule._scheduler
        assert schedule.silent_for < 1.5
        watching.cancel()
        await schedule.stop()

    asyncio.run(scenario())


def test_a_job_that_failed_does_not_wait_for_its_next_turn_to_be_well_again() -> None:
    async def scenario() -> None:
        schedule, _ = make()
        runs = 0

        async def job() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise StoreUnavailable("Redis at nowhere cannot be reached", kind="connect")

        schedule.every("upkeep", 60.0, job)
        schedule.start()
        await until(lambda: schedule.trouble("upkeep"))
        await until(lambda: runs == 2 and schedule.trouble("upkeep") is None)
        await asyncio.sleep(0.5)
        assert runs == 2  # and then at its interval
        await schedule.stop()

    asyncio.run(scenario())


def test_stopping_waits_for_what_runs_and_starts_nothing_more() -> None:
    async def scenario() -> None:
        schedule, _ = make()
        gate = asyncio.Event()
        started = ended = 0

        async def job() -> float | None:
            nonlocal started, ended
            started += 1
            await gate.wait()
            ended += 1
            return 0.0

        schedule.again("flush", job, longest_sleep=60.0)
        schedule.start()
        await until(lambda: started == 1)
        stopping = asyncio.create_task(schedule.stop())
        await asyncio.sleep(0)
        gate.set()
        await stopping
        assert (started, ended) == (1, 1)

    asyncio.run(scenario())


def test_a_run_that_a_stop_does_not_wait_for_any_longer_is_broken_off_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        schedule, _ = make()
        begun = asyncio.Event()

        async def job() -> None:
            begun.set()
            await asyncio.Event().wait()

        schedule.every("recover", 60.0, job)
        schedule.start()
        await begun.wait()
        await schedule.stop(timeout=0.01)

    asyncio.run(scenario())  # its end cancels what is left
    told = [(record.levelname, record.message) for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [("WARNING", "a task was broken off")]


def test_a_job_that_is_removed_ends_its_run_and_makes_room_for_another_of_its_name() -> None:
    async def scenario() -> None:
        schedule, instruments = make()
        gate = asyncio.Event()
        began: list[str] = []
        ended: list[str] = []

        def job(name: str) -> Callable[[], Awaitable[float | None]]:
            async def run() -> float | None:
                began.append(name)
                await gate.wait()
                ended.append(name)
                return 0.0

            return run

        schedule.again("flush", job("old again"), longest_sleep=60.0)
        schedule.every("keep", 0.05, job("old every"))
        schedule.start()
        await until(lambda: len(began) == 2)
        removing = asyncio.create_task(schedule.remove("flush", "keep"))
        await asyncio.sleep(0)
        schedule.wake("flush")
        assert not removing.done()
        gate.set()
        await removing
        assert sorted(ended) == ["old again", "old every"]

        gate.clear()
        schedule.again("flush", job("new again"), longest_sleep=60.0)
        schedule.every("keep", 0.05, job("new every"))
        await until(lambda: len(began) == 4)
        gate.set()
        await until(lambda: ended.count("new every") >= 3)
        await schedule.stop()
        assert (ended.count("old again"), ended.count("old every")) == (1, 1)
        assert value(instruments, "task_runs_total", "keep") == 1 + ended.count("new every")

    asyncio.run(scenario())
