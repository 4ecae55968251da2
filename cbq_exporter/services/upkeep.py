"""Keeps the daemon's own keys bounded, by count and by age."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cbq_exporter.model import Actor, OperationName, Trigger
from cbq_exporter.services.audit import Audit
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.sweeping import Sweeper
from cbq_exporter.store.trash import Trash

log = logging.getLogger(__name__)

# What went back to pending is remembered (attempts, first claim) until it is claimed again; where somebody
# else claims it, nobody tells us, and the memory goes by age.
_RETURNED_KEPT_MS = 7 * 24 * 3600 * 1000
_AUDIT_KEPT = 90 * 24 * 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class UpkeepReport:
    """How many of each went."""

    dead_trimmed: int = 0
    orphans: int = 0
    turns: int = 0
    forgotten: int = 0
    resets_expired: int = 0
    audit_trimmed: int = 0


class Upkeep:
    """``dead_max_age`` is seconds."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        sweeper: Sweeper,
        trash: Trash,
        audit: Audit,
        *,
        dead_max_count: int,
        dead_max_age: float,
    ) -> None:
        self._name = name
        self._queue = queue
        self._sweeper = sweeper
        self._trash = trash
        self._audit = audit
        self._dead_max_count = dead_max_count
        self._dead_max_age = dead_max_age

    async def run_once(self) -> UpkeepReport:
        """One bounded round; raises StoreError."""
        trimmed = await self._trim_dead()
        swept, turns = await self._sweeper.sweep_kept(), await self._sweeper.sweep_order()
        forgotten = await self._sweeper.forget_returned(await self._queue.store_now_ms() - _RETURNED_KEPT_MS)
        expired = await self._expire_trash()
        audit_trimmed = await self._audit.trim(self._name, _AUDIT_KEPT)
        report = UpkeepReport(trimmed, swept, turns, forgotten, expired, audit_trimmed)
        if trimmed or swept or turns:
            log.info(
                "kept within bounds",
                extra={
                    "queue": self._name,
                    "dead_trimmed": trimmed,
                    "orphans": swept,
                    "turns": turns,
                    "forgotten": forgotten,
                },
            )
        return report

    # What follows ends callbacks for good: that is audited, like every change.

    async def _trim_dead(self) -> int:
        count = await self._queue.dead.count()
        oldest_ms = await self._queue.store_now_ms() - int(self._dead_max_age * 1000)
        if count <= self._dead_max_count and not await self._queue.dead.died_before(oldest_ms, 1):
            return 0
        before, why = {"dead": count}, "dead.max_count or dead.max_age"
        async with self._audit.audited(
            self._name, _SCHEDULE, OperationName.PURGE_DEAD, reason=why, before=before
        ) as after:
            after["deleted"] = trimmed = await self._queue.dead.trim(self._dead_max_count, self._dead_max_age)
        return trimmed

    async def _expire_trash(self) -> int:
        expired = await self._trash.expired()
        for trash_id in expired:
            async with self._audit.audited(
                self._name, _SCHEDULE, OperationName.EXPIRE, before={"trash_id": trash_id}
            ) as after:
                after["resets"] = int(await self._trash.drop_expired(trash_id))
        return len(expired)


_SCHEDULE = Actor(Trigger.SCHEDULE)
