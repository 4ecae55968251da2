"""The trash of one queue: what resets have moved out of the way, each under an id, until it expires or is put back.

A reset moves all keys but three: the fence only ever counts up, because ids are made from it; a pause is an operator's
decision, not a part of the queue; and what is known about daemons, locks and resets is no content.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from cbq_exporter.errors import PreconditionChanged
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import STATS_TTL, QueueKeys
from cbq_exporter.store.times import epoch_ms, ms, store_now_ms

MOST = 100  # resets kept at the same time
_BACKSTOP_MS = 10 * 60 * 1000  # by so much the keys outlive the end of their keeping, for upkeep to be first

# Nobody else is served while a script runs.
_MOST_ITEMS = 500  # callbacks
_MOST_BYTES = 4 * 1024 * 1024

# What is put back, in the order of undo.lua.
_PUT_BACK = (
    *("pending", "processing", "leases", "retry", "dead", "records", "payloads", "returned"),
    *("stats_queued", "stats_sent", "stats_failed"),
)
# What a reset moves out of the way too. The places in the order come back with those who have them. A lock and a time
# of sending are true only when they are written, and a sighting must not make a callback stuck at the moment it comes
# back.
_LEFT = ("order", "lock", "last_send", "sightings")


@dataclass(frozen=True, slots=True)
class Trashed:
    """One reset. Times are epoch seconds, by the store; ``until`` is None while it is being put back.

    ``counts`` are callbacks by state.
    """

    id: str
    at: float
    until: float | None
    counts: Mapping[str, int]

    @property
    def callbacks(self) -> int:
        return sum(self.counts.values())


class Trash:
    """Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys

    async def move(self, keep: float, now_ms: int, counts: Mapping[str, int]) -> str | None:
        """Move everything of the queue here for ``keep`` seconds; returns the id, None where there is nothing.

        ``counts``, the callbacks by state, are noted for people.
        """
        k = self._keys
        notes = await self._connections.read("HVALS", k.trash_notes)
        # The last one is known by its time: of two in one millisecond the second is later all the same.
        now_ms = max([now_ms, *(_note(note).at_ms + 1 for note in notes)])
        trash_id = _new_id(now_ms)
        there = k.trash_of(trash_id)
        pairs = [name for part in (*_PUT_BACK, *_LEFT) for name in (getattr(k, part), getattr(there, part))]
        until_ms = now_ms + ms(keep)
        note = msgspec.json.encode(_Note(now_ms, until_ms, dict(counts)))
        moved = await self._connections.run_named(
            "reset", [k.trash, k.trash_notes, *pairs], [trash_id, until_ms, _BACKSTOP_MS, note]
        )
        return trash_id if moved else None

    async def all(self) -> list[Trashed]:
        """What is kept, the oldest first."""
        k = self._keys
        time, kept, notes = await self._connections.read_all(
            [("TIME",), ("ZRANGE", k.trash, 0, -1, "WITHSCORES"), ("HGETALL", k.trash_notes)]
        )
        now = epoch_ms(time)
        noted = dict(zip(notes[::2], notes[1::2], strict=True))
        found = [
            _trashed(name, float(until), noted.get(name, b""))
            for name, until in zip(kept[::2], kept[1::2], strict=True)
            if float(until) > now
        ]
        return sorted(found, key=lambda one: (one.at, one.id))

    async def put_back(self, trash_id: str) -> AsyncGenerator[int, None]:
        """Put it back in front of what arrived since, a part at a time: gives how many callbacks each part had.

        It can be broken off, and begun again by anybody. Raises PreconditionChanged where it is not in the trash.
        """
        k, there = self._keys, self._keys.trash_of(trash_id)
        keys = [getattr(of, part) for of in (k, there) for part in _PUT_BACK]
        keys += [k.trash, k.trash_notes, k.order, *(getattr(there, part) for part in _LEFT)]
        arguments = [trash_id, _MOST_ITEMS, _MOST_BYTES, STATS_TTL]
        more, moved = await self._connections.run_named("undo", keys, arguments)
        if more < 0:
            raise PreconditionChanged(f"nothing was changed: the reset {trash_id} is not in the trash any more")
        yield moved
        while more > 0:  # below 0 from here on: somebody else has ended it beside us
            more, moved = await self._connections.run_named("undo", keys, arguments)
            yield moved

    async def expired(self) -> list[str]:
        """The ids of what has been kept for long enough."""
        now_ms = await store_now_ms(self._connections)
        found = await self._connections.read("ZRANGEBYSCORE", self._keys.trash, "-inf", now_ms, "LIMIT", 0, MOST)
        return [name.decode("ascii", "replace") for name in found]

    async def drop_expired(self, trash_id: str) -> bool:
        """Delete it; False where it is not there, or is kept for longer now."""
        k, there = self._keys, self._keys.trash_of(trash_id)
        keys = [k.trash, k.trash_notes, *(getattr(there, part) for part in (*_PUT_BACK, *_LEFT))]
        return bool(await self._connections.run_named("trash_drop", keys, [trash_id]))


_Moment = Annotated[int, msgspec.Meta(ge=0, le=250_000_000_000_000)]  # ms since the epoch; beyond it dates end


class _Note(msgspec.Struct):
    at_ms: _Moment = 0
    until_ms: _Moment = 0
    counts: dict[str, int] = {}


def callbacks_of(note: bytes, now_ms: float) -> int:
    """How many callbacks a note tells of; none where it cannot be read, or the end of their keeping has come."""
    read = _note(note)
    return sum(read.counts.values()) if read.until_ms > now_ms else 0


def _note(text: bytes) -> _Note:
    try:
        return msgspec.json.decode(text, type=_Note)
    except msgspec.DecodeError:
        return _Note()


def _trashed(name: bytes, until_ms: float, text: bytes) -> Trashed:
    note = _note(text)
    until: Any = None if until_ms == float("inf") else until_ms / 1000
    return Trashed(name.decode("ascii", "replace"), note.at_ms / 1000, until, note.counts)


def _new_id(now_ms: int) -> str:
    """Tells when, for people; chance keeps two of one second apart."""
    return f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
