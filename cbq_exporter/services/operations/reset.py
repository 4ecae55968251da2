"""``reset`` and ``undo``: everything of a queue out of the way, and back again."""

from __future__ import annotations

from datetime import UTC, datetime

from cbq_exporter.config.kinds import write_duration
from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.phrases import age
from cbq_exporter.services.operations.parts import (
    Order,
    Parts,
    by_state,
    callbacks,
    check_growth,
    is_healthy,
    lock_fields,
    lock_line,
)
from cbq_exporter.services.operations.requests import Executed, Plan, Reset, Undo
from cbq_exporter.store import trash
from cbq_exporter.store.inspection import Contents
from cbq_exporter.store.trash import Trashed


async def plan_reset(parts: Parts, operation: Reset) -> Plan:
    contents = await parts.inspection.contents()
    name, lock = parts.config.name, contents.lock
    summary = [f"{name} holds {by_state(contents.counts)}", lock_line(lock)]
    refusal = unless = None
    if lock is not None and is_healthy(lock, parts.config.lock.stale.max_ttl) and lock.beat_at is None:
        # A daemon's claims are fenced: what it is sending ends in the trash. Of others we know nothing.
        if not operation.force:
            refusal, unless = _refusal(lock.shown, lock.ttl or 0), "force"
        summary.append(f"{lock.shown} may be sending now: what is under way is sent again after an undo")
    if refusal is None and len(await parts.trash.all()) >= trash.MOST:
        refusal = f"{trash.MOST} resets of {name} are kept already: undo one, or wait until one expires"
    also = ", the statistics and the lock (which frees it)" if lock else " and the statistics"
    keep = write_duration(parts.config.trash.keep)
    summary.append(f"move {callbacks(contents.callbacks)}{also} to the trash; they are kept for {keep}")
    summary.append("undo puts them back, in front of what arrives until then")
    return Plan(
        operation,
        tuple(summary),
        contents.counts,
        {**contents.counts, **lock_fields(lock)},
        refusal=refusal,
        unless=unless,
        nothing_to_do=_is_empty(contents),
        question=f"Reset {name}?",
        lock=lock,
    )


def _refusal(holder: str, ttl: float) -> str:
    return (
        f"{holder} holds the send lock and may be sending: stop that worker and wait for the lock to expire "
        f"(in {age(ttl)} at the latest)"
    )


def _is_empty(contents: Contents) -> bool:
    return not (contents.callbacks or contents.leases or contents.stats or contents.lock)


async def execute_reset(parts: Parts, operation: Reset, plan: Plan, order: Order) -> Executed:
    contents = await parts.inspection.contents()
    check_growth(sum(plan.counts.values()), contents.callbacks, "to move")
    holder = contents.lock
    if holder is not None and holder.beat_at is None and not operation.force:
        if plan.lock is None or holder.value != plan.lock.value:
            raise PreconditionChanged(f"nothing was changed: {holder.shown} has taken the send lock since; look again")
        if is_healthy(holder, parts.config.lock.stale.max_ttl):
            raise PreconditionChanged(
                f"nothing was changed: {holder.shown} has prolonged the send lock since and may be sending; look again"
            )
    trash_id = await parts.trash.move(parts.config.trash.keep, contents.now_ms, contents.counts)
    if trash_id is None:
        raise PreconditionChanged("nothing was changed: there is nothing left to move")
    order.progress(contents.callbacks)
    return Executed(contents.counts, undo=trash_id)


async def plan_undo(parts: Parts, operation: Undo) -> Plan:
    kept = await parts.trash.all()
    contents = await parts.inspection.contents()
    name = parts.config.name
    if not kept and operation.trash_id is None:
        return Plan(operation, (f"nothing of {name} is in the trash",), nothing_to_do=True)
    chosen = (
        kept[-1] if operation.trash_id is None else next((one for one in kept if one.id == operation.trash_id), None)
    )
    if chosen is None:
        known = ", ".join(one.id for one in kept) or "nothing"
        return Plan(
            operation,
            tuple(_line(one, contents.now_ms / 1000) for one in kept),
            refusal=f"no reset {operation.trash_id} of {name} is in the trash: there is {known}",
        )
    others = len(kept) - 1
    summary = [
        f"{name} holds {by_state(contents.counts)}",
        _line(chosen, contents.now_ms / 1000) + (f"; {others} more in the trash" if others else ""),
        f"put {callbacks(chosen.callbacks)} back, in front of what arrived since",
    ]
    return Plan(
        operation,
        tuple(summary),
        chosen.counts,
        {**contents.counts, "trash_id": chosen.id},
        question=f"Put {callbacks(chosen.callbacks)} back?",
        trashed=chosen,
    )


def _line(one: Trashed, now: float) -> str:
    at = f"{datetime.fromtimestamp(one.at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    kept = "partly put back" if one.until is None else f"kept for another {age(one.until - now)}"
    return f"the reset {one.id} of {at} moved {by_state(one.counts)}; {kept}"


async def execute_undo(parts: Parts, plan: Plan, order: Order) -> Executed:
    trashed = plan.trashed
    assert trashed is not None
    done = 0
    async for moved in parts.trash.put_back(trashed.id):
        done += moved
        order.progress(done)
    return Executed({"callbacks": done})
