"""The demo's course: start everything, follow the story, and count at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path

import click

from cbq_exporter.cli import output
from cbq_exporter.cli.demo import story
from cbq_exporter.cli.demo.process import DaemonProcess, Totals
from cbq_exporter.cli.demo.producer import Link, Producer
from cbq_exporter.cli.demo.receivers import Receivers
from cbq_exporter.cli.demo.reckoning import Reckoning, all_dead, reckon
from cbq_exporter.cli.demo.view import Moment, Row, shown, summary
from cbq_exporter.config import load
from cbq_exporter.errors import CbqError
from cbq_exporter.model import QueueView, State
from cbq_exporter.store.opening import open_store

_QUEUE = "demo"
_DRAINS_WITHIN = 60.0  # seconds after the story's end
_LOOKS_EVERY = 0.5  # seconds
_UNSETTLED = (State.PENDING, State.PROCESSING, State.RETRY)


async def follow(seconds: float) -> int:
    """Returns the exit code: 1 where a callback is missing."""
    logging.getLogger("cbq_exporter").setLevel(logging.ERROR)  # what the store says about a kill is no news here
    folder = Path(tempfile.mkdtemp(prefix="cbq-demo-"))
    keep = False
    try:
        async with _parts(folder) as (daemon, link):
            result = await _Demo(seconds, daemon, link).run()
        click.echo(summary(result))
        keep = not result.exact
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if keep:
        output.say(f"the daemon's log and data are kept in {folder}")
    return 1 if keep else 0


@contextlib.asynccontextmanager
async def _parts(folder: Path) -> AsyncIterator[tuple[DaemonProcess, Link]]:
    """A daemon that is ready and the way to its store; none of their processes is left afterwards."""
    daemon = DaemonProcess(folder)
    config = load(daemon.config_file, {}).config
    link = Link(config, daemon.data_dir)
    try:
        await daemon.start()
        await link.renew()
        yield daemon, link
    finally:
        await link.close()
        await daemon.stop()
        if daemon.left_its_store:
            # A killed daemon's server lives on. Whoever opens the store next takes it over and ends it in the end.
            with contextlib.suppress(CbqError):
                async with open_store(config):
                    pass


class _Demo:
    def __init__(self, seconds: float, daemon: DaemonProcess, link: Link) -> None:
        self._seconds = seconds
        self._daemon = daemon
        self._link = link
        self._receivers = Receivers(self._fraction)
        self._producer = Producer(link, _QUEUE, self._receivers)
        self._totals = Totals()
        self._per_second: list[int] = []
        self._counted = 0
        self._began = time.monotonic()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _fraction(self) -> float:
        return self._elapsed() / self._seconds

    async def run(self) -> Reckoning:
        await self._receivers.start()
        try:
            self._began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._producer.run(self._fraction))
                tasks.create_task(self._kill_and_restart())
                left = await self._watch()
            assert self._link.store is not None
            dead = await all_dead(self._link.store.queues[_QUEUE])
        finally:
            await self._receivers.stop()
        return reckon(self._producer.accepted, self._receivers.delivered, dead, left)

    async def _kill_and_restart(self) -> None:
        await self._until(story.KILL_AT)
        await self._daemon.kill()
        await self._until(story.RESTART_AT)
        await self._daemon.start()

    async def _until(self, fraction: float) -> None:
        await asyncio.sleep(max(0.0, fraction * self._seconds - self._elapsed()))

    async def _watch(self) -> Mapping[str, int]:
        """Show what happens until everything that was accepted is settled, or that takes too long.

        Returns how many were unsettled at the end, by state.
        """
        left: dict[str, int] = {}
        with shown() as show:
            while self._elapsed() < self._seconds + _DRAINS_WITHIN:
                view = await self._look()
                show(await self._moment(view))
                if view is not None:
                    left = {state: view.lengths[state] for state in _UNSETTLED}
                    if self._fraction() >= 1 and not any(left.values()):
                        break
                await asyncio.sleep(_LOOKS_EVERY)
        return left

    async def _look(self) -> QueueView | None:
        """The queue as it is; None while the store does not answer."""
        store = self._link.store
        assert store is not None
        snapshot = await store.reader.snapshot(_LOOKS_EVERY)
        if snapshot.up and snapshot.queues[0].error is None:
            return snapshot.queues[0]
        await self._link.renew()
        return None

    async def _moment(self, view: QueueView | None) -> Moment:
        exposition = await self._daemon.metrics()
        if exposition is not None:
            self._totals.add(exposition)
        delivered = len(self._receivers.delivered)
        while len(self._per_second) < int(self._elapsed()):
            self._per_second.append(delivered - self._counted)
            self._counted = delivered
        lengths = {} if view is None else view.lengths
        totals = self._totals
        return Moment(
            elapsed=self._elapsed(),
            seconds=self._seconds,
            scene=story.scene_at(self._fraction()),
            pid=self._daemon.pid,
            metrics_url=f"{self._daemon.url}/metrics",
            accepted=len(self._producer.accepted),
            delivered=delivered,
            pending=lengths.get(State.PENDING),
            processing=lengths.get(State.PROCESSING),
            retry=lengths.get(State.RETRY),
            dead=lengths.get(State.DEAD),
            attempts=totals.of("cbq_delivery_attempts_total"),
            retried=totals.of("cbq_callbacks_retried_total"),
            recovered=totals.of("cbq_recovered_callbacks_total"),
            failures=totals.by("cbq_delivery_failures_total", "kind"),
            dead_by_reason=totals.by("cbq_callbacks_dead_total", "reason"),
            rows=self._rows(),
            per_second=self._per_second,
        )

    def _rows(self) -> list[Row]:
        fraction = self._fraction()
        does = {
            "good": "answers 200",
            "flaky": "fails one time in five" if fraction >= story.FLAKY_FROM else "answers 200",
            "down": "answers 503" if story.is_down(fraction) else "answers 200",
            "gone": "answers 410",
        }
        return [
            Row(name, does[name], one.requests.total(), one.requests[HTTPStatus.OK])
            for name, one in self._receivers.all.items()
        ]
