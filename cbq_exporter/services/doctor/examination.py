"""What the doctor looks at: gathered with reads only, bounded whatever the length of the queue."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cbq_exporter import item
from cbq_exporter.clock import Clock
from cbq_exporter.errors import StoreError, StoreUnavailable
from cbq_exporter.model import Mode
from cbq_exporter.store import permissions, schema
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import fingerprint_of, is_lease
from cbq_exporter.store.permissions import Missing
from cbq_exporter.store.times import epoch_ms

# Of each key, by its name in QueueKeys.
TYPES: Mapping[str, str] = {
    "pending": "list",
    "processing": "list",
    "lock": "string",
    "last_send": "string",
    "stats_queued": "string",
    "stats_sent": "string",
    "stats_failed": "string",
    "leases": "zset",
    "retry": "zset",
    "dead": "zset",
    "records": "hash",
    "payloads": "hash",
    "returned": "hash",
    "fence": "string",
    "order": "zset",
    "sightings": "zset",
    "lock_seen": "hash",
    "daemons": "zset",
    "audit": "stream",
    "trash": "zset",
    "trash_notes": "hash",
    "paused": "hash",
    "breakers": "hash",
    "answers": "zset",
    "alerts": "hash",
    "alert_times": "zset",
    "alerts_open": "zset",
    "alerts_turn": "string",
    "alerts_paused": "string",
    "schema": "string",
}

# Those that are there once a callback has been queued, for a day at least; a claim counts fence up for ever.
_TRACES = (
    *("pending", "processing", "retry", "dead", "trash", "records"),
    *("stats_queued", "stats_sent", "stats_failed", "last_send", "fence"),
)
_SAMPLE = 50  # callbacks of pending that are parsed, at each end
_SAMPLE_BYTES = 1024 * 1024  # about, at each end
_COMPARED = 2000  # callbacks of processing that are compared with the leases
_COMPARED_BYTES = 8 * 1024 * 1024  # about
_SIZED = 50  # parts of a list that are measured, to know how much of it to read
_MOST_LEASES = 10_000
_MOST_PAUSES = 100
_MOST_CIRCUITS = 100
_OVERDUE_AFTER_MS = 1000

Command = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Callbacks of pending that were parsed. ``bad`` says what is wrong, by how many; ``newest_queued_at`` is the
    latest time of queueing that any of them gives, by its producer's clock, in epoch seconds.
    """

    looked_at: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    newest_queued_at: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Processing beside the leases, where both are short enough to be read as a whole.

    ``untracked`` callbacks have no lease; ``empty_leases`` have no callback; ``repeated`` counts the further copies
    of callbacks that are there more than once and have no lease.
    """

    untracked: int
    empty_leases: int
    repeated: int


@dataclass(frozen=True, slots=True)
class Lock:
    """``ttl`` in seconds, None where it has no expiry."""

    value: str
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Examination:
    """All that was found. None: it is not known, because it may not be read or has a foreign type.

    ``error`` says why the server cannot be used; the rest is empty then. ``at`` is the server's clock in epoch
    seconds; ``skew`` is how far it is ahead of ours, in seconds, give or take ``skew_error``. ``newer`` says that a
    newer version has written to the queue, where one has. ``untouched``: nothing shows that anybody has queued here.
    """

    shown_as: str
    mode: Mode
    error: str | None = None
    at: float = 0.0
    skew: float | None = None
    skew_error: float = 0.0
    info: Mapping[str, str] = field(default_factory=dict)
    appendfsync: str | None = None
    snapshots: str | None = None
    refused: tuple[str, ...] = ()
    missing: Missing | None = None
    foreign: Mapping[str, str] = field(default_factory=dict)
    untouched: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)
    sample: Sample = Sample()
    comparison: Comparison | None = None
    lock: Lock | None = None
    lock_is_free: bool = False
    overdue: int | None = None
    expired_leases: int | None = None
    long_seen: int | None = None
    oldest_trash_until: float | None = None
    last_beat_at: float | None = None
    paused: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    newer: str | None = None


async def examine(
    connections: Connections, keys: QueueKeys, mode: Mode, *, stuck_after: float, clock: Clock
) -> Examination:
    """Look at the queue of ``keys``. Never raises for a server that cannot be used.

    ``long_seen`` counts what was first seen in processing more than ``stuck_after`` seconds ago.
    """
    nothing = Examination(connections.shown_as, mode)
    try:
        return await _Look(connections, keys).all(nothing, stuck_after, clock)
    except StoreUnavailable as error:
        return replace(nothing, error=str(error))


class _Look:
    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys
        self._refused: dict[str, None] = {}

    async def all(self, nothing: Examination, stuck_after: float, clock: Clock) -> Examination:
        k = self._keys
        began, wall = clock.monotonic(), clock.now()
        (time,) = await self._ask(("TIME",))
        took = clock.monotonic() - began
        at = clock.now() if time is None else epoch_ms(time) / 1000
        info, appendfsync, snapshots = await self._ask(
            ("INFO",), ("CONFIG", "GET", "appendfsync"), ("CONFIG", "GET", "save")
        )
        names = [one.name for one in fields(k)]
        types = await self._ask(*(("TYPE", getattr(k, name)) for name in names))
        foreign = {
            getattr(k, name): found.decode()
            for name, found in zip(names, types, strict=True)
            if found is not None and found.decode() not in (TYPES[name], "none")
        }
        now_ms = int(at * 1000)
        lengths = ("pending", "processing", "leases", "retry", "dead", "records", "payloads", "trash")
        counts = await self._ask(*((_LENGTH[TYPES[name]], getattr(k, name)) for name in lengths))
        lock, ttl_ms, overdue, expired, long_seen, trash, beat, paused, circuits, number = await self._ask(
            ("GET", k.lock),
            ("PTTL", k.lock),
            ("ZCOUNT", k.retry, "-inf", f"({now_ms - _OVERDUE_AFTER_MS}"),
            ("ZCOUNT", k.leases, "-inf", now_ms),
            ("ZCOUNT", k.sightings, "-inf", now_ms - int(stuck_after * 1000)),
            ("ZRANGE", k.trash, 0, 0, "WITHSCORES"),
            ("ZREVRANGE", k.daemons, 0, 0, "WITHSCORES"),
            ("HSCAN", k.paused, 0, "COUNT", _MOST_PAUSES),
            ("HSCAN", k.breakers, 0, "COUNT", _MOST_CIRCUITS),
            ("GET", k.schema),
        )
        missing = None
        if nothing.mode is not Mode.OBSERVE:
            missing = await permissions.missing(self._connections, k.all(), dispatch=nothing.mode is Mode.DISPATCH)
        return replace(
            nothing,
            at=at,
            skew=None if time is None else at - (wall + took / 2),
            skew_error=took / 2,
            info=_info(info),
            appendfsync=_setting(appendfsync),
            snapshots=_setting(snapshots),
            missing=missing,
            foreign=foreign,
            untouched=all(types[names.index(name)] == b"none" for name in _TRACES),
            lengths={name: count for name, count in zip(lengths, counts, strict=True) if count is not None},
            sample=await self._sample_of_pending(),
            comparison=await self._compare(),
            lock=None if lock is None or ttl_ms in (None, -2) else Lock(_text(lock), _seconds(ttl_ms)),
            lock_is_free=types[names.index("lock")] == b"none",
            overdue=overdue,
            expired_leases=expired,
            long_seen=long_seen,
            oldest_trash_until=float(trash[1]) / 1000 if trash else None,
            last_beat_at=float(beat[1]) / 1000 if beat else None,
            paused=tuple(_text(name) for name in paused[1][::2]) if paused else (),
            left_alone=tuple(_text(name) for name in circuits[1][::2]) if circuits else (),
            newer=schema.trouble(k.schema, number),
            refused=tuple(self._refused),
        )

    async def _ask(self, *commands: Command) -> list[Any]:
        """None in the place of what is refused; that a permission is missing is remembered."""
        answers = await self._connections.read_many(commands)
        for number, (command, answer) in enumerate(zip(commands, answers, strict=True)):
            if isinstance(answer, StoreError):
                if answer.kind == "permission":
                    self._refused[" ".join(map(str, command[:2]))] = None
                answers[number] = None
        return answers

    async def _sample_of_pending(self) -> Sample:
        """Its head and its tail."""
        key = self._keys.pending
        length, mean = await self._size_of(key)
        if not length:
            return Sample()
        head = tail = _fitting(mean, _SAMPLE_BYTES, _SAMPLE)
        if head + tail >= length:
            head, tail = length, 0
        pages = await self._ask(("LRANGE", key, 0, head - 1), *([("LRANGE", key, -tail, -1)] if tail else []))
        return _parsed(payload for page in pages for payload in page or [])

    async def _compare(self) -> Comparison | None:
        k = self._keys
        length, mean = await self._size_of(k.processing)
        (leases,) = await self._ask(("ZCARD", k.leases))
        if length is None or leases is None or leases > _MOST_LEASES:
            return None
        if length > _fitting(mean, _COMPARED_BYTES, _COMPARED):
            return None
        # One round trip: as good as one moment, because the server reads both commands at once.
        payloads, held = await self._ask(
            ("LRANGE", k.processing, 0, _COMPARED - 1), ("ZRANGE", k.leases, 0, _MOST_LEASES - 1)
        )
        return None if payloads is None or held is None else compare(payloads, held)

    async def _size_of(self, key: str) -> tuple[int | None, float]:
        """The length of a list, and about how many bytes an element has; judged by a part of it."""
        length, size, last = await self._ask(
            ("LLEN", key), ("MEMORY", "USAGE", key, "SAMPLES", _SIZED), ("LINDEX", key, -1)
        )
        return length, max((size or 0) / max(1, length or 0), len(last or b""))


def compare(payloads: Sequence[bytes], leases: Sequence[bytes]) -> Comparison:
    there = Counter(hashlib.sha1(payload, usedforsecurity=False).hexdigest() for payload in payloads)
    texts = (lease.decode("ascii", "replace") for lease in leases)
    # What is no lease is taken for one without a callback: it is swept like one.
    leased = Counter(fingerprint_of(text) if is_lease(text) else text for text in texts)
    untracked = there - leased
    return Comparison(untracked.total(), (leased - there).total(), untracked.total() - len(untracked))


def _parsed(payloads: Iterable[bytes]) -> Sample:
    looked_at = 0
    bad: Counter[str] = Counter()
    newest: float | None = None
    for payload in payloads:
        looked_at += 1
        try:
            top = item.read(payload)
        except item.ItemError as error:
            bad[str(error.reason)] += 1
            continue
        queued_at = item.queued_at_of(top)
        newest = max((at for at in (newest, queued_at) if at is not None), default=None)
        if not isinstance(item.value(top, "url"), str):
            bad["invalid_url"] += 1
    return Sample(looked_at, dict(bad), newest)


_LENGTH = {"list": "LLEN", "zset": "ZCARD", "hash": "HLEN"}


def _fitting(size: float, most_bytes: int, most: int) -> int:
    """How many payloads of about this size are read at once."""
    return max(1, min(most, int(most_bytes / max(1.0, size))))


def _info(answer: bytes | None) -> dict[str, str]:
    lines = (line.partition(":") for line in _text(answer or b"").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _setting(answer: list[bytes] | None) -> str | None:
    return _text(answer[1]) if answer else None


def _seconds(ms: int) -> float | None:
    return None if ms < 0 else ms / 1000


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
