"""``dead retry`` and ``dead purge``: what operators do with callbacks that were given up."""

from __future__ import annotations

from cbq_exporter.phrases import count, size
from cbq_exporter.services import dead_letters
from cbq_exporter.services.operations.parts import Order, Parts
from cbq_exporter.services.operations.requests import Executed, Plan, Progress, PurgeDead, RetryDead


async def plan(parts: Parts, operation: RetryDead | PurgeDead, progress: Progress) -> Plan:
    made = await dead_letters.plan(parts.queue, operation.selection, progress)
    letters = count(made.count, "dead letter")
    summary = [f"no dead letter has the id {missing}" for missing in made.missing]
    verb, consequence = _WORDS[type(operation)]
    if made.count:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in made.by_reason.items())
        summary.append(f"{verb} {letters} of {parts.config.name} ({size(made.size)}): {reasons}")
        summary.append(consequence)
    return Plan(
        operation,
        tuple(summary),
        {"letters": made.count},
        {"letters": made.count, "bytes": made.size, "by_reason": made.by_reason},
        nothing_to_do=made.count == 0,
        question=f"{verb.capitalize()} {letters}?",
        letters=made,
    )


async def execute(parts: Parts, operation: RetryDead | PurgeDead, plan: Plan, order: Order) -> Executed:
    assert plan.letters is not None
    action = parts.queue.dead.retry if isinstance(operation, RetryDead) else parts.queue.dead.purge
    return Executed({"letters": await dead_letters.execute(parts.queue, plan.letters, action, order.progress)})


_WORDS = {
    RetryDead: ("retry", "they go to the tail of pending, with a clean record"),
    PurgeDead: ("purge", "they are deleted for good: there is no way back"),
}
