"""What a daemon sees of what others left behind in processing: each callback's first sight, kept in the store.

Nothing is done at first sight: what was seen, and when by the store's clock, is remembered. So a restart neither begins
anew nor acts at once. Where nobody looked for as long as the rule asks for, what was seen is forgotten by itself, and
where the store's clock leaps, by us: nobody can say what happened meanwhile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import islice

from cbq_exporter.clock import Clock
from cbq_exporter.model import ProcessingLook
from cbq_exporter.store import records
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import count_leased, digest_of
from cbq_exporter.store.ledger import Ledger
from cbq_exporter.store.paging import chunks, from_the_tail
from cbq_exporter.store.times import epoch_ms, ms, store_now_ms

MOST_SIGHTINGS = 100_000  # callbacks, the oldest claims; the others come later
_LOOKS_MISSED = 3  # so many looks in a row may be left out before what was seen is forgotten
_MOST_MEMBERS = 500  # of a sorted set, in one command or script
_MOST_INEFFECTIVE_PAGES = 200

Wanted = dict[bytes, list[str]]  # names of sightings, by the SHA-1 of the callback


class Sightings:
    """Of one queue. Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys, clock: Clock) -> None:
        self._connections = connections
        self._keys = keys
        self._clock = clock
        self._ledger = Ledger(clock)

    async def look(self, stuck_after: float, *, every: float = 0.0) -> ProcessingLook:
        """Remember the first sight of each callback that no lease of ours holds, and forget those that are gone.

        ``stuck_after`` and ``every``, the time between two looks, are seconds. At most MOST_SIGHTINGS callbacks are
        looked at: those that have been in processing for longest.
        """
        k = self._keys
        began = self._clock.monotonic()
        answers = await self._connections.read_all(
            [
                ("TIME",),
                ("ZRANGE", k.leases, 0, 0, "WITHSCORES"),
                ("EXISTS", k.sightings),
                ("HLEN", k.returned),
                ("LLEN", k.processing),
                ("ZCARD", k.leases),
            ]
        )
        time, next_over, seen, returned, length, leases = answers
        now_ms = epoch_ms(time)
        look = ProcessingLook(at=now_ms / 1000)
        if next_over and float(next_over[1]) <= now_ms:
            look = replace(look, leases_over=await self._count_until(k.leases, now_ms))
        if self._ledger.has_leapt(now_ms, began) and seen:
            await self._connections.run_named("sight_anew", [k.sightings], [])
            look = replace(look, begun_anew=True)
        if returned:
            look = replace(look, ineffective=await self._ineffective())
        if not seen and length <= leases:
            return look
        copies = await self._untracked()
        untracked = copies.total()
        if not untracked and not seen:
            return look
        keep = ms(stuck_after + _LOOKS_MISSED * every)
        gone, used, stuck = await self._compare(copies, now_ms - ms(stuck_after))
        names = _names(copies, used)  # made as they are written: they may be all that is looked at
        for ended in chunks(gone, _MOST_MEMBERS):
            await self._connections.run_named("sight", [k.sightings], [keep, len(ended), *ended])
        new, began_now = 0, list(islice(names, _MOST_MEMBERS))
        while True:  # once in any case: what was seen is kept for longer
            await self._connections.run_named("sight", [k.sightings], [keep, 0, *began_now])
            new += len(began_now)
            if not (began_now := list(islice(names, _MOST_MEMBERS))):
                break
        return replace(look, untracked=untracked, stuck=stuck, new=new, gone=len(gone))

    async def _untracked(self) -> Counter[bytes]:
        """How many of each callback, by its SHA-1, are in processing and under no lease."""
        leased = await self._leased()
        copies: Counter[bytes] = Counter()
        async for _, page in self.pages(leased.total()):
            copies.update(digest_of(payload) for payload in page)
        if not copies:
            return copies
        # Those that were leased before or after the walk: what we took and gave back meanwhile is not others'.
        for digest, count in (leased | await self._leased()).items():
            if digest in copies:
                copies[digest] -= count
        return +copies

    async def _compare(
        self, copies: Counter[bytes], stuck_before_ms: int
    ) -> tuple[list[bytes], dict[bytes, set[int]], int]:
        """Takes those with a sighting out of ``copies``. Returns the sightings that are over, the numbers in use of
        callbacks that are left in ``copies``, and how many are stuck.

        Where some of equal callbacks are gone, nobody knows which: the oldest sightings end, so that none is
        taken to be older than it is.
        """
        gone: list[bytes] = []
        used: dict[bytes, set[int]] = defaultdict(set)
        stuck = 0
        first = 0
        while page := await self._connections.read(
            "ZREVRANGE", self._keys.sightings, first, first + _MOST_MEMBERS - 1, "WITHSCORES"
        ):
            for sighting, seen_ms in zip(page[::2], page[1::2], strict=True):
                named = _read_name(sighting)
                if named is None or not copies[named[0]]:
                    gone.append(sighting)
                    continue
                digest, number = named
                copies[digest] -= 1
                if copies[digest]:  # else none is left that needs a name: as a rule there is only one
                    used[digest].add(number)
                stuck += float(seen_ms) <= stuck_before_ms
            first += _MOST_MEMBERS
        return gone, used, stuck

    async def _ineffective(self) -> int:
        """How many callbacks back in pending were recovered twice or more. Bounded: of very many, some."""
        count, cursor = 0, 0
        for _ in range(_MOST_INEFFECTIVE_PAGES):
            answer = await self._connections.read("HSCAN", self._keys.returned, cursor, "COUNT", _MOST_MEMBERS)
            cursor = int(answer[0])
            count += sum(records.recoveries_of(memory) >= 2 for memory in answer[1][1::2])
            if cursor == 0:
                break
        return count

    async def older_than(self, age: float) -> Wanted:
        """The sightings that are older than ``age`` seconds, the oldest first."""
        now_ms = await store_now_ms(self._connections)
        count = await self._count_until(self._keys.sightings, now_ms - ms(age))
        wanted: Wanted = {}
        for first in range(0, count, _MOST_MEMBERS):
            last = min(first + _MOST_MEMBERS, count) - 1
            for sighting in await self._connections.read("ZRANGE", self._keys.sightings, first, last):
                named = _read_name(sighting)
                if named is not None:
                    wanted.setdefault(named[0], []).append(sighting.decode())
        return wanted

    async def count(self, age: float, now_ms: int) -> int:
        """How many were older than ``age`` seconds then, by the store's clock."""
        return await self._count_until(self._keys.sightings, now_ms - ms(age))

    def pages(self, leased: int) -> AsyncIterator[tuple[int, list[bytes]]]:
        """What is looked at of processing, beside so many that are under a lease: see ``from_the_tail``."""
        return from_the_tail(self._connections, self._keys.processing, MOST_SIGHTINGS + leased)

    async def _leased(self) -> Counter[bytes]:
        return count_leased(await self._connections.read("ZRANGE", self._keys.leases, 0, -1))

    async def _count_until(self, key: str, until_ms: int) -> int:
        return int(await self._connections.read("ZCOUNT", key, "-inf", until_ms))


def name_of(digest: bytes, number: int) -> str:
    return f"{digest.hex()}#{number}"


def _read_name(sighting: bytes) -> tuple[bytes, int] | None:
    """None for what we did not write."""
    fingerprint, _, number = sighting.partition(b"#")
    try:
        return bytes.fromhex(fingerprint.decode("ascii")), int(number)
    except ValueError:
        return None


def _names(copies: Counter[bytes], used: dict[bytes, set[int]]) -> Iterator[str]:
    """Names for what has none yet: the lowest numbers that are free."""
    for digest, count in copies.items():
        taken = used.get(digest, set())
        number = 0
        for _ in range(count):
            while number in taken:
                number += 1
            yield name_of(digest, number)
            number += 1
