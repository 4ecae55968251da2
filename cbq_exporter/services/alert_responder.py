"""Does what alerts ask for, where the configuration, the limits and the store agree, and each thing once.

``receive`` decides and writes down what is to be done; ``run_once`` does it. Between the two a crash forgets nothing,
and what was begun and never ended is looked at anew before it is done. Acting is not part of receiving, because
Alertmanager waits for the answer, and because what is left over after a crash goes the same way as all else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.config import Config, QueueConfig
from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreError
from cbq_exporter.logs import printable
from cbq_exporter.model import Actor, AlertAction, AlertOutcome, Mode, Trigger
from cbq_exporter.phrases import age
from cbq_exporter.policy import lock
from cbq_exporter.policy.alerts import Act, Alert, decide, route_key, target_key
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.operations import (
    Operation,
    Operations,
    Pause,
    Plan,
    Recover,
    Resume,
    RetryDead,
    Unlock,
)
from cbq_exporter.store import alerts as store_alerts
from cbq_exporter.store.alerts import UNKNOWN, Alerts, AlertState, Intent, Limits, Turn
from cbq_exporter.store.opening import Store, lock_rule_of

log = logging.getLogger(__name__)

STALE = 3600.0  # seconds after which nobody acts on an alert any more
_MOST_TAKEN = 3  # times that one is begun with: more than a crash or two has another reason
_MOST_NAME = 200  # characters of an alert's name
_SAME_MOMENT = 0.001  # seconds: the store's clock is read in ms

# A duplicate may be what a daemon that died has left.
_TO_BE_DONE = frozenset({AlertOutcome.ACCEPTED, AlertOutcome.DRY_RUN, AlertOutcome.DUPLICATE})

Count = Callable[[AlertOutcome], None]


@dataclass(frozen=True, slots=True)
class Received:
    """What becomes of one alert. ``place`` is where its route stands in the configuration; empty where none fits."""

    alert: Alert
    outcome: AlertOutcome
    why: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class AlertReport:
    """How many actions ended in which state."""

    ended: Mapping[AlertState, int]


class AlertResponder:
    """``count`` is told the outcome of each alert received; ``wake`` is called where there is something to be done."""

    def __init__(
        self,
        config: Config,
        store: Store,
        operations: Operations,
        *,
        count: Count = lambda outcome: None,
        wake: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._routes = config.alerts.routes
        self._queues: dict[str, QueueConfig] = {queue.name: queue for queue in config.queues}
        self._modes = {queue.name: queue.mode for queue in config.queues}
        self._connections = store.connections
        self._keys = {name: store.queues[name].keys for name, mode in self._modes.items() if mode is not Mode.OBSERVE}
        self._alerts = {name: Alerts(store.connections, keys) for name, keys in self._keys.items()}
        self._operations = operations
        self._count = count
        self._wake = wake
        self._clock = clock

    # --- receiving ---------------------------------------------------------------------------

    async def receive(self, alerts: Sequence[Alert]) -> list[Received]:
        """Decide on each, and write down what is to be done. Raises StoreError where the store fails: what was
        decided until then stands, and is a duplicate when it comes again.
        """
        received: list[Received] = []
        try:
            await self._decide(alerts, received, only_look=False)
        except StoreError:
            for _ in alerts[len(received) :]:
                self._count(AlertOutcome.FAILED)
            raise
        finally:
            for one in received:
                self._count(one.outcome)
            if any(one.outcome in _TO_BE_DONE for one in received):
                self._wake()
        return received

    async def look(self, alerts: Sequence[Alert]) -> list[Received]:
        """What ``receive`` would say now, each by itself; nothing is changed or counted. Raises StoreError."""
        received: list[Received] = []
        await self._decide(alerts, received, only_look=True)
        return received

    async def _decide(self, alerts: Sequence[Alert], received: list[Received], *, only_look: bool) -> None:
        needless: dict[Operation, str] = {}  # of many alerts that ask for the same, the store is asked once
        for alert in alerts:
            # Beside the loop: labels come from outside, and may be as long as the body of a request.
            decision = await asyncio.to_thread(decide, alert, self._routes, self._modes)
            if isinstance(decision, Act):
                received.append(await self._admit(alert, decision, needless, only_look=only_look))
            else:
                place = "" if decision.place is None else _place(decision.place)
                received.append(Received(alert, decision.outcome, decision.why, place))

    async def _admit(self, alert: Alert, act: Act, needless: dict[Operation, str], *, only_look: bool) -> Received:
        intent = _intent(alert, act)
        alerts, limits = self._alerts[act.queue], _limits(act)
        verdict = await alerts.admit(alert.id, intent, limits, only_look=True)
        if verdict.outcome is AlertOutcome.ACCEPTED:
            operation = _operation(act.queue, intent)
            if operation not in needless:
                needless[operation] = self._needless(await self._operations.plan(operation))
            if needless[operation]:
                return Received(alert, AlertOutcome.NOT_NEEDED, needless[operation], intent.place)
            if not only_look:
                verdict = await alerts.admit(alert.id, intent, limits)
        if verdict.outcome is not AlertOutcome.ACCEPTED:
            return Received(alert, verdict.outcome, _why(verdict.outcome, verdict.left, limits), intent.place)
        outcome = AlertOutcome.DRY_RUN if intent.dry_run else AlertOutcome.ACCEPTED
        return Received(alert, outcome, f"{intent.action} of {intent.destination or act.queue}", intent.place)

    def _needless(self, plan: Plan) -> str:
        """Why the store shows nothing to be done; empty where it does."""
        if plan.nothing_to_do:
            return plan.summary[-1] if plan.summary else "there is nothing to do"
        if plan.refusal is not None:
            return plan.refusal
        if plan.lock is not None:
            # An alert frees what the lock keeper would, and no lock that it would leave.
            stale = self._queues[plan.operation.queue]
            if not isinstance(lock.judge(plan.lock, lock_rule_of(stale)), lock.Release):
                return f"the lock of {plan.lock.shown} is not stale by lock.stale"
        return ""

    # --- acting ------------------------------------------------------------------------------

    async def run_once(self) -> AlertReport:
        """Carry out what is written down, of each queue one after the other. Raises StoreError."""
        ended: Counter[AlertState] = Counter()
        if not self._routes:
            return AlertReport(ended)
        counts = await store_alerts.waiting(self._connections, list(self._keys.values()))
        for queue, count in zip(self._keys, counts, strict=True):
            while count and (turn := await self._alerts[queue].take()) is not None:
                state = await self._have(queue, turn)
                if state is not None:
                    ended[state] += 1
        return AlertReport(ended)

    async def _have(self, queue: str, turn: Turn) -> AlertState | None:
        """One action, for as long as the turn is ours; None where it was not any more."""
        work = asyncio.create_task(self._carry_out(queue, turn))
        try:
            kept_monotonic = self._clock.monotonic()
            while not (await asyncio.wait({work}, timeout=store_alerts.TURN / 3))[0]:
                try:
                    if not await self._alerts[queue].keep(turn):
                        _warn_lost(queue, turn)
                        return None
                    kept_monotonic = self._clock.monotonic()
                except StoreError:
                    if self._clock.monotonic() - kept_monotonic > store_alerts.TURN:
                        raise
            state, detail = work.result()
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if state is None or not await self._alerts[queue].end(turn, state, detail):
            _warn_lost(queue, turn)
            return None
        log.info("an alert was acted on", extra={**_about(queue, turn), "state": state.value, "detail": detail})
        return state

    async def _carry_out(self, queue: str, turn: Turn) -> tuple[AlertState | None, str]:
        """How it ended, None where the turn is not ours any more. Raises StoreError: it is taken up again then."""
        intent = turn.intent
        if intent is UNKNOWN:
            return AlertState.FAILED, "what was to be done cannot be read"
        if turn.taken > _MOST_TAKEN:
            return AlertState.FAILED, f"it was begun {_MOST_TAKEN} times and never came to an end"
        waited = turn.now - turn.admitted_at
        plan = await self._operations.plan(_operation(queue, intent, waited))
        actor, reason = Actor(Trigger.ALERT, intent.fingerprint), f"alert {intent.alert}, {intent.place}"
        try:
            if waited > STALE:
                why = f"nobody came to it for {age(waited)}"
                await self._operations.decline(plan, actor=actor, reason=reason, why=why)
                return AlertState.EXPIRED, why
            if needless := self._needless(plan):
                return AlertState.NOT_NEEDED, needless
            if not await self._alerts[queue].keep(turn):  # planning may take long
                return None, ""
            executed = await self._operations.execute(plan, actor=actor, reason=reason, dry_run=intent.dry_run)
        except PreconditionChanged as error:
            return AlertState.CHANGED, str(error)
        except RefusedError as error:
            return AlertState.REFUSED, str(error)
        except StoreError:
            raise
        except CbqError as error:
            return AlertState.FAILED, str(error)
        except Exception as error:
            log.exception("acting on an alert failed", extra=_about(queue, turn))
            return AlertState.FAILED, f"{type(error).__name__}: {error}"
        if intent.dry_run:
            return AlertState.DRY_RUN, plan.summary[-1]
        return AlertState.DONE, ", ".join(f"{what} {count:,}" for what, count in executed.counts.items() if count)


def _place(position: int) -> str:
    return f"alerts.routes[{position}]"


def _limits(act: Act) -> Limits:
    return Limits(act.route.cooldown, act.route.max_per_hour, act.route.repeat_after)


def _intent(alert: Alert, act: Act) -> Intent:
    return Intent(
        alert=printable(alert.name, _MOST_NAME),
        fingerprint=alert.fingerprint,
        started=alert.started,
        place=_place(act.place),
        route=route_key(act.route),
        target=target_key(act),
        action=act.route.action,
        destination=act.destination,
        dry_run=act.route.dry_run,
    )


def _operation(queue: str, intent: Intent, waited: float = 0.0) -> Operation:
    """``waited`` is the seconds since it was written down: a letter that died since is not retried, or one could be
    retried twice after a crash.
    """
    match intent.action:
        case AlertAction.RECOVER:
            return Recover(queue, only_known_stuck=True)
        case AlertAction.UNLOCK:
            return Unlock(queue)
        case AlertAction.PAUSE:
            return Pause(queue, intent.destination)
        case AlertAction.RESUME:
            return Resume(queue, intent.destination)
        case AlertAction.RETRY_DEAD:
            older_than = waited - _SAME_MOMENT if waited > _SAME_MOMENT else None
            return RetryDead(queue, Selection(destination=intent.destination, older_than=older_than))


def _why(outcome: AlertOutcome, left: float | None, limits: Limits) -> str:
    yet = "" if left is None else f", for {age(left)} yet"
    match outcome:
        case AlertOutcome.PAUSED:
            return f"actions on alerts are paused{yet}"
        case AlertOutcome.DUPLICATE:
            return f"this firing of it was accepted before{yet}"
        case AlertOutcome.COOLDOWN:
            return f"its route did the same within the cooldown of {age(limits.cooldown)}{yet}"
        case _:
            return f"its route acted on this queue {limits.max_per_hour} times within an hour{yet}"


def _about(queue: str, turn: Turn) -> dict[str, str]:
    intent = turn.intent
    return {"queue": queue, "alert": intent.alert, "fingerprint": intent.fingerprint, "action": intent.action}


def _warn_lost(queue: str, turn: Turn) -> None:
    log.warning("somebody else acts on an alert that we began with", extra=_about(queue, turn))
