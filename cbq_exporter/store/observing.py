"""What a daemon that only observes remembers of a queue.

Whoever supervises a queue writes into Redis since when its send lock, and what is in processing, have been there. An
observing daemon writes nothing: it goes by what its own reads have shown, from its start on.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbq_exporter.model import LockLook
from cbq_exporter.store.leases import digest_of
from cbq_exporter.store.lock_watch import look_of

_TOLERANCE_MS = 1000  # an expiry may move by so much without having been prolonged


@dataclass(frozen=True, slots=True)
class _Lock:
    """``expires_ms`` None: never."""

    value: bytes
    first_ms: float
    untouched_ms: float
    expires_ms: float | None


@dataclass(frozen=True, slots=True)
class _First:
    """A digest: a payload can be a megabyte."""

    digest: bytes
    since_ms: float


class Observed:
    """One queue. Times are of the server's clock."""

    def __init__(self) -> None:
        self._lock: _Lock | None = None
        self._first: _First | None = None

    def lock(self, value: bytes | None, ttl_ms: int, now_ms: float) -> LockLook | None:
        """The lock as it is now, and since when; None where it is free. ``ttl_ms`` below 0: it never expires."""
        if value is None or ttl_ms == -2:
            self._lock = None
            return None
        expires_ms = None if ttl_ms < 0 else now_ms + ttl_ms
        lock, now = self._lock, _Lock(value, now_ms, now_ms, expires_ms)
        if lock is None or lock.value != value:
            lock = now
        elif _prolonged(lock.expires_ms, expires_ms):
            lock = _Lock(value, lock.first_ms, now_ms, expires_ms)
        self._lock = lock
        return look_of(value, ttl_ms, lock.first_ms, lock.untouched_ms, None, now_ms)

    def first_for(self, payload: bytes | None, now_ms: float) -> float:
        """For how many seconds ``payload`` has been the first of processing; None is an empty list.

        Claims are appended and leave when they are done: the first is the one that has been there for longest.
        """
        if payload is None:
            self._first = None
            return 0.0
        digest = digest_of(payload)
        if self._first is None or self._first.digest != digest:
            self._first = _First(digest, now_ms)
        return (now_ms - self._first.since_ms) / 1000


def _prolonged(before_ms: float | None, now_ms: float | None) -> bool:
    if before_ms is None or now_ms is None:
        return before_ms is not now_ms
    return now_ms > before_ms + _TOLERANCE_MS
