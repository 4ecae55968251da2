"""The snapshot as the document of ``/api/v1/status``. Its field names are an interface: they only ever grow.

Times are epoch seconds, durations seconds, sizes bytes; null is unknown.
"""

from __future__ import annotations

from typing import Any

from cbq_exporter import __version__
from cbq_exporter.model import QueueView, Snapshot, State
from cbq_exporter.policy.lock import Release, Watch, thought

_MOST_TEXT = 200  # characters of what somebody else wrote, such as the lock's value


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Plain values only, ready for any JSON writer."""
    return {
        "version": __version__,
        "at": snapshot.at if snapshot.up else None,
        "redis": {
            "up": snapshot.up,
            "server": text(snapshot.server) or None,
            "replica": snapshot.replica,
            "read_seconds": snapshot.duration,
            "memory_used_bytes": snapshot.memory_used,
            "memory_max_bytes": snapshot.memory_max,
            "disk_write_failed": snapshot.disk_write_failed,
            "error": text(snapshot.error),
        },
        "queues": [_queue(view) for view in snapshot.queues],
    }


def _queue(view: QueueView) -> dict[str, Any]:
    return {
        "queue": view.queue,
        "mode": str(view.mode),
        "lengths": {str(state): view.lengths.get(state) for state in State},
        "oldest_at": {str(state): view.oldest_at.get(state) for state in State},
        "oldest_claim_at": view.oldest_claim_at,
        "retry_overdue": view.retry_overdue,
        "stuck": view.stuck,
        "untracked": view.untracked,
        "leased": view.leased,
        "lock": _lock(view),
        "last_send_at": view.last_send_at,
        "source_stats": dict(view.source_stats),
        "memory_bytes": view.memory,
        "paused": view.paused,
        "paused_destinations": view.paused_destinations,
        "failing_destinations": view.failing_destinations,
        "alerts_paused": view.alerts_paused,
        "newer": text(view.newer),
        "error": text(view.error),
    }


def _lock(view: QueueView) -> dict[str, Any]:
    """``held`` is null where the lock could not be read; ``ttl_seconds`` is null where a held lock has no expiry."""
    lock = view.lock
    if lock is None:
        held = None if view.error is not None else False
        return {"held": held, "ttl_seconds": None, "ours": False, "value": None, "keeper": None}
    return {
        "held": True,
        "ttl_seconds": lock.ttl,
        "ours": lock.ours,
        "value": text(lock.value),
        "keeper": _keeper(view),
    }


def _keeper(view: QueueView) -> dict[str, Any] | None:
    """What the lock keeper thinks of the lock; null where no daemon that supervises has seen it."""
    verdict = thought(view)
    if verdict is None:
        return None
    match verdict:
        case Release(reason):
            return {"verdict": "release", "reason": str(reason), "acts_at": None}
        case Watch(acts_at, reason):
            return {"verdict": "watch", "reason": str(reason), "acts_at": acts_at}
        case _:
            return {"verdict": "leave", "reason": None, "acts_at": None}


def text(value: str | None, most: int = _MOST_TEXT) -> str | None:
    """Bounded, and without the lone surrogates that bytes of another encoding are read as."""
    return None if value is None else value[:most].encode("utf-8", "replace").decode()
