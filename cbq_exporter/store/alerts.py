"""What alerts have caused and may cause yet, in one queue: shared by all daemons, and outliving them.

What an alert causes is written down before it is done. Whoever has the turn carries it out, one at a time; where the
turn runs out because its holder died, the next one takes the same alert up again. The limits of routes are counted
here too, so that they hold for all daemons together.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from cbq_exporter.model import AlertAction, AlertOutcome
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.times import ms

KEEP = 30 * 86_400.0  # seconds that an alert is known: one that fires for longer may act again
MOST = 10_000  # alerts
TURN = 30.0  # seconds that a turn lasts without a sign of life


class AlertState(StrEnum):
    """How far the action of an alert is. Those after ``dry_run`` may be tried again by the same alert."""

    OPEN = "open"
    DONE = "done"
    DRY_RUN = "dry_run"
    NOT_NEEDED = "not_needed"  # nothing was to be done any more
    REFUSED = "refused"  # by a safety rule
    CHANGED = "changed"  # somebody else changed the same in the last moment
    FAILED = "failed"
    EXPIRED = "expired"  # nobody came to it in time


class Intent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an alert is to cause. ``alert`` is its name, ``started`` the beginning of its firing as it was sent.

    ``place`` is where its route stands in the configuration. The most actions in an hour are counted under ``route``,
    the cooldown under ``target``. ``detail`` says what came of it.
    """

    alert: str
    fingerprint: str
    started: str
    place: str
    route: str
    target: str
    action: AlertAction
    destination: str | None = None
    dry_run: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one route. ``repeat_after`` is the seconds after which the same firing of an alert may act again; None: never.
    ``cooldown`` is seconds.
    """

    cooldown: float
    max_per_hour: int
    repeat_after: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an alert may act, or why not; ``left`` is for how many seconds yet, None where that is not known."""

    outcome: AlertOutcome
    left: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """An alert whose action is ours to carry out. Times are epoch seconds by the store's clock.

    ``taken`` is how often somebody began with it, this time included.
    """

    token: str
    id: str
    admitted_at: float
    taken: int
    intent: Intent
    now: float


@dataclass(frozen=True, slots=True)
class Admitted:
    """One line of the list of alerts."""

    at: float
    state: AlertState
    intent: Intent


class AlertsPause(msgspec.Struct, frozen=True):
    """Since when (epoch seconds, by the store), by whom and why. ``left`` is seconds, None without an end."""

    at: float
    by: str
    reason: str = ""
    left: float | None = None


UNKNOWN = Intent(alert="", fingerprint="", started="", place="", route="", target="", action=AlertAction.RECOVER)


class Alerts:
    """Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys

    async def admit(self, alert_id: str, intent: Intent, limits: Limits, *, only_look: bool = False) -> Verdict:
        """Write down that it will be done, where that is allowed now; ``only_look`` only says whether it is."""
        k = self._keys
        keys = [k.alerts, k.alert_times, k.alerts_open, k.alerts_paused, *self._limits_of(intent)]
        again_ms = "" if limits.repeat_after is None else ms(limits.repeat_after)
        arguments = [
            *(alert_id, msgspec.json.encode(intent), ms(limits.cooldown), limits.max_per_hour),
            *(again_ms, ms(KEEP), MOST, int(only_look)),
        ]
        word, left_ms = await self._connections.run_named("alert_admit", keys, arguments)
        return Verdict(AlertOutcome(word.decode()), None if left_ms < 0 else left_ms / 1000)

    async def take(self) -> Turn | None:
        """Begin with the one that has waited for longest; None where there is none, or it is not our turn."""
        k = self._keys
        token = secrets.token_hex(16)
        keys = [k.alerts, k.alerts_open, k.alerts_turn, k.alerts_paused]
        answer = await self._connections.run_named("alert_take", keys, [token, ms(TURN)])
        if not answer:
            return None
        alert_id, admitted_ms, taken, intent, now_ms = answer
        return Turn(token, alert_id.decode(), float(admitted_ms) / 1000, taken, _read(intent), now_ms / 1000)

    async def keep(self, turn: Turn) -> bool:
        """Prolong it; False where it is not ours any more."""
        arguments = [turn.token, ms(TURN)]
        return bool(await self._connections.run_named("alert_keep", [self._keys.alerts_turn], arguments))

    async def end(self, turn: Turn, state: AlertState, detail: str) -> bool:
        """Say what came of it; False where the turn is not ours any more. What was not needed counts for no limit."""
        k = self._keys
        intent = msgspec.structs.replace(turn.intent, detail=detail)
        keys = [k.alerts, k.alert_times, k.alerts_open, k.alerts_turn, *self._limits_of(intent)]
        ended = f"{state} {turn.taken} ".encode() + msgspec.json.encode(intent)
        arguments = [turn.token, turn.id, ended, int(state is AlertState.NOT_NEEDED)]
        return bool(await self._connections.run_named("alert_end", keys, arguments))

    async def newest(self, count: int) -> list[Admitted]:
        """The last ``count`` that were admitted, the newest first."""
        k = self._keys
        found = await self._connections.read("ZREVRANGE", k.alert_times, 0, count - 1, "WITHSCORES")
        if not found:
            return []
        texts = await self._connections.read("HMGET", k.alerts, *found[::2])
        return [_admitted(float(at_ms) / 1000, text or b"") for at_ms, text in zip(found[1::2], texts, strict=True)]

    async def paused(self) -> AlertsPause | None:
        note, left_ms = await self._connections.read_all(
            [("GET", self._keys.alerts_paused), ("PTTL", self._keys.alerts_paused)]
        )
        if note is None:
            return None
        try:
            pause = msgspec.json.decode(note, type=AlertsPause)
        except msgspec.DecodeError:
            pause = AlertsPause(0.0, "")
        return msgspec.structs.replace(pause, left=None if left_ms < 0 else left_ms / 1000)

    async def pause(self, pause: AlertsPause) -> None:
        """Whatever was paused before: this one holds."""
        for_ms = "" if pause.left is None else max(1, ms(pause.left))
        note = msgspec.json.encode(msgspec.structs.replace(pause, left=None))
        await self._connections.run_named("alert_pause", [self._keys.alerts_paused], [note, for_ms])

    async def resume(self) -> bool:
        """False where it was not paused."""
        return bool(await self._connections.run_named("alert_resume", [self._keys.alerts_paused], []))

    def _limits_of(self, intent: Intent) -> tuple[str, str]:
        return self._keys.actions_of(intent.route), self._keys.cooldown_of(intent.target)


async def waiting(connections: Connections, keys: Sequence[QueueKeys]) -> list[int]:
    """How many alerts each queue has still to act on, in one round trip."""
    return await connections.read_all([("ZCARD", k.alerts_open) for k in keys])


def _admitted(at: float, text: bytes) -> Admitted:
    state, _, rest = text.decode("utf-8", "replace").partition(" ")
    known = AlertState(state) if state in _STATES else AlertState.FAILED
    return Admitted(at, known, _read(rest.partition(" ")[2].encode()))


def _read(text: bytes) -> Intent:
    """What somebody else wrote there is nobody's intent."""
    try:
        return msgspec.json.decode(text, type=Intent)
    except msgspec.DecodeError:
        return UNKNOWN


_STATES = frozenset(AlertState)
