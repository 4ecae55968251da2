"""How what was left behind in processing is taken back: never at first sight, unless a person asks for it.

Every method raises StoreUnavailable (try again later; a change may or may not have happened) or StoreMisuse.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.model import Recovery
from cbq_exporter.store import records
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.expired import ExpiredLeases
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import count_leased, digest_of
from cbq_exporter.store.lock_watch import LockWatch
from cbq_exporter.store.paging import from_the_tail
from cbq_exporter.store.sightings import Sightings, Wanted, name_of
from cbq_exporter.store.times import ms, store_now_ms

# Nobody else is served while a script runs: each ends within 5 ms, unless a single payload takes longer.
_MOST_MOVED = 125  # callbacks, in one script
_MOST_MOVED_BYTES = 512 * 1024
_MOST_HOPS = 100_000  # nodes of the list, to find their places
_NODE_BYTES = 8192  # of the list: the default of list-max-listpack-size
_MOST_LOOKS = 10  # at processing, of one person's recovery
_NO_RECORD = 10**9  # more recoveries than anything has: nothing becomes a dead letter


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A callback of processing, at ``place`` from the head."""

    place: int
    fingerprint: str
    payload: bytes
    sighting: str


class Healing:
    """One queue: what others left, of which ``sightings`` knows since when it is there. ``expired`` is for what daemons
    of ours left, ``lock`` for the send lock, into which this daemon writes ``lock_value``, if anything.
    """

    def __init__(
        self, connections: Connections, keys: QueueKeys, lock_value: str = "", *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.keys = keys
        self.expired = ExpiredLeases(connections, keys)
        self.sightings = Sightings(connections, keys, clock)
        self.lock = LockWatch(connections, keys, lock_value, clock)
        self._connections = connections
        self._mark = f"\0cbq-exporter {secrets.token_hex(16)}"

    async def recover_stuck(
        self, stuck_after: float, max_recoveries: int, *, progress: Callable[[int], None] = lambda done: None
    ) -> Recovery:
        """Bring what is known to be stuck back to the head of pending, in its order; behind the rest while a worker has
        the lock. It does not look: whoever wants what is true now looks before.

        What was recovered ``max_recoveries`` times before becomes a dead letter. ``progress`` is told how many are
        done.
        """
        wanted = await self.sightings.older_than(stuck_after)
        if not wanted:
            return Recovery()
        # What moves under our eyes waits for the next look of the schedule.
        now_ms = await store_now_ms(self._connections)
        return (await self._recover(wanted, stuck_after, max_recoveries, now_ms, progress))[0]

    async def recover_all(
        self, older_than: float | None = None, *, progress: Callable[[int], None] = lambda done: None
    ) -> Recovery:
        """A person's recovery: everything in processing that no live lease of ours holds goes back to pending, as by
        ``recover_stuck``; with ``older_than``, in seconds, only what was first seen longer ago than that.

        Nothing becomes a dead letter by it. Of equal callbacks, as long as one is ours the others wait. What changes
        its place while this walks, because a daemon settles beside it, is looked for again, and comes in front of the
        rest. What others claim after the first look stays.
        """
        total = await self.expired.recover(_NO_RECORD)
        progress(total.total)
        wanted = None if older_than is None else await self.sightings.older_than(older_than)
        age = -1.0 if older_than is None else older_than
        for _ in range(_MOST_LOOKS):
            if wanted is not None and not wanted:
                break
            now_ms = await store_now_ms(self._connections)
            done, wanted = await self._recover(wanted, age, -1, now_ms, _beyond(total.total, progress))
            total += done
        return total

    async def count_recoverable(self, older_than: float | None = None) -> int:
        """How many ``recover_all`` would take now, about."""
        k = self.keys
        now_ms = await store_now_ms(self._connections)
        if older_than is not None:
            over = await self._connections.read("ZCOUNT", k.leases, "-inf", now_ms)
            return int(over) + await self.sightings.count(older_than, now_ms)
        commands = [("LLEN", k.processing), ("ZCOUNT", k.leases, f"({now_ms}", "+inf")]
        length, live = await self._connections.read_all(commands)
        return max(0, int(length) - int(live))

    async def _recover(
        self,
        wanted: Wanted | None,
        age: float,
        max_recoveries: int,
        now_ms: int,
        progress: Callable[[int], None],
    ) -> tuple[Recovery, Wanted]:
        """``wanted`` None: everything. Returns also what was found and could not be taken where it had been seen.

        From the tail: what a script takes out does not move what is still to come, and each batch goes in front of
        the one before.
        """
        total = Recovery()
        missed: Wanted = {}
        k = self.keys
        fence, leases, length = await self._connections.read_all(
            [("GET", k.fence), ("ZRANGE", k.leases, 0, -1), ("LLEN", k.processing)]
        )
        leased = count_leased(leases)
        pages = from_the_tail(self._connections, k.processing) if age < 0 else self.sightings.pages(leased.total())
        async for start, page in pages:
            found = []
            for place in range(start + len(page) - 1, start - 1, -1):
                payload = page[place - start]
                digest = digest_of(payload)
                if leased[digest]:
                    continue
                if wanted is None:
                    found.append(_Candidate(place, digest.hex(), payload, name_of(digest, 0)))
                elif names := wanted.get(digest):
                    found.append(_Candidate(place, digest.hex(), payload, names.pop()))
            for batch in _fitting(found, length - total.total):
                codes = await self._move(batch, age, max_recoveries, now_ms, fence or b"")
                total += Recovery(codes.count(1), codes.count(2))
                progress(total.total)
                for one, code in zip(batch, codes, strict=True):
                    if code == 0:
                        missed.setdefault(bytes.fromhex(one.fingerprint), []).append(one.sighting)
        return total, missed

    async def _move(
        self, batch: Sequence[_Candidate], age: float, max_recoveries: int, now_ms: int, fence: bytes
    ) -> list[int]:
        """For each: 1 back in pending, 2 a dead letter, 0 not taken."""
        k = self.keys
        spent: list[int] = [0] * len(batch)
        if 0 <= max_recoveries < _NO_RECORD:
            memories = await self._connections.read("HMGET", k.returned, *(one.fingerprint for one in batch))
            spent = [records.recoveries_of(memory) for memory in memories]
        args: list[str | bytes | int] = [
            ms(age) if age >= 0 else -1,
            now_ms,
            max_recoveries,
            fence,
            self._mark,
            batch[-1].place,
            batch[0].place,
        ]
        for one, recoveries in zip(batch, spent, strict=True):
            is_last = 0 <= max_recoveries <= recoveries
            record = records.of_stuck(one.payload, recoveries + 1, now_ms) if is_last else b""
            args += [one.place, one.fingerprint, one.sighting, record]
        codes: list[int] = await self._connections.run_named(
            "recover_stuck",
            [
                *(k.leases, k.processing, k.pending, k.dead, k.records, k.payloads),
                k.returned,
                k.sightings,
                k.fence,
                k.lock,
            ],
            args,
        )
        return codes


def _beyond(before: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Tells ``progress`` of what was done before as well."""
    return lambda done: progress(before + done)


def _fitting(found: Sequence[_Candidate], length: int) -> Iterator[list[_Candidate]]:
    """Runs that fit one script; one that is too large for any stands alone. ``length`` is that of the list."""
    batch: list[_Candidate] = []
    size, hops = 0, 0.0
    for one in found:
        distance = max(1, min(one.place, length - one.place))
        to_there = distance * min(1.0, (len(one.payload) + 16) / _NODE_BYTES)
        if batch and (
            len(batch) >= _MOST_MOVED or size + len(one.payload) > _MOST_MOVED_BYTES or hops + to_there > _MOST_HOPS
        ):
            yield batch
            batch, size, hops = [], 0, 0.0
        batch.append(one)
        size += len(one.payload)
        hops += to_there
    if batch:
        yield batch
