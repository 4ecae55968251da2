"""What every operation is given, and the words that several of them use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cbq_exporter import phrases
from cbq_exporter.config import DestinationConfig, QueueConfig
from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.model import Actor, LockLook
from cbq_exporter.phrases import age
from cbq_exporter.services.operations.requests import Progress
from cbq_exporter.store.alerts import Alerts
from cbq_exporter.store.breakers import Breakers
from cbq_exporter.store.healing import Healing
from cbq_exporter.store.inspection import Inspection
from cbq_exporter.store.pauses import Pauses
from cbq_exporter.store.queue import Queue
from cbq_exporter.store.schema import Schema
from cbq_exporter.store.trash import Trash

_LEAST_GROWTH = 100  # callbacks
_GROWTH = 0.1  # of what was planned


@dataclass(frozen=True, slots=True)
class Parts:
    """One queue."""

    config: QueueConfig
    queue: Queue
    healing: Healing
    inspection: Inspection
    trash: Trash
    pauses: Pauses
    breakers: Breakers
    alerts: Alerts
    schema: Schema
    destinations: Sequence[DestinationConfig] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """By whom and why something is done, and who is told how many are done."""

    actor: Actor
    reason: str
    progress: Progress


def check_growth(planned: int, now: int, what: str) -> None:
    """Raises PreconditionChanged where there is much more now than was agreed to."""
    if now > planned + max(_LEAST_GROWTH, _GROWTH * planned):
        raise PreconditionChanged(
            f"nothing was changed: {callbacks(planned)} {what} were planned, now it is {now:,}; look again"
        )


def callbacks(count: int) -> str:
    return phrases.count(count, "callback")


def by_state(counts: Mapping[str, int]) -> str:
    """``3 pending, 1 dead``; ``nothing`` where there is none."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count) or "nothing"


def is_healthy(lock: LockLook, max_ttl: float) -> bool:
    """It expires by itself, and soon enough. ``max_ttl`` is seconds."""
    return lock.ttl is not None and lock.ttl <= max_ttl


def lock_line(lock: LockLook | None) -> str:
    """For people: what the lock is, since when, and what is known of its holder."""
    if lock is None:
        return "the send lock is free"
    ttl = "no expiry" if lock.ttl is None else f"{age(lock.ttl)} left"
    line = f"the send lock is held by {lock.shown}, {ttl}"
    if lock.first_seen_at < lock.now:
        line += f", first seen {age(lock.now - lock.first_seen_at)} ago"
    if lock.beat_at is not None:
        line += f", its daemon's last sign of life {age(lock.now - lock.beat_at)} ago"
    return line


def lock_fields(lock: LockLook | None) -> dict[str, Any]:
    """For the audit."""
    if lock is None:
        return {"lock": None}
    return {
        "lock": lock.shown,
        "ttl": lock.ttl,
        "first_seen_at": lock.first_seen_at,
        "beat_at": lock.beat_at,
    }
