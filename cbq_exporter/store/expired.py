"""Leases that have run out: their daemon is gone, or was cut off for too long, and others may have the callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from cbq_exporter.model import Recovery
from cbq_exporter.store import records
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import digest_of, fingerprint_of, is_lease
from cbq_exporter.store.paging import batches, from_the_tail
from cbq_exporter.store.times import store_now_ms

_MOST_ITEMS = 500  # callbacks, in one script
_MOST_BYTES = 4 * 1024 * 1024  # of their payloads
_MOST_STEPS = 100_000  # elements of processing for it to walk over
_MOST_LEASES = 10_000  # in one recovery; the rest comes with the next


class ExpiredLeases:
    """Of one queue. Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys

    async def recover(self, max_recoveries: int) -> Recovery:
        """Bring callbacks whose lease has run out back to the head of pending, in their order; behind the rest while a
        worker has the lock.

        One that was recovered ``max_recoveries`` times before becomes a dead letter. ``processing`` is walked
        from its tail in bounded pages: what is taken out of it meanwhile cannot make the walk miss anything.
        """
        k = self._keys
        now_ms = await store_now_ms(self._connections)
        expired = await self._connections.read("ZRANGEBYSCORE", k.leases, "-inf", now_ms, "LIMIT", 0, _MOST_LEASES)
        if not expired:
            return Recovery()
        wanted: dict[str, list[str]] = {}
        no_leases: list[tuple[bytes, None]] = []
        for raw in expired:
            lease = raw.decode("ascii", "replace")
            if is_lease(lease):
                wanted.setdefault(fingerprint_of(lease), []).append(lease)
            else:
                no_leases.append((raw, None))
        total = await self._recover(no_leases, max_recoveries, 0)
        walked = 0
        async for _, page in from_the_tail(self._connections, k.processing):
            walked += len(page)
            found: list[tuple[str, bytes]] = []
            for payload in reversed(page):
                candidates = wanted.get(digest_of(payload).hex())
                if candidates:
                    found.append((candidates.pop(), payload))
            total += await self._recover(found, max_recoveries, walked - total.total)
            if not any(wanted.values()):
                return total
        lost = [(lease, None) for candidates in wanted.values() for lease in candidates]
        return total + await self._recover(lost, max_recoveries, 0)

    async def _recover(
        self, found: Sequence[tuple[str | bytes, bytes | None]], max_recoveries: int, steps: int
    ) -> Recovery:
        """``found`` are leases and their payloads, the last of processing first; None: there is no such callback.

        None of them stands more than ``steps`` elements from the tail.
        """
        k = self._keys
        total = Recovery()
        most = max(1, min(_MOST_ITEMS, _MOST_STEPS // max(1, 2 * steps)))
        for batch in batches(found, lambda pair: len(pair[1] or b""), most=most, most_bytes=_MOST_BYTES):
            args: list[str | bytes | int] = [max_recoveries]
            for lease, payload in batch:
                record = b"" if payload is None else records.of_poison(str(lease), payload)
                args += [lease, payload or b"", record]
            codes = await self._connections.run_named(
                "recover",
                [k.leases, k.processing, k.pending, k.dead, k.records, k.payloads, k.returned, k.order, k.lock],
                args,
            )
            total += Recovery(codes.count(1), codes.count(2), codes.count(3))
        return total
