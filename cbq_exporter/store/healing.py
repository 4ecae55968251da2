"""What a daemon sees of what was left behind in processing, and how it is taken back.

Of what others left, nothing is done at first sight: what was seen, and when by the store's clock, is kept in the store.
So a restart neither begins anew nor acts at once. Where nobody looked for as long as the rule asks for, what was seen
is forgotten by itself, and where the store's clock leaps, by us: nobody can say what happened meanwhile.

Every method raises StoreUnavailable (try again later; a change may or may not have happened) or StoreMisuse.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.model import ProcessingLook, Recovery
from cbq_exporter.store import records
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.expired import ExpiredLeases
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.leases import fingerprint_of, is_lease
from cbq_exporter.store.ledger import Ledger
from cbq_exporter.store.lock_watch import LockWatch
from cbq_exporter.store.paging import chunks, from_the_tail
from cbq_exporter.store.times import epoch_ms, ms, store_now_ms

MOST_SIGHTINGS = 100_000  # callbacks, the oldest claims; the others come later
_LOOKS_MISSED = 3  # so many looks in a row may be left out before what was seen is forgotten

# Nobody else is served while a script runs: each ends within 5 ms, unless a single payload takes longer.
_MOST_MOVED = 125  # callbacks, in one script
_MOST_MOVED_BYTES = 512 * 1024
_MOST_HOPS = 100_000  # nodes of the list, to find their places
_NODE_BYTES = 8192  # of the list: the default of list-max-listpack-size
_MOST_MEMBERS = 500  # of a sorted set, in one command
_MOST_INEFFECTIVE_PAGES = 200
_MOST_LOOKS = 10  # at processing, of one person's recovery
_NO_RECORD = 10**9  # more recoveries than anything has: nothing becomes a dead letter

_Wanted = dict[bytes, list[str]]  # names of sightings, by the SHA-1 of the callback


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A callback of processing, at ``place`` from the head."""

    place: int
    fingerprint: str
    payload: bytes
    sighting: str


