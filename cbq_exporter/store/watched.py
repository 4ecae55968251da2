"""One queue as a snapshot shows it: what is asked for, how the answers are read, and what is remembered in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbq_exporter import item
from cbq_exporter.errors import StoreError
from cbq_exporter.model import LockLook, LockRule, LockView, Mode, QueueView, State
from cbq_exporter.store import schema, trash
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import claimed_at
from cbq_exporter.store.lock_watch import look_of
from cbq_exporter.store.observing import Observed
from cbq_exporter.store.times import epoch_of, ms

_GRACE_MS = 1000  # a retry is overdue when it was due longer ago than this
_MEMORY_SAMPLES = 20  # elements of each key whose memory is measured; the rest is taken to be like them
_FOREIGN = "it holds another type: rename or delete it, or choose another prefix"  # the key is named before it

Command = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A queue to read. ``lock_value`` is what this process writes into the send lock; empty where it never does.

    ``stuck_after`` is the seconds since the first sighting after which a callback of others counts as stuck.
    """

    name: str
    mode: Mode
    keys: QueueKeys
    lock_value: str = ""
    stuck_after: float = 300.0
    lock_rule: LockRule | None = None


class Watched:
    """It remembers between reads what the server forgets: the time of the last send, whose key lives 60 s; what is not
    asked for at each read: the memory of the queue; and what nobody writes where a queue is only observed.

    ``before`` is what was watched of the same keys until now.
    """

    def __init__(self, source: Source, before: Watched | None = None) -> None:
        self.source = source
        self.memory: int | None = None  # bytes, as last measured
        self._last_send_at: float | None = None
        self._observed = Observed()
        if before is not None:
            self.memory, self._last_send_at = before.memory, before._last_send_at
            if before.source.mode is Mode.OBSERVE:
                self._observed = before._observed

    def commands(self, now_ms: int) -> list[Command]:
        """Each has its key in second place. ``now_ms`` is the server's clock, as far as it is known."""
        keys = self.source.keys
        return [
            ("LLEN", keys.pending),
            ("LINDEX", keys.pending, 0),
            ("LLEN", keys.processing),
            ("LINDEX", keys.processing, 0),
            ("ZCARD", keys.leases),
            ("ZCOUNT", keys.leases, "-inf", now_ms),
            ("ZRANGE", keys.leases, 0, 0),
            ("ZCARD", keys.retry),
            ("ZCOUNT", keys.retry, "-inf", f"({now_ms - _GRACE_MS}"),
            ("ZRANGE", keys.retry, 0, 0, "WITHSCORES"),
            ("ZCARD", keys.dead),
            ("ZRANGE", keys.dead, 0, 0, "WITHSCORES"),
            ("GET", keys.lock),
            ("PTTL", keys.lock),
            ("GET", keys.last_send),
            ("MGET", keys.stats_queued, keys.stats_sent, keys.stats_failed),
            ("ZCOUNT", keys.sightings, "-inf", now_ms - ms(self.source.stuck_after)),
            ("HMGET", keys.lock_seen, "value", "first_ms", "untouched_ms", "beat_ms"),
            ("HVALS", keys.trash_notes),
            ("EXISTS", keys.alerts_paused),
            ("HEXISTS", keys.paused, ""),
            ("HLEN", keys.paused),
            ("HLEN", keys.breakers),
            ("GET", keys.schema),
        ]

    def view(self, answers: Sequence[Any], now_ms: float) -> QueueView:
        """What ``commands`` were answered; an error in the place of one that was refused."""
        source = self.source
        for answer, (_, key, *_) in zip(answers, self.commands(0), strict=True):
            if isinstance(answer, StoreError):
                said = _FOREIGN if answer.kind == "wrongtype" else answer
                return QueueView(source.name, source.mode, error=f"{key}: {said}")
        (
            pending,
            first_pending,
            processing,
            first_processing,
            leased,
            expired,
            first_lease,
            retry,
            overdue,
            first_retry,
            dead,
            first_dead,
            lock,
            lock_ttl_ms,
            last_send,
            stats,
            seen_for_long,
            lock_seen,
            trash_notes,
            alerts_paused,
            paused,
            pauses,
            unwell,
            schema_number,
        ) = answers
        oldest: dict[State, float | None] = {
            State.PENDING: item.queued_at(first_pending),
            State.PROCESSING: item.queued_at(first_processing),
            State.DEAD: _first_score(first_dead),
        }
        look = _lock_look(lock, lock_ttl_ms, lock_seen, now_ms)
        stuck, untracked = expired + seen_for_long, max(0, processing - leased)
        own_look = None
        if source.mode is Mode.OBSERVE:
            own_look = self._observed.lock(lock, lock_ttl_ms, now_ms)
            if self._observed.first_for(first_processing, now_ms) >= source.stuck_after and not leased:
                stuck = max(stuck, 1)
        return QueueView(
            queue=source.name,
            mode=source.mode,
            lengths={
                State.PENDING: pending,
                State.PROCESSING: processing,
                State.RETRY: retry,
                State.DEAD: dead,
                State.TRASH: sum(trash.callbacks_of(note, now_ms) for note in trash_notes),
            },
            oldest_at={state: at for state, at in oldest.items() if at is not None},
            oldest_claim_at=_claimed_at(first_lease),
            retry_overdue=overdue,
            retry_oldest_due_at=_first_score(first_retry),
            stuck=stuck,
            untracked=untracked,
            leased=leased,
            lock=_lock(lock, lock_ttl_ms, source.lock_value),
            lock_look=look,
            own_look=own_look,
            lock_rule=source.lock_rule,
            last_send_at=self._remembered(last_send),
            source_stats=_stats(stats),
            memory=self.memory,
            paused=bool(paused),
            paused_destinations=pauses - paused,
            failing_destinations=unwell,
            alerts_paused=bool(alerts_paused),
            newer=schema.trouble(source.keys.schema, schema_number),
        )

    def measuring(self) -> list[Command]:
        """The last send, and the memory of each key that grows with the callbacks."""
        keys = self.source.keys
        growing = (
            keys.pending,
            keys.processing,
            keys.leases,
            keys.retry,
            keys.dead,
            keys.records,
            keys.payloads,
            keys.returned,
            keys.sightings,
            keys.audit,
        )
        usage: list[Command] = [("MEMORY", "USAGE", key, "SAMPLES", _MEMORY_SAMPLES) for key in growing]
        return [("GET", keys.last_send), *usage]

    def measured(self, answers: Sequence[Any]) -> StoreError | None:
        """What ``measuring`` was answered; the first refusal, and the memory is unknown then."""
        last_send, *sizes = answers
        if not isinstance(last_send, StoreError):
            self._remembered(last_send)
        refused = [size for size in sizes if isinstance(size, StoreError)]
        self.memory = None if refused else sum(size or 0 for size in sizes)  # None: no such key
        return refused[0] if refused else None

    def _remembered(self, last_send: bytes | None) -> float | None:
        at = epoch_of(last_send)
        if at is not None:
            self._last_send_at = at
        return self._last_send_at


