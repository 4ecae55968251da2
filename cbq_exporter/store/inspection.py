"""What a plan is made from: how much is where in one queue, and who holds the lock. It writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cbq_exporter.model import LockLook, State
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.lock_watch import look_of
from cbq_exporter.store.times import epoch_ms


@dataclass(frozen=True, slots=True)
class Contents:
    """``counts`` are callbacks by state. ``now_ms`` is the store's clock. ``stats`` tells whether there are any."""

    now_ms: int
    counts: Mapping[str, int]
    leases: int
    stats: bool
    lock: LockLook | None

    @property
    def callbacks(self) -> int:
        return sum(self.counts.values())


class Inspection:
    """Raises StoreUnavailable or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys

    async def contents(self) -> Contents:
        """In one round trip, and a second one where the lock is held."""
        k = self._keys
        time, pending, processing, retry, dead, leases, stats, value, ttl_ms, seen = await self._connections.read_all(
            [
                ("TIME",),
                ("LLEN", k.pending),
                ("LLEN", k.processing),
                ("ZCARD", k.retry),
                ("ZCARD", k.dead),
                ("ZCARD", k.leases),
                ("EXISTS", k.stats_queued, k.stats_sent, k.stats_failed),
                ("GET", k.lock),
                ("PTTL", k.lock),
                ("HGETALL", k.lock_seen),
            ]
        )
        now_ms = epoch_ms(time)
        lock = None
        if value is not None and ttl_ms != -2:
            beat = await self._connections.read("ZSCORE", k.daemons, value)
            lock = _lock(value, ttl_ms, dict(zip(seen[::2], seen[1::2], strict=True)), beat, now_ms)
        counts = {State.PENDING: pending, State.PROCESSING: processing, State.RETRY: retry, State.DEAD: dead}
        return Contents(now_ms, {str(state): count for state, count in counts.items()}, leases, bool(stats), lock)


def _lock(value: bytes, ttl_ms: int, seen: Mapping[bytes, bytes], beat: bytes | None, now_ms: int) -> LockLook:
    """Nobody else's sighting of another value counts."""
    first_ms = untouched_ms = now_ms
    if seen.get(b"value") == value and seen.get(b"first_ms", b"").isdigit():
        first_ms = untouched_ms = min(now_ms, int(seen[b"first_ms"]))
        if seen.get(b"untouched_ms", b"").isdigit():
            untouched_ms = min(now_ms, max(first_ms, int(seen[b"untouched_ms"])))
    return look_of(value, ttl_ms, first_ms, untouched_ms, None if beat is None else float(beat), now_ms)
