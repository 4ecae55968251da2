"""``retry now``: the next attempt of what has failed, without waiting for its time."""

from __future__ import annotations

from cbq_exporter.services import retries
from cbq_exporter.services.operations.parts import Order, Parts, callbacks
from cbq_exporter.services.operations.requests import Executed, Plan, Progress, RetryNow


async def plan(parts: Parts, operation: RetryNow, progress: Progress) -> Plan:
    made = await retries.plan(parts.queue, operation.destination, progress)
    of = f" for {operation.destination}" if operation.destination else ""
    wait = "waits" if made.count == 1 else "wait"
    summary = [f"{callbacks(made.count)} of {parts.config.name}{of} failed and {wait} for the next attempt"]
    if made.count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in made.by_kind.items())
        summary[0] += f": {kinds}"
        summary.append("make them due now: each attempt counts, and what fails again waits longer")
    if made.put_off:
        summary.append(
            f"not touched: {callbacks(made.put_off)} put off by a pause, a circuit, a limit or an order; "
            "resume ends the first two"
        )
    return Plan(
        operation,
        tuple(summary),
        {"callbacks": made.count},
        {"callbacks": made.count, "by_kind": made.by_kind},
        nothing_to_do=made.count == 0,
        question=f"Retry {callbacks(made.count)} now?",
        retries=made,
    )


async def execute(parts: Parts, plan: Plan, order: Order) -> Executed:
    assert plan.retries is not None
    return Executed({"callbacks": await retries.execute(parts.queue, plan.retries, order.progress)})
