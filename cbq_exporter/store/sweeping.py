"""What stands in our keys for nobody: others have deleted or taken what it belongs to, and nobody tells us.

Each sweep looks at a bounded part, and the next one goes on from there.
"""

from __future__ import annotations

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.paging import FIRST_PAGE, chunks, size_after

_MOST_ITEMS = 500  # entries, in one script
_PAGES = 100  # in one sweep
_PAGES_OF_RETURNED = 20


class Sweeper:
    """Of one queue. Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._keys = keys
        # Where the next sweep goes on: cursors, and the last entry of the order that was looked at.
        self._kept_swept_to = {keys.records: 0, keys.payloads: 0}
        self._returned_swept_to = 0
        self._order_swept_to = b""

    async def sweep_kept(self) -> int:
        """Delete records and payloads of callbacks that are neither in retry nor dead; returns of how many.

        Where the counts agree, it costs one round trip. (Leases without a callback end in ``ExpiredLeases.recover``.)
        """
        k = self._keys
        counts = await self._connections.read_all(
            [("ZCARD", k.retry), ("ZCARD", k.dead), ("HLEN", k.records), ("HLEN", k.payloads)]
        )
        entries = counts[0] + counts[1]
        swept = 0
        # Records first: they are small, and as a rule there is one for each payload.
        for key, count in ((k.records, counts[2]), (k.payloads, counts[3])):
            if count - swept > entries:
                swept += await self._sweep_hash(key)
        return swept

    async def _sweep_hash(self, key: str) -> int:
        k = self._keys
        swept, size = 0, FIRST_PAGE
        for _ in range(_PAGES):
            # Only a whole page tells how large it is: Redis before version 7.4 gives no names without their values.
            cursor, fields = await self._connections.read("HSCAN", key, self._kept_swept_to[key], "COUNT", size)
            self._kept_swept_to[key] = int(cursor)
            size = min(_MOST_ITEMS, size_after(size, fields[1::2]))
            for chunk in chunks(fields[::2], _MOST_ITEMS):
                swept += await self._connections.run_named("sweep", [k.retry, k.dead, k.records, k.payloads], chunk)
            if self._kept_swept_to[key] == 0:
                break
        return swept

    async def sweep_order(self) -> int:
        """Take those out of the order that stand there for nobody; returns how many.

        Where there are no more in the order than anybody could stand for, it costs one round trip.
        """
        k = self._keys
        counts = await self._connections.read_all(
            [("ZCARD", k.order), ("ZCARD", k.leases), ("ZCARD", k.retry), ("HLEN", k.returned)]
        )
        excess = counts[0] - sum(counts[1:])
        swept = 0
        for _ in range(_PAGES if excess > 0 else 0):
            after = b"(" + self._order_swept_to if self._order_swept_to else "-"
            page = await self._connections.read("ZRANGEBYLEX", k.order, after, "+", "LIMIT", 0, _MOST_ITEMS)
            if page:
                swept += await self._connections.run_named(
                    "sweep_order", [k.order, k.leases, k.retry, k.returned], page
                )
            self._order_swept_to = page[-1] if len(page) == _MOST_ITEMS else b""
            if not self._order_swept_to:
                break
        return swept

    async def forget_returned(self, before_ms: int) -> int:
        """Forget what went back to pending before then (epoch, by the store) and was never claimed again by one of
        ours; returns how many.
        """
        k = self._keys
        forgotten = 0
        for _ in range(_PAGES_OF_RETURNED):
            cursor, fields = await self._connections.read(
                "HSCAN", k.returned, self._returned_swept_to, "COUNT", _MOST_ITEMS
            )
            self._returned_swept_to = int(cursor)
            old = []
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                returned_ms = value.rpartition(b"|")[2]
                if not returned_ms.isdigit() or int(returned_ms) < before_ms:
                    old += [name, value]
            if old:
                forgotten += await self._connections.run_named("forget", [k.returned, k.order], old)
            if self._returned_swept_to == 0:
                break
        return forgotten
