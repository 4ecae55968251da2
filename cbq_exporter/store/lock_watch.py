"""What a daemon sees of the send lock, whoever holds it, and how one that was left behind is released.

Since when it is what it is, is kept in the store: see sightings.py, which does the same for processing.
"""

from __future__ import annotations

from typing import Any

from cbq_exporter.clock import Clock
from cbq_exporter.model import LockLook
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.ledger import Ledger
from cbq_exporter.store.times import ms

_BEATS_KEPT_MS = 3_600_000
_MOST_DAEMONS = 1000


class LockWatch:
    """Of one queue. ``lock_value`` is what this daemon writes into the send lock; empty where it writes none.

    Every method raises StoreUnavailable (try again later; a change may or may not have happened) or StoreMisuse.
    """

    def __init__(self, connections: Connections, keys: QueueKeys, lock_value: str, clock: Clock) -> None:
        self._connections = connections
        self._keys = keys
        self._lock_value = lock_value
        self._clock = clock
        self._ledger = Ledger(clock)

    async def beat(self) -> None:
        """Say that this daemon lives."""
        if self._lock_value:
            arguments = [self._lock_value, _BEATS_KEPT_MS, _MOST_DAEMONS]
            await self._connections.run_named("beat", [self._keys.daemons], arguments)

    async def look(self, *, forget_after: float = 60.0) -> LockLook | None:
        """What the lock is now and since when; None where it is free. Remembers the first sight of it.

        Where nobody looks for ``forget_after`` seconds, the next look is the first.
        """
        began = self._clock.monotonic()
        answer = await self._look(forget_after, anew=False)
        if answer and self._ledger.has_leapt(answer[5], began):
            answer = await self._look(forget_after, anew=True)
        if not answer:
            return None
        value, ttl_ms, first_ms, untouched_ms, beat_ms, now_ms = answer
        return look_of(value, ttl_ms, first_ms, untouched_ms, beat_ms, now_ms)

    async def _look(self, forget_after: float, *, anew: bool) -> list[Any]:
        k = self._keys
        arguments = [ms(forget_after), int(anew)]
        answer: list[Any] = await self._connections.run_named("lock_look", [k.lock, k.lock_seen, k.daemons], arguments)
        return answer

    async def release(self, look: LockLook, *, even_if_touched: bool = False) -> bool:
        """Delete the lock where it still is what was looked at, and say whether it was.

        Not where it was prolonged since, got or lost its expiry, or where its holder gave a sign of life; with
        ``even_if_touched`` its value alone counts.
        """
        k = self._keys
        was: list[str | int] = ["", ""]
        if not even_if_touched:
            was = [-1 if seconds is None else ms(seconds) for seconds in (look.ttl, look.beat_at)]
        released = await self._connections.run_named(
            "lock_release", [k.lock, k.lock_seen, k.daemons], [look.value, *was]
        )
        return bool(released == 1)


def look_of(
    value: bytes, ttl_ms: float, first_ms: float, untouched_ms: float, beat_ms: float | None, now_ms: float
) -> LockLook:
    """From what the store says. ``ttl_ms`` below 0: it has no expiry; ``beat_ms`` below 0, or None: no heartbeat."""
    return LockLook(
        value=value,
        ttl=None if ttl_ms < 0 else ttl_ms / 1000,
        first_seen_at=first_ms / 1000,
        untouched_since=untouched_ms / 1000,
        beat_at=None if beat_ms is None or beat_ms < 0 else beat_ms / 1000,
        now=now_ms / 1000,
    )
