"""``unlock``: free the send lock that somebody left behind."""

from __future__ import annotations

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.model import LockLook
from cbq_exporter.phrases import age
from cbq_exporter.services.operations.parts import Order, Parts, is_healthy, lock_fields, lock_line
from cbq_exporter.services.operations.requests import Executed, Plan, Unlock


async def plan(parts: Parts, operation: Unlock) -> Plan:
    lock = (await parts.inspection.contents()).lock
    if lock is None:
        return Plan(operation, (lock_line(None),), {"locks": 0}, lock_fields(None), nothing_to_do=True)
    healthy = is_healthy(lock, parts.config.lock.stale.max_ttl)
    summary = [lock_line(lock)]
    refusal = None
    if healthy and not operation.force:
        expires = f"it expires in {age(lock.ttl or 0)} by itself"
        refusal = f"the lock is healthy: {lock.shown} holds it and {expires}; wait for that"
    elif healthy:
        summary.append("it is healthy: its holder may be sending, and another may begin to beside it")
    summary.append("free it, if it is still the same then")
    return Plan(
        operation,
        tuple(summary),
        {"locks": 1},
        lock_fields(lock),
        refusal=refusal,
        unless="force",
        question=f"Free the lock of {lock.shown}?",
        lock=lock,
    )


async def execute(parts: Parts, operation: Unlock, plan: Plan, order: Order) -> Executed:
    lock = plan.lock
    assert isinstance(lock, LockLook)
    now = None if operation.force else (await parts.inspection.contents()).lock
    # Whoever agreed to free one that does not expire soon has not agreed to free one that does.
    heals_itself = now is not None and is_healthy(now, parts.config.lock.stale.max_ttl)
    if heals_itself or not await parts.healing.lock.release(lock, even_if_touched=operation.force):
        raise PreconditionChanged(
            f"nothing was changed: the lock is not as it was planned (held by {lock.shown}); look again with status"
        )
    order.progress(1)
    return Executed({"locks": 1})
