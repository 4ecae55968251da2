"""Who did what, why, and what came of it: nothing is changed without an entry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreError
from cbq_exporter.model import Actor, AuditEntry, Result
from cbq_exporter.store.audit import AuditLog
from cbq_exporter.store.opening import Store

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = {}


class Audit:
    """The audits of all queues of a store. ``count`` is told operation, actor and result of every end, for metrics."""

    def __init__(self, store: Store, *, count: Callable[[str, Actor, Result], None] | None = None) -> None:
        self._logs = {name: AuditLog(store.connections, queue.keys) for name, queue in store.queues.items()}
        self._count = count

    async def record(
        self,
        queue: str,
        actor: Actor,
        operation: str,
        *,
        reason: str = "",
        before: Mapping[str, Any] = _NOTHING,
        after: Mapping[str, Any] = _NOTHING,
        result: Result,
    ) -> str:
        """Write one entry; returns its id. Raises StoreError where it cannot be written."""
        if self._count is not None and result is not Result.STARTED:
            self._count(operation, actor, result)
        return await self._logs[queue].add(actor, operation, queue, reason, before, after, result)

    async def entries(
        self,
        queue: str,
        *,
        count: int,
        operation: str | None = None,
        actor: str | None = None,
        since: float | None = None,
    ) -> list[AuditEntry]:
        """The last ``count`` entries that fit, the newest last.

        ``actor`` is part of a name or a trigger; ``since`` is epoch seconds, by the store's clock.
        """
        found: list[AuditEntry] = []
        async for entry in self._logs[queue].newest_first(since):
            if fits(entry, operation, actor):
                found.append(entry)
                if len(found) >= count:
                    break
        return found[::-1]

    async def follow(self, queue: str, after_id: str) -> AsyncIterator[AuditEntry]:
        """The entries after ``after_id`` (``store.audit.BEGINNING``: all), and then each new one, without end."""
        while True:
            for entry in await self._logs[queue].after(after_id):
                after_id = entry.id
                yield entry

    async def trim(self, queue: str, max_age: float) -> int:
        """Delete entries older than ``max_age`` seconds; returns how many."""
        return await self._logs[queue].trim(max_age)

    @asynccontextmanager
    async def audited(
        self,
        queue: str,
        actor: Actor,
        operation: str,
        *,
        reason: str = "",
        before: Mapping[str, Any] = _NOTHING,
    ) -> AsyncIterator[dict[str, Any]]:
        """Around a change: an entry before it, without which nothing is changed, and one after it.

        What comes of the change is put into the mapping that this gives.
        """
        await self.record(queue, actor, operation, reason=reason, before=before, result=Result.STARTED)
        after: dict[str, Any] = {}

        async def end(result: Result) -> None:
            try:
                await self.record(queue, actor, operation, reason=reason, before=before, after=after, result=result)
            except StoreError as error:
                # What is done is done: the entry of its beginning stands.
                log.warning(
                    "the audit has only the beginning of an operation",
                    extra={"queue": queue, "operation": operation, "result": result.value, "error": str(error)},
                )

        try:
            yield after
        except BaseException as error:
            after["error"] = _said(error)
            await end(_RESULTS.get(type(error), Result.FAILED))
            raise
        await end(Result.DONE)


def fits(entry: AuditEntry, operation: str | None, actor: str | None) -> bool:
    return (operation is None or entry.operation == operation) and (actor is None or actor in str(entry.actor))


_RESULTS: Mapping[type[BaseException], Result] = {
    PreconditionChanged: Result.CHANGED,
    RefusedError: Result.REFUSED,
}


def _said(error: BaseException) -> str:
    if isinstance(error, CbqError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit | asyncio.CancelledError):
        return "interrupted"
    return f"{type(error).__name__}: {error}"
