"""``alerts pause`` and ``alerts resume``: whether alerts may cause anything in a queue."""

from __future__ import annotations

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.phrases import age
from cbq_exporter.services.operations.parts import Order, Parts
from cbq_exporter.services.operations.requests import Executed, PauseAlerts, Plan, ResumeAlerts
from cbq_exporter.store.alerts import AlertsPause


async def plan_pause(parts: Parts, operation: PauseAlerts) -> Plan:
    name, before = parts.config.name, await parts.alerts.paused()
    until = "until resume" if operation.seconds is None else f"for {age(operation.seconds)}"
    state = await _state(parts, before)
    if before is not None and before.left is None and operation.seconds is None:
        return Plan(operation, (state,), {"pauses": 0}, nothing_to_do=True)
    return Plan(
        operation,
        (state, f"pause them {until}: alerts are received and cause nothing; what has begun is finished"),
        {"pauses": 1},
        {"paused": before is not None},
        question=f"Pause actions on alerts of {name}?",
    )


async def execute_pause(parts: Parts, operation: PauseAlerts, order: Order) -> Executed:
    at = await parts.queue.store_now_ms() / 1000
    await parts.alerts.pause(AlertsPause(at, str(order.actor), order.reason, operation.seconds))
    return Executed({"pauses": 1})


async def plan_resume(parts: Parts, operation: ResumeAlerts) -> Plan:
    before = await parts.alerts.paused()
    state = await _state(parts, before)
    if before is None:
        return Plan(operation, (state,), {"pauses": 0}, nothing_to_do=True)
    return Plan(
        operation,
        (state, "resume them"),
        {"pauses": 1},
        {"paused": True},
        question=f"Resume actions on alerts of {parts.config.name}?",
    )


async def execute_resume(parts: Parts, operation: ResumeAlerts) -> Executed:
    if not await parts.alerts.resume():
        raise PreconditionChanged(
            f"nothing was changed: actions on alerts of {operation.queue} were resumed or their pause ended meanwhile"
        )
    return Executed({"pauses": 1})


async def _state(parts: Parts, pause: AlertsPause | None) -> str:
    actions = f"actions on alerts of {parts.config.name}"
    if pause is None:
        return f"{actions} are not paused"
    now = await parts.queue.store_now_ms() / 1000
    left = "" if pause.left is None else f", and are for another {age(pause.left)}"
    why = f": {pause.reason}" if pause.reason else ""
    return f"{actions} have been paused for {age(now - pause.at)} by {pause.by or 'somebody'}{left}{why}"
