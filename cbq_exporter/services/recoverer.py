"""Brings callbacks back that were left in processing: by a daemon of ours that died, or by anybody else."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Actor, DeadReason, OperationName, ProcessingLook, Recovery, Trigger
from cbq_exporter.policy import stuck
from cbq_exporter.services.audit import Audit
from cbq_exporter.store.healing import Healing

log = logging.getLogger(__name__)

_SCHEDULE = Actor(Trigger.SCHEDULE)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was seen, and what was done about it: to our own claims, and to others'."""

    look: ProcessingLook
    own: Recovery
    others: Recovery


class Recoverer:
    """Leases that have run out, and what others claimed too long ago: back to the head of pending, or, after too many
    recoveries, to the dead letters. ``every`` is the seconds between two looks.
    """

    def __init__(
        self,
        name: str,
        healing: Healing,
        instruments: QueueInstruments,
        audit: Audit,
        *,
        rule: stuck.StuckRule,
        every: float,
    ) -> None:
        self._name = name
        self._healing = healing
        self._instruments = instruments
        self._audit = audit
        self._rule = rule
        self._every = every

    async def run_once(self) -> RecoveryReport:
        """One look, and what follows from it; raises StoreError."""
        look = await self._healing.sightings.look(self._rule.stuck_after, every=self._every)
        self._instruments.recovery_ineffective.set(look.ineffective)
        if look.begun_anew:
            log.warning(
                "the store's clock has leapt: what was seen in processing is seen anew", extra={"queue": self._name}
            )
        due = stuck.decide(look, self._rule)
        own = others = Recovery()
        if not due:
            return RecoveryReport(look, own, others)
        before = {"leases_over": look.leases_over, "stuck": look.stuck}
        async with self._audit.audited(
            self._name, _SCHEDULE, OperationName.RECOVER, reason="stuck in processing", before=before
        ) as after:
            if due.own:
                own = await self._healing.expired.recover(self._rule.max_recoveries)
                self._count(own)
            if due.others:
                others = await self._healing.recover_stuck(self._rule.stuck_after, self._rule.max_recoveries)
                self._count(others)
            total = own + others
            after.update(returned=total.returned, dead=total.dead, leases_dropped=total.leases_dropped)
        log.warning(
            "callbacks were stuck: they are back",
            extra={
                "queue": self._name,
                "leases_had_run_out": own.total,
                "left_by_others": others.total,
                "dead": total.dead,
                "without_callback": own.leases_dropped,
            },
        )
        return RecoveryReport(look, own, others)

    def _count(self, recovery: Recovery) -> None:
        self._instruments.recovered[Trigger.SCHEDULE].inc(recovery.returned)
        self._instruments.dead[DeadReason.POISON].inc(recovery.dead)
