"""The attendants of all queues, and how some of them follow others while the rest goes on untouched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator

from cbq_exporter.config.changes import Changes
from cbq_exporter.daemon.attendant import Attendant
from cbq_exporter.errors import CbqError
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Actor, Mode
from cbq_exporter.store.opening import keys_of

log = logging.getLogger(__name__)


class Attendants:
    """By the queue's name."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._all: dict[str, Attendant] = {}
        self._stopping = False

    def __iter__(self) -> Iterator[Attendant]:
        return iter(tuple(self._all.values()))

    def start(self, attendants: Iterable[Attendant]) -> None:
        for attendant in attendants:
            self._all[attendant.name] = attendant
            attendant.start()

    async def replace(self, attendants: Iterable[Attendant], changes: Changes, actor: Actor, grace: float) -> None:
        """Close those that ``attendants`` (not started yet) follow, and those of removed queues; start the new ones.

        Each begins as soon as nobody else attends to its queue or works on its keys. Sends in flight have ``grace``
        seconds. Raises CbqError where one could not be started: the others are.
        """
        new = {attendant.name: attendant for attendant in attendants}
        users = _users(self._all[name] for name in (*changes.changed, *changes.removed))
        followed = {keys_of(one.config).lock for one in new.values() if one.config.mode is Mode.DISPATCH}

        async def close(old: Attendant) -> None:
            try:
                await old.close(grace, hand_over=keys_of(old.config).lock in followed)
            except Exception:
                log.exception("a queue could not be closed in order", extra={"queue": old.name})

        async def follow(attendant: Attendant) -> None:
            # They must not work at the same time: a queue may have got the keys of another one.
            met = {old for one in _names_and_keys(attendant) for old in users.get(one, ())}
            await asyncio.gather(*(close(old) for old in met))
            if self._stopping:
                await attendant.decline()
                return
            old = self._all.get(attendant.name)
            self.start([attendant])
            if old is None:
                await attendant.note_reload(actor, {"added": True})
            else:
                self._forget_tasks(old, but=attendant)
                await attendant.note_reload(actor, {"changed": changes.changed[attendant.name]})

        async def leave(old: Attendant) -> None:
            await close(old)
            del self._all[old.name]
            self._instruments.forget_queue(old.name)
            self._forget_tasks(old)
            await old.note_reload(actor, {"removed": True})

        results = await asyncio.gather(
            *(follow(attendant) for attendant in new.values()),
            *(leave(self._all[name]) for name in changes.removed),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        for error in failed:
            log.error("a queue is not attended to", exc_info=error)
        if failed:
            raise CbqError("not every queue could be taken over: see the log, and restart the daemon")

    def _forget_tasks(self, old: Attendant, but: Attendant | None = None) -> None:
        for task in old.tasks:
            if but is None or task not in but.tasks:
                self._instruments.forget_task(task)

    async def close(self, grace: float) -> None:
        """Close all, with ``grace`` seconds for what is being sent; from now on none is started."""
        self._stopping = True
        for attendant in self:
            attendant.stop_claiming()
        results = await asyncio.gather(*(attendant.close(grace) for attendant in self), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("a queue could not be closed in order", exc_info=result)


def _users(attendants: Iterable[Attendant]) -> dict[tuple[str, str], list[Attendant]]:
    """By what of ``_names_and_keys`` they use."""
    users: dict[tuple[str, str], list[Attendant]] = {}
    for attendant in attendants:
        for one in _names_and_keys(attendant):
            users.setdefault(one, []).append(attendant)
    return users


def _names_and_keys(attendant: Attendant) -> set[tuple[str, str]]:
    """What is for one attendant at a time."""
    keys = keys_of(attendant.config).all()
    return {("name", attendant.name), *(("key", key) for key in keys)}
