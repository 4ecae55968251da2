"""Reads the configuration again while the daemon runs: all of it is taken over, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from cbq_exporter.clock import Clock
from cbq_exporter.config import Config, Loaded, changes, load, warnings
from cbq_exporter.config.changes import Changes
from cbq_exporter.errors import CbqError, ConfigError, NeedsRestart, Problem
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Actor, Trigger

log = logging.getLogger(__name__)

_SIGNAL = Actor(Trigger.CLI, "SIGHUP")
_LAST_WAIT = 5.0  # seconds that a stop waits for a reload under way, once all queues are closed


class Reloader:
    """One reload at a time; whoever asks meanwhile has a turn after it.

    ``take_over`` is given a configuration that holds and what is different in it. It raises CbqError, with the old
    configuration in place, where the new one cannot be taken over.
    """

    def __init__(
        self,
        source: Path | None,
        current: Callable[[], Config],
        take_over: Callable[[Config, Changes, Actor], Awaitable[None]],
        instruments: Instruments,
        clock: Clock,
        other_files: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """``other_files`` names the queues whose templates or secrets hold something else now."""
        self._source = source
        self._current = current
        self._other_files = other_files
        self._take_over = take_over
        self._instruments = instruments
        self._clock = clock
        self._turn = asyncio.Lock()
        self._asked = asyncio.Event()
        self._then: Callable[[], None] | None = None
        self._stopping = False
        self._under_way: set[asyncio.Task[Changes]] = set()
        instruments.config_reloaded(True, clock.now())  # at the start

    def ask(self, then: Callable[[], None] | None = None) -> None:
        """Have it reloaded by ``run``. What is asked for again before that begins is done once.

        ``then`` is called at the end, however it ended.
        """
        self._then = then
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever it was asked for, until it is cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            with contextlib.suppress(Exception):  # it is in the log
                await self.reload(_SIGNAL)
            if self._then is not None:
                self._then()

    async def reload(self, actor: Actor) -> Changes:
        """Returns what has changed and is in effect. It goes on where the caller is cancelled.

        Raises ConfigError with all that is wrong with the file, NeedsRestart, or CbqError; the old configuration
        goes on then.
        """
        task = asyncio.create_task(self._reload(actor), name="reload")
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def refuse(self) -> None:
        """Begin no more: the daemon is stopping."""
        self._stopping = True

    async def end(self) -> None:
        """Wait for a moment for the one under way."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=_LAST_WAIT)

    def _ended(self, task: asyncio.Task[Changes]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _reload(self, actor: Actor) -> Changes:
        async with self._turn:
            try:
                made = await self._try(actor)
            except CbqError as error:
                self._instruments.config_reloaded(False, self._clock.now())
                log.error(
                    "not reloaded: the old configuration goes on",
                    extra={"actor": str(actor), "problems": str(error).splitlines()},
                )
                raise
            except Exception:
                self._instruments.config_reloaded(False, self._clock.now())
                log.exception("a reload failed by an error of its own", extra={"actor": str(actor)})
                raise
            self._instruments.config_reloaded(True, self._clock.now())
            self._tell(made, actor)
            return made

    async def _try(self, actor: Actor) -> Changes:
        if self._stopping:
            raise CbqError("the daemon is stopping: nothing is reloaded")
        loaded = await asyncio.to_thread(_load, self._source)
        made = changes.between(self._current(), loaded.config, self._other_files())
        if made.need_restart:
            raise NeedsRestart(str(loaded.source or "defaults"), made.need_restart)
        for warning in warnings(loaded.config):
            log.warning(warning)
        await self._take_over(loaded.config, made, actor)
        return made

    def _tell(self, made: Changes, actor: Actor) -> None:
        changed = [f"{name}: {', '.join(paths)}" for name, paths in made.changed.items()]
        told = {"added": made.added, "removed": made.removed, "changed": changed, "settings": made.settings}
        log.info(
            "reloaded" if made else "reloaded: nothing has changed",
            extra={"actor": str(actor), **{name: what for name, what in told.items() if what}},
        )


def _load(source: Path | None) -> Loaded:
    """Stricter than at the start: what a file that is just being written looks like is no configuration."""
    if source is not None:
        _check_file(source)
    return load(source)


def _check_file(source: Path) -> None:
    try:
        found = source.stat()
    except (OSError, ValueError):
        return  # ``load`` says what is wrong
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, and has been read before
        raise ConfigError((Problem(str(source), "file", "no regular file", "must be a file that can be read again"),))
    if found.st_size == 0:
        raise ConfigError((Problem(str(source), "file", "nothing in it", "must be a configuration"),))
