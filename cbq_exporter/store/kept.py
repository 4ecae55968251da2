"""What is kept with a record of how it fared: callbacks that wait in retry, and dead letters.

Every method raises StoreUnavailable (try again later; a change may or may not have happened) or StoreMisuse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from cbq_exporter.model import DeadLetter, WaitingRetry
from cbq_exporter.store import records
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.paging import chunks
from cbq_exporter.store.times import ms

# Nobody else is served while a script runs: each ends within 5 ms.
_MOST_ITEMS = 500  # callbacks
_MOST_HASHED_BYTES = 2 * 1024 * 1024  # of payloads, where the script computes their SHA-1

T = TypeVar("T", bound=DeadLetter | WaitingRetry)


class KeptSet(Generic[T]):
    """Those of one queue in the sorted set ``key``; ``read`` is given id, score, record, payload and its size."""

    def __init__(
        self,
        connections: Connections,
        keys: QueueKeys,
        key: str,
        read: Callable[[str, float, bytes | None, bytes | None, int], T],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._key = key
        self._read = read

    async def count(self) -> int:
        return int(await self._connections.read("ZCARD", self._key))

    async def ids(self, *, offset: int, count: int, latest_first: bool = False) -> list[str]:
        """In the order of their times: when they are due, or died."""
        command = "ZREVRANGE" if latest_first else "ZRANGE"
        answer = await self._connections.read(command, self._key, offset, offset + count - 1)
        return [raw.decode("ascii", "replace") for raw in answer]

    async def read(self, ids: Sequence[str], *, with_payload: bool = False) -> list[T]:
        """Those of ``ids`` that are still there, in that order."""
        k = self._keys
        found = []
        for chunk in chunks(ids, 1 if with_payload else _MOST_ITEMS):
            commands: list[tuple[str, ...]] = [("ZMSCORE", self._key, *chunk), ("HMGET", k.records, *chunk)]
            commands += [("HGET", k.payloads, i) for i in chunk if with_payload]
            scores, kept, *payloads = await self._connections.read_many(commands)
            for error in (scores, kept):
                if isinstance(error, Exception):
                    raise error
            read = []
            for place, (kept_id, score, record) in enumerate(zip(chunk, scores, kept, strict=True)):
                if score is None:
                    continue
                payload = payloads[place] if payloads and isinstance(payloads[place], bytes) else None
                read.append(self._read(kept_id, float(score), record, payload, len(payload or b"")))
            found += read if with_payload else await self._with_sizes(read)
        return found

    async def _with_sizes(self, read: Sequence[T]) -> list[T]:
        """As a rule the record tells it. Where it does not, because it is gone or broken, the payload is asked: for
        each that would be a command more than for all the rest of a page together.
        """
        unknown = [one.id for one in read if not one.size]
        if not unknown:
            return list(read)
        answers = await self._connections.read_many([("HSTRLEN", self._keys.payloads, one) for one in unknown])
        sizes = {one: size for one, size in zip(unknown, answers, strict=True) if isinstance(size, int)}
        return [replace(one, size=sizes[one.id]) if one.id in sizes else one for one in read]

    async def pages(
        self, size: int, *, latest_first: bool = False, with_payload: bool = False
    ) -> AsyncIterator[Sequence[T]]:
        """All of them, up to ``size`` at a time. What goes meanwhile moves others to where this has been."""
        offset = 0
        while ids := await self.ids(offset=offset, count=size, latest_first=latest_first):
            yield await self.read(ids, with_payload=with_payload)
            offset += len(ids)

    async def payloads(self, ids: Sequence[str]) -> list[bytes | None]:
        """None in the place of one that is gone. Bounded by whoever asks."""
        payloads: list[bytes | None] = await self._connections.read("HMGET", self._keys.payloads, *ids)
        return payloads


class Retries(KeptSet[WaitingRetry]):
    """In the order in which they are due."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        super().__init__(connections, keys, keys.retry, records.waiting_retry)

    async def put_aside(
        self, kinds: Collection[str], *, due_from: float, count: int
    ) -> list[tuple[str, float, str | None]]:
        """Up to ``count`` of them, the soonest due first, from ``due_from`` on.

        Of each its id, when it is due (epoch milliseconds), and the destination for which it waits by a failure of one
        of these ``kinds``; None where it waits for something else.
        """
        k = self._keys
        answer = await self._connections.read(
            "ZRANGEBYSCORE", k.retry, due_from, "+inf", "WITHSCORES", "LIMIT", 0, count
        )
        if not answer:
            return []
        ids, scores = answer[::2], answer[1::2]
        kept = await self._connections.read("HMGET", k.records, *ids)
        return [
            (raw.decode("ascii", "replace"), float(due), records.waits_for(record, kinds))
            for raw, due, record in zip(ids, scores, kept, strict=True)
        ]

    async def hasten(self, ids: Sequence[str]) -> list[bool]:
        """Make those of ``ids`` due that are not, in that order; says of each whether it was."""
        made: list[bool] = []
        for chunk in chunks(ids, _MOST_ITEMS):
            answer = await self._connections.run_named("hasten", [self._keys.retry], chunk)
            made += [code == 1 for code in answer]
        return made


class DeadLetters(KeptSet[DeadLetter]):
    """In the order of death."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        super().__init__(connections, keys, keys.dead, records.dead_letter)

    async def died_before(self, died_ms: int, count: int) -> list[str]:
        """Up to ``count`` ids of those that died before ``died_ms``, oldest first."""
        answer = await self._connections.read("ZRANGEBYSCORE", self._key, "-inf", f"({died_ms}", "LIMIT", 0, count)
        return [raw.decode("ascii", "replace") for raw in answer]

    async def retry(self, ids: Sequence[str]) -> int:
        """Move letters to the tail of pending, with a clean record; returns how many were still there."""
        k = self._keys
        moved = looked_at = 0
        while looked_at < len(ids):
            chunk = ids[looked_at : looked_at + _MOST_ITEMS]
            looked, count = await self._connections.run_named(
                "dead_retry", [k.dead, k.records, k.payloads, k.pending, k.returned], [_MOST_HASHED_BYTES, *chunk]
            )
            looked_at += looked
            moved += count
        return moved

    async def purge(self, ids: Sequence[str]) -> int:
        """Delete letters for good; returns how many were still there."""
        k = self._keys
        purged = 0
        for chunk in chunks(ids, _MOST_ITEMS):
            purged += await self._connections.run_named("dead_purge", [k.dead, k.records, k.payloads], chunk)
        return purged

    async def trim(self, max_count: int, max_age: float, batch: int = _MOST_ITEMS) -> int:
        """Delete the oldest letters beyond ``max_count``, and those that died more than ``max_age`` seconds ago.

        At most ``batch`` in one call; returns how many.
        """
        k = self._keys
        arguments = [max_count, ms(max_age), batch]
        return int(await self._connections.run_named("dead_trim", [k.dead, k.records, k.payloads], arguments))
