"""Planning and executing: the same way for the command line, the API, alerts and the schedule."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from cbq_exporter.config import Config
from cbq_exporter.errors import RefusedError
from cbq_exporter.model import Actor, Mode, OperationName, Result, Trigger
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import alerts, letters, pause, recover, reset, retries, unlock
from cbq_exporter.services.operations.parts import Order, Parts
from cbq_exporter.services.operations.requests import (
    Executed,
    Operation,
    Pause,
    PauseAlerts,
    Plan,
    Progress,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    ResumeAlerts,
    RetryDead,
    RetryNow,
    Undo,
    Unlock,
    name_of,
)
from cbq_exporter.store.alerts import Alerts
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.inspection import Inspection
from cbq_exporter.store.opening import Store
from cbq_exporter.store.pauses import Pauses
from cbq_exporter.store.schema import Schema
from cbq_exporter.store.trash import Trash

log = logging.getLogger(__name__)


# A person's tool changes what a person names: what they set for the daemon does not bind them, but they are told.
_OBSERVED = "the mode of this queue is observe: no daemon of this configuration would do this"


def _nobody(_done: int) -> None:
    """Told of progress where nobody looks."""


class Operations:
    """``plan`` only looks. ``execute`` does what was planned, if it still holds, between two entries of the audit."""

    def __init__(self, config: Config, store: Store, audit: Audit) -> None:
        self._audit = audit
        self._parts = {
            queue.name: Parts(
                queue,
                store.queues[queue.name],
                store.healing[queue.name],
                Inspection(store.connections, store.queues[queue.name].keys),
                Trash(store.connections, store.queues[queue.name].keys),
                Pauses(store.connections, store.queues[queue.name].keys),
                Breakers(store.connections, store.queues[queue.name].keys),
                Alerts(store.connections, store.queues[queue.name].keys),
                Schema(store.connections, store.queues[queue.name].keys),
                config.destinations,
            )
            for queue in config.queues
        }

    async def plan(self, operation: Operation, progress: Progress = _nobody) -> Plan:
        """What it would do now. ``progress`` is told how much has been looked at. Raises StoreError."""
        parts = self._parts[operation.queue]
        await parts.schema.check()
        plan = await self._plan(parts, operation, progress)
        if parts.config.mode is Mode.OBSERVE and not plan.nothing_to_do:
            return replace(plan, summary=(*plan.summary, _OBSERVED))
        return plan

    async def _plan(self, parts: Parts, operation: Operation, progress: Progress) -> Plan:
        match operation:
            case Unlock():
                return await unlock.plan(parts, operation)
            case Recover():
                return await recover.plan(parts, operation)
            case Reset():
                return await reset.plan_reset(parts, operation)
            case Undo():
                return await reset.plan_undo(parts, operation)
            case Pause():
                return await pause.plan_pause(parts, operation)
            case Resume():
                return await pause.plan_resume(parts, operation)
            case RetryDead() | PurgeDead():
                return await letters.plan(parts, operation, progress)
            case RetryNow():
                return await retries.plan(parts, operation, progress)
            case PauseAlerts():
                return await alerts.plan_pause(parts, operation)
            case ResumeAlerts():
                return await alerts.plan_resume(parts, operation)

    async def execute(
        self,
        plan: Plan,
        *,
        actor: Actor,
        reason: str = "",
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Executed:
        """Do what was planned. ``reason`` is kept in the audit; ``progress`` is told how many are done.

        Raises RefusedError where the plan has a refusal, PreconditionChanged where what is there is not what was
        planned, StoreError where the store fails or the audit cannot be written.
        """
        operation = plan.operation
        queue, name = operation.queue, name_of(operation)
        if self._parts[queue].config.mode is Mode.OBSERVE and actor.trigger is not Trigger.CLI:
            # Not even in the audit: to this queue a daemon never writes.
            log.warning("refused in observe mode", extra={"queue": queue, "operation": name, "actor": str(actor)})
            raise RefusedError(f"the mode of queue {queue} is observe: this daemon changes nothing of it")
        if plan.refusal is not None:
            await self.decline(plan, actor=actor, reason=reason, why=plan.refusal)
            raise RefusedError(plan.refusal, unless=plan.unless)
        if dry_run or plan.nothing_to_do:
            result = Result.DRY_RUN if dry_run else Result.DONE
            await self._record(plan, actor, reason, {}, result)
            return Executed(dict.fromkeys(plan.counts, 0))
        async with self._audit.audited(queue, actor, name, reason=reason, before=_before(plan)) as after:
            done = await self._do(plan, Order(actor, reason, _noting(after, progress or _nobody)))
            after.pop("progress", None)
            after.update(done.counts)
            if done.undo is not None:
                after["undo"] = done.undo
        return done

    async def decline(self, plan: Plan, *, actor: Actor, reason: str = "", why: str) -> None:
        """Note in the audit that it was not done: a rule or a person said no."""
        await self._record(plan, actor, reason, {"why": why}, Result.REFUSED)

    async def _do(self, plan: Plan, order: Order) -> Executed:
        operation = plan.operation
        parts = self._parts[operation.queue]
        match operation:
            case Unlock():
                return await unlock.execute(parts, operation, plan, order)
            case Recover():
                return await recover.execute(parts, operation, plan, order)
            case Reset():
                return await reset.execute_reset(parts, operation, plan, order)
            case Undo():
                return await reset.execute_undo(parts, plan, order)
            case Pause():
                return await pause.execute_pause(parts, operation, order)
            case Resume():
                return await pause.execute_resume(parts, operation, order)
            case RetryDead() | PurgeDead():
                return await letters.execute(parts, operation, plan, order)
            case RetryNow():
                return await retries.execute(parts, plan, order)
            case PauseAlerts():
                return await alerts.execute_pause(parts, operation, order)
            case ResumeAlerts():
                return await alerts.execute_resume(parts, operation)

    async def _record(self, plan: Plan, actor: Actor, reason: str, after: dict[str, Any], result: Result) -> None:
        operation = plan.operation
        name: OperationName = name_of(operation)
        await self._audit.record(
            operation.queue,
            actor,
            name,
            reason=reason,
            before=_before(plan),
            after=after,
            result=result,
        )


def _noting(after: dict[str, Any], progress: Progress) -> Progress:
    """Also where it ends early, the audit says how far it came."""

    def show(done: int) -> None:
        after["progress"] = done
        progress(done)

    return show


def _before(plan: Plan) -> dict[str, Any]:
    return {**_asked(plan.operation), **plan.before}


def _asked(operation: Operation) -> dict[str, Any]:
    """What was asked for, where it is not the usual."""
    asked: dict[str, Any] = {}
    for name in ("force", "only_known_stuck", "older_than", "trash_id", "destination", "seconds"):
        value = getattr(operation, name, None)
        if value not in (None, False):
            asked[name] = value
    if isinstance(operation, RetryDead | PurgeDead):
        selection = operation.selection
        asked.update({k: v for k, v in (("reason", selection.reason), ("destination", selection.destination)) if v})
        if selection.older_than is not None:
            asked["older_than"] = selection.older_than
        if selection.ids:
            asked["ids"] = list(selection.ids[:20])
    return asked
