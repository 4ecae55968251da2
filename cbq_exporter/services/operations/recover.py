"""``recover``: what is in processing, and in nobody's hands, goes back to pending."""

from __future__ import annotations

from cbq_exporter.phrases import age
from cbq_exporter.services.operations.parts import Order, Parts, by_state, callbacks, check_growth
from cbq_exporter.services.operations.requests import Executed, Plan, Recover


async def plan(parts: Parts, operation: Recover) -> Plan:
    contents = await parts.inspection.contents()
    count = await _count(parts, operation)
    summary = [f"{parts.config.name} holds {by_state(contents.counts)}"]
    by_age = _by_age(parts, operation)
    if count:
        which = by_age or "all that no live lease of a daemon holds"
        summary.append(f"put {callbacks(count)} of processing back to the head of pending: {which}")
    elif not contents.counts["processing"]:
        summary.append("processing is empty")
    elif by_age is None:
        summary.append("live leases of a daemon hold all of processing: it is being sent")
    else:
        summary.append(f"nothing in processing was {by_age}")
        if operation.older_than is not None:
            # The age of what lies there is nowhere in it: where nobody looked, nothing is ever old.
            summary.append("how long is known from when a daemon first saw it; without an age, all that no lease holds")
    if count and not operation.only_known_stuck:
        summary.append("what other workers are sending at this moment is sent a second time")
    return Plan(
        operation,
        tuple(summary),
        {"callbacks": count},
        {"processing": contents.counts["processing"], "leases": contents.leases},
        nothing_to_do=count == 0,
        question=f"Recover {callbacks(count)}?",
    )


async def execute(parts: Parts, operation: Recover, plan: Plan, order: Order) -> Executed:
    check_growth(plan.counts["callbacks"], await _count(parts, operation), "to recover")
    recovery = parts.config.recovery
    if operation.only_known_stuck:
        done = await parts.healing.expired.recover(recovery.max_recoveries)
        expired = done.total
        order.progress(expired)
        done += await parts.healing.recover_stuck(
            recovery.stuck_after,
            recovery.max_recoveries,
            progress=lambda count: order.progress(expired + count),
        )
    else:
        done = await parts.healing.recover_all(operation.older_than, progress=order.progress)
    return Executed({"callbacks": done.returned, "dead": done.dead, "leases_dropped": done.leases_dropped})


async def _count(parts: Parts, operation: Recover) -> int:
    return await parts.healing.count_recoverable(_older_than(parts, operation))


def _older_than(parts: Parts, operation: Recover) -> float | None:
    """In seconds; None where any age will do."""
    return parts.config.recovery.stuck_after if operation.only_known_stuck else operation.older_than


def _by_age(parts: Parts, operation: Recover) -> str | None:
    """Which are meant, in words; None where any age will do."""
    older_than = _older_than(parts, operation)
    return None if older_than is None else f"seen there for {age(older_than)} or under a lease that ran out"