def _first_score(first: list[bytes]) -> float | None:
    """The time that the first of a sorted set stands at, in seconds; None where the set is empty."""
    return float(first[1]) / 1000 if first else None


def _claimed_at(leases: list[bytes]) -> float | None:
    """When the lease that runs out first was given. All leases that are alive are prolonged together, and of equal
    deadlines the older claim comes first: so it is the oldest claim.
    """
    if not leases:
        return None
    try:
        return claimed_at(leases[0].decode("ascii"))
    except ValueError:
        return None  # not written by us


def _lock(value: bytes | None, ttl_ms: int, ours: str) -> LockView | None:
    if value is None or ttl_ms == -2:  # free, or it ran out between the two commands
        return None
    text = value.decode("utf-8", "replace")
    return LockView(value=text, ttl=None if ttl_ms < 0 else ttl_ms / 1000, ours=bool(ours) and text == ours)


def _lock_look(value: bytes | None, ttl_ms: int, seen: list[bytes | None], at_ms: float) -> LockLook | None:
    """As the lock keeper last saw it; None where it has not seen this lock."""
    first_ms, untouched_ms, beat_ms = map(whole, seen[1:])
    if value is None or ttl_ms == -2 or seen[0] != value or first_ms is None or untouched_ms is None:
        return None
    return look_of(value, ttl_ms, first_ms, untouched_ms, beat_ms, at_ms)


def _stats(values: list[bytes | None]) -> dict[str, int]:
    """The counters of the existing software; one that has expired or is no number is left out."""
    counts = zip(("queued", "sent", "failed"), map(whole, values), strict=True)
    return {name: count for name, count in counts if count is not None}


def whole(text: bytes | str | None) -> int | None:
    """None where it is no number."""
    try:
        return int(text or "")
    except ValueError:
        return None
