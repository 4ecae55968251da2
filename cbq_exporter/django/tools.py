"""The operators' functions, for views and shells: the same names and results as the existing project's own.

Underneath they are the operations of the command line: nothing is lost half-way, a lock is released only while it is
still the one that was seen, a reset can be undone, and the audit says who it was. Each call opens its connections and
closes them; each has a twin for ``await`` whose name begins with ``a``.

All raise StoreError where Redis cannot be used, and ConfigError or UsageError where the settings do not fit.
``queue`` names one of several; ``by`` is who asks and ``reason`` why, for the audit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypedDict

from asgiref.sync import async_to_sync
from django.utils.asyncio import async_unsafe

from cbq_exporter.config import QueueConfig
from cbq_exporter.django.settings import chosen_queue, configuration
from cbq_exporter.errors import PreconditionChanged, StoreMisuse, StoreUnavailable
from cbq_exporter.model import Actor, State
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import Executed, Operation, Operations, Plan, Recover, Reset, Undo, Unlock
from cbq_exporter.services.people import person
from cbq_exporter.store.opening import open_connections, open_store, reader_of


class QueueStatus(TypedDict):
    """``last_send_time`` is epoch seconds; None where nothing was sent for a minute."""

    pending_count: int
    processing_count: int
    lock_status: Literal["locked", "unlocked"]
    lock_value: str | None
    last_send_time: float | None


@dataclass(frozen=True, slots=True)
class Desk:
    """One queue, and what it takes to change it."""

    queue: QueueConfig
    operations: Operations
    actor: Actor
    reason: str

    async def plan(self, make: Callable[[str], Operation]) -> Plan:
        """``make`` is given the queue's name."""
        return await self.operations.plan(make(self.queue.name))

    async def execute(self, plan: Plan) -> Executed:
        return await self.operations.execute(plan, actor=self.actor, reason=self.reason)

    async def decline(self, plan: Plan, why: str) -> None:
        await self.operations.decline(plan, actor=self.actor, reason=self.reason, why=why)


@asynccontextmanager
async def open_desk(queue: str | None = None, *, by: str = "", reason: str = "") -> AsyncIterator[Desk]:
    config = configuration()
    chosen = chosen_queue(config, queue)
    async with open_store(config) as store:
        operations = Operations(config, store, Audit(store))
        yield Desk(chosen, operations, person(by, by_way_of="django"), reason)


async def aget_queue_status(queue: str | None = None) -> QueueStatus:
    config = configuration()
    name = chosen_queue(config, queue).name
    async with open_connections(config) as connections:
        snapshot = await reader_of(config, connections).snapshot()
    if not snapshot.up:
        raise StoreUnavailable(snapshot.error or "Redis does not answer", kind="other")
    view = next(view for view in snapshot.queues if view.queue == name)
    if view.error is not None:
        raise StoreMisuse(view.error, kind="other")
    return {
        "pending_count": view.lengths.get(State.PENDING, 0),
        "processing_count": view.lengths.get(State.PROCESSING, 0),
        "lock_status": "unlocked" if view.lock is None else "locked",
        "lock_value": None if view.lock is None else view.lock.value,
        "last_send_time": view.last_send_at,
    }


async def aforce_release_lock(
    expected: str | None = None, *, queue: str | None = None, by: str = "", reason: str = ""
) -> bool:
    """Release the send lock, whoever holds it; with ``expected`` only where that is its value.

    False where there is none, or another. Whether its holder is still sending, nobody can know.
    """
    async with open_desk(queue, by=by, reason=reason) as desk:
        plan = await desk.plan(lambda name: Unlock(name, force=True))
        if expected is not None and plan.lock is not None and plan.lock.shown != expected:
            await desk.decline(plan, f"it was to be released from {expected}")
            return False
        try:
            executed = await desk.execute(plan)
        except PreconditionChanged:
            return False
    return bool(executed.counts["locks"])


async def aclear_processing_queue(*, queue: str | None = None, by: str = "", reason: str = "") -> int:
    """Put everything of processing that no daemon is sending back to the head of pending; returns how many."""
    async with open_desk(queue, by=by, reason=reason) as desk:
        executed = await desk.execute(await desk.plan(Recover))
    return executed.counts["callbacks"]


async def areset_callback_queue(*, queue: str | None = None, by: str = "", reason: str = "") -> bool:
    """Move everything of the queue to the trash, from where ``undo_reset`` brings it back; the lock becomes free.

    True, also where there was nothing.
    """
    async with open_desk(queue, by=by, reason=reason) as desk:
        await desk.execute(await desk.plan(lambda name: Reset(name, force=True)))
    return True


async def aundo_reset(trash_id: str | None = None, *, queue: str | None = None, by: str = "", reason: str = "") -> int:
    """Put back what a reset has moved, the last one without ``trash_id``; returns how many callbacks."""
    async with open_desk(queue, by=by, reason=reason) as desk:
        executed = await desk.execute(await desk.plan(lambda name: Undo(name, trash_id)))
    return executed.counts.get("callbacks", 0)


@async_unsafe("get_queue_status waits for Redis: in an event loop await aget_queue_status")
def get_queue_status(queue: str | None = None) -> QueueStatus:
    return async_to_sync(aget_queue_status)(queue)


@async_unsafe("force_release_lock waits for Redis: in an event loop await aforce_release_lock")
def force_release_lock(
    expected: str | None = None, *, queue: str | None = None, by: str = "", reason: str = ""
) -> bool:
    return async_to_sync(aforce_release_lock)(expected, queue=queue, by=by, reason=reason)


@async_unsafe("clear_processing_queue waits for Redis: in an event loop await aclear_processing_queue")
def clear_processing_queue(*, queue: str | None = None, by: str = "", reason: str = "") -> int:
    return async_to_sync(aclear_processing_queue)(queue=queue, by=by, reason=reason)


@async_unsafe("reset_callback_queue waits for Redis: in an event loop await areset_callback_queue")
def reset_callback_queue(*, queue: str | None = None, by: str = "", reason: str = "") -> bool:
    return async_to_sync(areset_callback_queue)(queue=queue, by=by, reason=reason)


@async_unsafe("undo_reset waits for Redis: in an event loop await aundo_reset")
def undo_reset(trash_id: str | None = None, *, queue: str | None = None, by: str = "", reason: str = "") -> int:
    return async_to_sync(aundo_reset)(trash_id, queue=queue, by=by, reason=reason)
