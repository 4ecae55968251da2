"""The one read behind metrics, ``status`` and the API: all queues at one moment, and never a write.

It costs one pipelined round trip of commands that are O(1) or O(log n) in the length of a queue.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cbq_exporter import item
from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.errors import StoreError, StoreUnavailable
from cbq_exporter.model import LockLook, LockRule, LockView, Mode, QueueView, Snapshot, State
from cbq_exporter.store import schema, trash
from cbq_exporter.store.connections import READ_TIMEOUT, Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import claimed_at
from cbq_exporter.store.lock_watch import look_of
from cbq_exporter.store.observing import Observed
from cbq_exporter.store.times import epoch_ms, epoch_of, ms

_GRACE_MS = 1000  # a retry is overdue when it was due longer ago than this
_CLOCKS_DIFFER_MS = 500  # more than this, and what is counted by time is counted again
_MEMORY_SAMPLES = 20  # elements of each key whose memory is measured; the rest is taken to be like them
_FOREIGN = "it holds another type: rename or delete it, or choose another prefix"  # the key is named before it
_SECTIONS = ("server", "memory", "persistence", "replication")  # of INFO; before version 7 it gives one at a time

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


class Reader:
    """Reads all queues at once. Calls that overlap share one read.

    It remembers between reads what the server forgets: the time of the last send, whose key lives 60 s; what is not
    asked for at each read: the memory of the queues; and what nobody writes where a queue is only observed.
    """

    def __init__(self, connections: Connections, sources: Sequence[Source], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._connections = connections
        self._sources = tuple(sources)
        self._clock = clock
        self._ahead_ms = 0.0  # the server's clock less ours
        self._last_send_at: dict[str, float] = {}
        self._memory: dict[QueueKeys, int] = {}  # bytes, as last measured
        self._observed: defaultdict[QueueKeys, Observed] = defaultdict(Observed)
        self._errors: dict[str, str] = {}  # by the queue's name, as last read
        self._reading: asyncio.Task[Snapshot] | None = None

    def read_instead(self, sources: Sequence[Source]) -> None:
        """From the next read on these queues; a read under way is not shared with whoever asks after this."""
        known = {source.name: source.keys for source in self._sources}
        kept = {source.name for source in sources if known.get(source.name) == source.keys}
        self._last_send_at = {name: at for name, at in self._last_send_at.items() if name in kept}
        self._errors = {name: error for name, error in self._errors.items() if name in kept}
        for gone in self._observed.keys() - {source.keys for source in sources if source.mode is Mode.OBSERVE}:
            del self._observed[gone]
        self._sources = tuple(sources)
        self._reading = None

    async def snapshot(self, timeout: float | None = None) -> Snapshot:
        """What there is now. Never raises for a server that cannot be used: ``up`` is False then, ``error`` says why.

        ``timeout`` in seconds bounds the whole call; READ_TIMEOUT does in any case.
        """
        began = self._clock.monotonic()
        reading = self._reading
        if reading is None or reading.done():
            reading = self._reading = asyncio.create_task(self._read())
        # Not cancelled with this caller: others may wait for it, and its own deadline ends it.
        done, _ = await asyncio.wait({reading}, timeout=timeout)
        if done:
            return reading.result()
        return self._down(
            f"Redis at {self._connections.shown_as} did not answer within {timeout or READ_TIMEOUT:g} s", began
        )

    async def measure(self) -> dict[str, StoreError]:
        """Ask for what snapshots show from memory: the queues' memory, and when each last sent. One round trip.

        The errors are by queue; its memory is unknown then. Raises StoreUnavailable, and no queue's memory is known.
        """
        sources = self._sources
        commands = [command for source in sources for command in _measuring(source.keys)]
        width = len(commands) // len(sources) if sources else 0
        try:
            answers = await self._connections.read_many(commands)
        except StoreError:
            self._memory = {}
            raise
        measured: dict[QueueKeys, int] = {}
        errors: dict[str, StoreError] = {}
        for number, source in enumerate(sources):
            last_send, *sizes = answers[number * width : (number + 1) * width]
            if not isinstance(last_send, StoreError):
                self._remembered(source.name, last_send)
            refused = [size for size in sizes if isinstance(size, StoreError)]
            if refused:
                errors[source.name] = refused[0]
            else:
                measured[source.keys] = sum(size or 0 for size in sizes)  # None: no such key
        self._memory = measured
        return errors

    @property
    def errors(self) -> Mapping[str, str]:
        """Why queues could not be read, by their names; as old as the last snapshot, or the last probe since."""
        return self._errors

    async def probe(self) -> None:
        """Whether the server can be used; raises StoreUnavailable where not.

        One whose memory is full counts as such, though what is there still goes out: producers are refused.
        """
        (memory,) = await self._connections.read_many([("INFO", "memory")])  # refused is an answer too
        if self._errors:
            await self.snapshot()  # it may be mended, and perhaps nobody else looks
        about = _info(memory)
        used, most = _whole(about.get("used_memory")), _whole(about.get("maxmemory"))
        if used is not None and most and used >= most:
            raise StoreUnavailable(
                f"Redis at {self._connections.shown_as} is full: {used:,} of maxmemory {most:,} bytes: "
                "producers are refused; free memory or raise maxmemory",
                kind="oom",
            )

    async def _read(self) -> Snapshot:
        began = self._clock.monotonic()
        sources = self._sources  # these, whatever is to be read instead meanwhile
        try:
            answers, at_ms, guess_ms = await self._ask(sources)
            if at_ms is not None and abs(at_ms - guess_ms) > _CLOCKS_DIFFER_MS:
                # The clocks differ. That is known from now on, so this happens once.
                answers, at_ms, guess_ms = await self._ask(sources)
        except StoreError as error:
            return self._down(str(error), began)
        _, server, memory, persistence, replication, *rest = answers
        width = len(rest) // len(sources) if sources else 0
        now_ms = guess_ms if at_ms is None else at_ms
        views = [
            self._view(source, rest[number * width : (number + 1) * width], now_ms)
            for number, source in enumerate(sources)
        ]
        self._errors = {view.queue: view.error for view in views if view.error is not None}
        about, used = _info(server), _info(memory)
        role = _info(replication).get("role")
        return Snapshot(
            up=True,
            at=now_ms / 1000,
            duration=self._clock.monotonic() - began,
            queues=tuple(views),
            server=_server(about),
            replica=None if role is None else role == "slave",
            memory_used=_whole(used.get("used_memory")),
            memory_max=_whole(used.get("maxmemory")) or None,
            disk_write_failed=_disk_write_failed(_info(persistence)),
        )

    async def _ask(self, sources: Sequence[Source]) -> tuple[list[Any], float | None, float]:
        """The answers; the server's clock then, None where we may not ask for it; and our guess of that clock."""
        guess_ms = self._clock.now() * 1000 + self._ahead_ms
        commands: list[Command] = [("TIME",), *(("INFO", section) for section in _SECTIONS)]
        for source in sources:
            commands += _commands(source, int(guess_ms))
        answers = await self._connections.read_many(commands)
        time = answers[0]
        if isinstance(time, StoreError):
            return answers, None, guess_ms
        at_ms = epoch_ms(time)
        self._ahead_ms += at_ms - guess_ms
        return answers, at_ms, guess_ms

    def _view(self, source: Source, answers: Sequence[Any], now_ms: float) -> QueueView:
        for answer, (_, key, *_) in zip(answers, _commands(source, 0), strict=True):
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
            observed = self._observed[source.keys]
            own_look = observed.lock(lock, lock_ttl_ms, now_ms)
            if observed.first_for(first_processing, now_ms) >= source.stuck_after and not leased:
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
            last_send_at=self._remembered(source.name, last_send),
            source_stats=_stats(stats),
            memory=self._memory.get(source.keys),
            paused=bool(paused),
            paused_destinations=pauses - paused,
            failing_destinations=unwell,
            alerts_paused=bool(alerts_paused),
            newer=schema.trouble(source.keys.schema, schema_number),
        )

    def _remembered(self, queue: str, last_send: bytes | None) -> float | None:
        at = epoch_of(last_send)
        if at is not None:
            self._last_send_at[queue] = at
        return self._last_send_at.get(queue)

    def _down(self, error: str, began: float) -> Snapshot:
        return Snapshot(
            up=False,
            at=self._clock.now(),
            duration=self._clock.monotonic() - began,
            queues=tuple(QueueView(source.name, source.mode, error=error) for source in self._sources),
            error=error,
        )


