"""Releases a send lock that was left behind; see ``policy.lock`` for which that is."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.metrics.instruments import QueueInstruments
from cbq_exporter.model import Actor, LockLook, LockRule, OperationName, ReleaseReason, Trigger
from cbq_exporter.policy import lock
from cbq_exporter.services.audit import Audit
from cbq_exporter.store.lock_watch import LockWatch

log = logging.getLogger(__name__)

_SCHEDULE = Actor(Trigger.SCHEDULE)


@dataclass(frozen=True, slots=True)
class LockReport:
    """``verdict`` is None where the lock is free; ``aborted``: it was to be released, and had changed."""

    verdict: lock.Verdict | None = None
    released: ReleaseReason | None = None
    aborted: bool = False


class LockKeeper:
    """``auto`` False: it only looks. ``forget_after`` seconds without a look, and what was seen is forgotten."""

    def __init__(
        self,
        name: str,
        watch: LockWatch,
        instruments: QueueInstruments,
        audit: Audit,
        *,
        rule: LockRule,
        auto: bool,
        forget_after: float,
    ) -> None:
        self._name = name
        self._watch = watch
        self._instruments = instruments
        self._audit = audit
        self._rule = rule
        self._auto = auto
        self._forget_after = forget_after

    async def run_once(self) -> LockReport:
        """One heartbeat and one look; raises StoreError."""
        await self._watch.beat()
        look = await self._watch.look(forget_after=self._forget_after)
        if look is None:
            return LockReport()
        verdict = lock.judge(look, self._rule)
        if not self._auto or not isinstance(verdict, lock.Release):
            return LockReport(verdict)
        try:
            await self._release(look, verdict.reason)
        except PreconditionChanged:
            self._instruments.lock_release_aborts.inc()
            log.info("the lock has changed and is left", extra={"queue": self._name, "reason": verdict.reason.value})
            return LockReport(verdict, aborted=True)
        self._instruments.lock_releases[verdict.reason].inc()
        log.warning(
            "a lock that was left behind is released",
            extra={"queue": self._name, "reason": verdict.reason.value, "lock": look.shown[:200]},
        )
        return LockReport(verdict, verdict.reason)

    async def _release(self, look: LockLook, reason: ReleaseReason) -> None:
        before = {"lock": look.shown[:200], "ttl": look.ttl, "untouched_since": look.untouched_since}
        async with self._audit.audited(
            self._name, _SCHEDULE, OperationName.UNLOCK, reason=reason.value, before=before
        ) as after:
            if not await self._watch.release(look):
                raise PreconditionChanged("the lock has changed since it was looked at: it is left")
            after["lock"] = None
