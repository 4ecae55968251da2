"""The daemon's jobs, run by APScheduler: what runs when, counted, and started over where the scheduler stops.

Two kinds of job. ``every`` runs at an interval. ``again`` says itself, at the end of each run, when it wants
to run next, and can be woken before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from cbq_exporter.clock import Clock
from cbq_exporter.errors import CbqError
from cbq_exporter.metrics.instruments import Instruments, TaskInstruments

log = logging.getLogger(__name__)

BEAT_EVERY = 1.0  # seconds
_FIRST_PAUSE = 0.1  # seconds after a failed run of an ``again`` job, doubled up to:
_LONGEST_PAUSE = 5.0
_BEAT = "heartbeat"


@dataclass(slots=True)
class _Job:
    name: str
    instruments: TaskInstruments
    action: Callable[[], Awaitable[float | None]]
    interval: float | None  # None: an ``again`` job
    longest_sleep: float = 0.0
    task: asyncio.Task[object] | None = None  # while it runs
    armed_monotonic: float = math.inf  # when it is to run next
    woken_monotonic: float = math.inf  # when it is to run after the run under way, because of ``wake``
    failures: int = 0  # in a row
    trouble: str | None = None


class Schedule:
    """Everything public is called on the event loop."""

    def __init__(self, instruments: Instruments, clock: Clock) -> None:
        self._instruments = instruments
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._scheduler: AsyncIOScheduler | None = None
        self._stopping = False
        self._beat_monotonic = clock.monotonic()
        self._beats = _Job(_BEAT, instruments.task(_BEAT), self._beat, BEAT_EVERY)
        self._jobs[_BEAT] = self._beats

    # --- what runs ---------------------------------------------------------------------------

    def every(self, name: str, seconds: float, action: Callable[[], Awaitable[object]]) -> None:
        """Run ``action`` each ``seconds``; one that takes longer than that skips a turn.

        After an error it is tried again sooner, with a growing pause.
        """

        async def run() -> float | None:
            await action()
            return None

        self._add(_Job(name, self._instruments.task(name), run, seconds))

    def again(self, name: str, action: Callable[[], Awaitable[float | None]], *, longest_sleep: float) -> None:
        """Run ``action`` at once and then when it says: in so many seconds, or None to wait for ``wake``.

        It is never left for longer than ``longest_sleep``. After an error it is tried again with a growing
        pause.
        """
        job = _Job(name, self._instruments.task(name), action, None, longest_sleep)
        job.instruments.interval.set(longest_sleep)
        self._add(job)

    def _add(self, job: _Job) -> None:
        self._jobs[job.name] = job
        if job.interval is not None:
            job.instruments.interval.set(job.interval)
        if self._scheduler is not None:
            self._arm(job, 0.0)

    async def remove(self, *names: str, timeout: float = 5.0) -> None:
        """Run these no more; a run under way is waited for, for ``timeout`` seconds, and not cancelled."""
        removed = [self._jobs.pop(name) for name in names]
        for job in removed:
            if self._scheduler is not None:
                with contextlib.suppress(JobLookupError):  # between two runs, or in one, it is not there
                    self._scheduler.remove_job(job.name)
        running = [job.task for job in removed if job.task is not None]
        if running:
            await asyncio.wait(running, timeout=timeout)

    def wake(self, name: str, delay: float = 0.0) -> None:
        """Move the next run of an ``again`` job forward to ``delay`` seconds from now, where it would be later.

        One that has been removed is left asleep.
        """
        job = self._jobs.get(name)
        if job is None:
            return
        at = self._clock.monotonic() + delay
        if job.task is not None:
            job.woken_monotonic = min(job.woken_monotonic, at)
        elif at < job.armed_monotonic:
            self._arm(job, delay)

    def trouble(self, name: str) -> str | None:
        """Why the last run of a job failed, or None."""
        return self._jobs[name].trouble

    # --- start, stop, start over -------------------------------------------------------------

    def start(self) -> None:
        self._beat_monotonic = self._clock.monotonic()
        scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        scheduler.add_listener(self._on_event, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        scheduler.start()
        self._scheduler = scheduler
        for job in self._jobs.values():
            self._arm(job, 0.0)

    def restart(self) -> None:
        """Throw a scheduler away that has stopped working; jobs under way go on."""
        self._discard()
        self.start()

    async def stop(self, timeout: float = 5.0) -> None:
        """Start nothing more and wait up to ``timeout`` seconds for what is running; it is not cancelled."""
        self._stopping = True
        running = [job.task for job in self._jobs.values() if job.task is not None]
        if running:
            await asyncio.wait(running, timeout=timeout)
        self._discard()

    def _discard(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            with contextlib.suppress(Exception):
                scheduler.remove_all_jobs()
            with contextlib.suppress(Exception):
                scheduler.shutdown(wait=False)

    @property
    def silent_for(self) -> float:
        """Seconds since the scheduler last ran its heartbeat."""
        return self._clock.monotonic() - self._beat_monotonic

    async def _beat(self) -> None:
        self._beat_monotonic = self._clock.monotonic()

    # --- running -----------------------------------------------------------------------------

    def _arm(self, job: _Job, delay: float) -> None:
        if self._scheduler is None or self._stopping or self._jobs.get(job.name) is not job:
            return
        at = datetime.now(UTC) + timedelta(seconds=delay)
        job.armed_monotonic = self._clock.monotonic() + delay
        if job.interval is None:
            # A run arms the next before APScheduler has noted its end: more than one instance is allowed there,
            # and prevented in ``_run``.
            self._scheduler.add_job(
                self._run,
                "date",
                run_date=at,
                args=[job],
                id=job.name,
                name=job.name,
                max_instances=100,
                replace_existing=True,
            )
        else:
            self._scheduler.add_job(
                self._run,
                "interval",
                seconds=job.interval,
                next_run_time=at,
                args=[job],
                id=job.name,
                name=job.name,
                replace_existing=True,
            )

    async def _run(self, job: _Job) -> None:
        if job.task is not None or self._stopping or self._jobs.get(job.name) is not job:
            return  # a scheduler that was thrown away may have left this run behind
        job.task, job.woken_monotonic = asyncio.current_task(), math.inf
        delay: float | None = None
        started = self._clock.monotonic()
        try:
            delay = await job.action()
            job.failures, job.trouble = 0, None
            job.instruments.last_success.set(self._clock.now())
        except asyncio.CancelledError:
            # A stop has waited for it, or its scheduler was thrown away. APScheduler would tell it as an error.
            log.warning("a task was broken off", extra={"task": job.name})
        except Exception as error:
            job.instruments.failures.inc()
            job.failures += 1
            delay = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(job.failures, 20)) * random.uniform(0.5, 1.0)
            self._tell(job, error)
        finally:
            job.task = None
            job.instruments.runs.inc()
            job.instruments.duration.observe(self._clock.monotonic() - started)
            if job.interval is None:
                wait = job.longest_sleep if delay is None else min(delay, job.longest_sleep)
                if not job.failures:
                    wait = max(0.0, min(wait, job.woken_monotonic - self._clock.monotonic()))
                self._arm(job, wait)
            elif delay is not None and delay < job.interval:
                self._arm(job, delay)  # what has failed is not left failed for a whole interval

    def _tell(self, job: _Job, error: Exception) -> None:
        """Once for each new trouble, not once for each run."""
        text = str(error) or type(error).__name__
        if isinstance(error, CbqError):
            if job.trouble is None:
                log.warning("a task fails and will be tried again", extra={"task": job.name, "error": text})
        else:
            log.error("a task failed by an error of its own", extra={"task": job.name}, exc_info=error)
        job.trouble = text

    def _on_event(self, event: JobExecutionEvent) -> None:
        job = self._jobs.get(event.job_id)
        if job is None:
            return
        if event.code == EVENT_JOB_MISSED:
            job.instruments.missed.inc()
        else:
            job.instruments.skipped.inc()