def _commands(source: Source, now_ms: int) -> list[Command]:
    """For one queue. Each has its key in second place."""
    keys = source.keys
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
        ("ZCOUNT", keys.sightings, "-inf", now_ms - ms(source.stuck_after)),
        ("HMGET", keys.lock_seen, "value", "first_ms", "untouched_ms", "beat_ms"),
        ("HVALS", keys.trash_notes),
        ("EXISTS", keys.alerts_paused),
        ("HEXISTS", keys.paused, ""),
        ("HLEN", keys.paused),
        ("HLEN", keys.breakers),
        ("GET", keys.schema),
    ]


def _measuring(keys: QueueKeys) -> list[Command]:
    """For one queue: the last send, and the memory of each key that grows with the callbacks."""
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
    first_ms, untouched_ms, beat_ms = map(_whole, seen[1:])
    if value is None or ttl_ms == -2 or seen[0] != value or first_ms is None or untouched_ms is None:
        return None
    return look_of(value, ttl_ms, first_ms, untouched_ms, beat_ms, at_ms)


def _stats(values: list[bytes | None]) -> dict[str, int]:
    """The counters of the existing software; one that has expired or is no number is left out."""
    counts = zip(("queued", "sent", "failed"), map(_whole, values), strict=True)
    return {name: count for name, count in counts if count is not None}


def _whole(text: bytes | str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _info(answer: bytes | StoreError) -> dict[str, str]:
    """Empty where it may not be asked for."""
    if isinstance(answer, StoreError):
        return {}
    lines = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _disk_write_failed(persistence: dict[str, str]) -> bool | None:
    """None where it may not be asked for."""
    ended = [persistence.get(name) for name in ("rdb_last_bgsave_status", "aof_last_write_status")]
    return None if None in ended else ended != ["ok", "ok"]


def _server(about: dict[str, str]) -> str:
    """Such as ``valkey 9.1.0``: Valkey calls itself redis 7.2.4 for old clients, and says its name besides."""
    if "valkey_version" in about:
        return f"valkey {about['valkey_version']}"
    return f"redis {about['redis_version']}" if "redis_version" in about else ""