class Healing:
    """One queue. ``expired`` is the same for what daemons of ours left, ``lock`` for the send lock, into which this
    daemon writes ``lock_value``, if anything.
    """

    def __init__(
        self, connections: Connections, keys: QueueKeys, lock_value: str = "", *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.keys = keys
        self.expired = ExpiredLeases(connections, keys)
        self.lock = LockWatch(connections, keys, lock_value, clock)
        self._connections = connections
        self._clock = clock
        self._ledger = Ledger(clock)
        self._mark = f"\0cbq-exporter {secrets.token_hex(16)}"

    # --- looking at processing ---------------------------------------------------------------

    async def look_at_processing(self, stuck_after: float, *, every: float = 0.0) -> ProcessingLook:
        """Remember the first sight of each callback that no lease of ours holds, and forget those that are gone.

        ``stuck_after`` and ``every``, the time between two looks, are seconds. At most MOST_SIGHTINGS callbacks are
        looked at: those that have been in processing for longest.
        """
        k = self.keys
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
            look = replace(look, leases_over=await self._count(k.leases, now_ms))
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
        new = list(_names(copies, used))
        for ended in chunks(gone, _MOST_MEMBERS):
            await self._connections.run_named("sight", [k.sightings], [keep, len(ended), *ended])
        for began_now in list(chunks(new, _MOST_MEMBERS)) or [[]]:
            await self._connections.run_named("sight", [k.sightings], [keep, 0, *began_now])
        return replace(look, untracked=untracked, stuck=stuck, new=len(new), gone=len(gone))

    async def _untracked(self) -> Counter[bytes]:
        """How many of each callback, by its SHA-1, are in processing and under no lease."""
        leased = await self._leased()
        copies: Counter[bytes] = Counter()
        async for _, page in from_the_tail(self._connections, self.keys.processing, MOST_SIGHTINGS + leased.total()):
            copies.update(_digest(payload) for payload in page)
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
            "ZREVRANGE", self.keys.sightings, first, first + _MOST_MEMBERS - 1, "WITHSCORES"
        ):
            for sighting, seen_ms in zip(page[::2], page[1::2], strict=True):
                named = _read_name(sighting)
                if named is None or not copies[named[0]]:
                    gone.append(sighting)
                    continue
                digest, number = named
                copies[digest] -= 1
                used[digest].add(number)
                stuck += float(seen_ms) <= stuck_before_ms
            first += _MOST_MEMBERS
        return gone, used, stuck

    async def _ineffective(self) -> int:
        """How many callbacks back in pending were recovered twice or more. Bounded: of very many, some."""
        count, cursor = 0, 0
        for _ in range(_MOST_INEFFECTIVE_PAGES):
            answer = await self._connections.read("HSCAN", self.keys.returned, cursor, "COUNT", _MOST_MEMBERS)
            cursor = int(answer[0])
            count += sum(_recoveries(memory) >= 2 for memory in answer[1][1::2])
            if cursor == 0:
                break
        return count

    # --- taking back -------------------------------------------------------------------------

    async def recover_stuck(
        self, stuck_after: float, max_recoveries: int, *, progress: Callable[[int], None] = lambda done: None
    ) -> Recovery:
        """Bring what is known to be stuck back to the head of pending, in its order. It does not look: whoever wants
        what is true now looks before.

        What was recovered ``max_recoveries`` times before becomes a dead letter. ``progress`` is told how many are
        done.
        """
        wanted = await self._seen(stuck_after)
        if not wanted:
            return Recovery()
        # What moves under our eyes waits for the next look of the schedule.
        now_ms = await store_now_ms(self._connections)
        return (await self._recover(wanted, stuck_after, max_recoveries, now_ms, progress))[0]

    async def recover_all(
        self, older_than: float | None = None, *, progress: Callable[[int], None] = lambda done: None
    ) -> Recovery:
        """A person's recovery: everything in processing that no live lease of ours holds goes back to the head of
        pending, in its order; with ``older_than``, in seconds, only what was first seen longer ago than that.

        Nothing becomes a dead letter by it. Of equal callbacks, as long as one is ours the others wait. What changes
        its place while this walks, because a daemon settles beside it, is looked for again, and comes in front of the
        rest. What others claim after the first look stays.
        """
        total = await self.expired.recover(_NO_RECORD)
        progress(total.total)
        wanted = None if older_than is None else await self._seen(older_than)
        age = -1.0 if older_than is None else older_than
        for _ in range(_MOST_LOOKS):
            if wanted is not None and not wanted:
                break
            now_ms = await store_now_ms(self._connections)
            done, wanted = await self._recover(wanted, age, -1, now_ms, _beyond(total.total, progress))
            total += done
        return total

    async def count_recoverable(self, older_than: float | None = None) -> int:
        """How many ``recover_all`` would take now, about: without ``older_than`` in one round trip."""
        k = self.keys
        if older_than is not None:
            now_ms = await store_now_ms(self._connections)
            return await self._count(k.leases, now_ms) + await self._count(k.sightings, now_ms - ms(older_than))
        now_ms = await store_now_ms(self._connections)
        commands = [("LLEN", k.processing), ("ZCOUNT", k.leases, f"({now_ms}", "+inf")]
        length, live = await self._connections.read_all(commands)
        return max(0, int(length) - int(live))

    async def _seen(self, age: float) -> _Wanted:
        """The sightings that are older than ``age`` seconds."""
        now_ms = await store_now_ms(self._connections)
        count = await self._count(self.keys.sightings, now_ms - ms(age))
        wanted: _Wanted = {}
        for first in range(0, count, _MOST_MEMBERS):
            last = min(first + _MOST_MEMBERS, count) - 1
            for sighting in await self._connections.read("ZRANGE", self.keys.sightings, first, last):
                named = _read_name(sighting)
                if named is not None:
                    wanted.setdefault(named[0], []).append(sighting.decode())
        return wanted

    async def _recover(
        self,
        wanted: _Wanted | None,
        age: float,
        max_recoveries: int,
        now_ms: int,
        progress: Callable[[int], None],
    ) -> tuple[Recovery, _Wanted]:
        """``wanted`` None: everything. Returns also what was found and could not be taken where it had been seen.

        From the tail: what a script takes out does not move what is still to come, and each batch goes in front of
        the one before.
        """
        total = Recovery()
        missed: _Wanted = {}
        fence, leased = await self._fence_and_leased()
        length = await self._connections.read("LLEN", self.keys.processing)
        most = None if age < 0 else MOST_SIGHTINGS + leased.total()
        async for start, page in from_the_tail(self._connections, self.keys.processing, most):
            found = []
            for place in range(start + len(page) - 1, start - 1, -1):
                payload = page[place - start]
                digest = _digest(payload)
                if leased[digest]:
                    continue
                if wanted is None:
                    found.append(_Candidate(place, digest.hex(), payload, _name(digest, 0)))
                elif names := wanted.get(digest):
                    found.append(_Candidate(place, digest.hex(), payload, names.pop()))
            for batch in _fitting(found, length - total.total):
                codes = await self._move(batch, age, max_recoveries, now_ms, fence)
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
            spent = [_recoveries(memory) for memory in memories]
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
            [k.leases, k.processing, k.pending, k.dead, k.records, k.payloads, k.returned, k.sightings, k.fence],
            args,
        )
        return codes

    # --- reading -----------------------------------------------------------------------------

    async def _fence_and_leased(self) -> tuple[bytes, Counter[bytes]]:
        commands = [("GET", self.keys.fence), ("ZRANGE", self.keys.leases, 0, -1)]
        fence, leases = await self._connections.read_all(commands)
        return fence or b"", _count_leased(leases)

    async def _leased(self) -> Counter[bytes]:
        return (await self._fence_and_leased())[1]

    async def _count(self, key: str, until_ms: int) -> int:
        return int(await self._connections.read("ZCOUNT", key, "-inf", until_ms))


def _beyond(before: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Tells ``progress`` of what was done before as well."""
    return lambda done: progress(before + done)


def _count_leased(leases: Sequence[bytes]) -> Counter[bytes]:
    names = (lease.decode("ascii", "replace") for lease in leases)
    return Counter(bytes.fromhex(fingerprint_of(name)) for name in names if is_lease(name))


def _digest(payload: bytes) -> bytes:
    return hashlib.sha1(payload, usedforsecurity=False).digest()


def _name(digest: bytes, number: int) -> str:
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
            yield _name(digest, number)
            number += 1


def _recoveries(memory: bytes | None) -> int:
    """Of ``attempts|recoveries|first ms|returned ms``; in front of the last there may be a turn."""
    parts = (memory or b"").split(b"|")
    return int(parts[1]) if len(parts) in (4, 5) and parts[1].isdigit() else 0


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
