"""How the callbacks of one queue move. Each step is one script; no type of the driver appears here.

Every method raises StoreUnavailable (try again later; a change may or may not have happened) or
StoreMisuse (a key holds a foreign type, a permission is missing).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cbq_exporter import item
from cbq_exporter.model import (
    Claim,
    Claimed,
    Dead,
    Delivered,
    Held,
    LockState,
    PutBack,
    Retry,
    Settled,
    Settlement,
    Waiting,
)
from cbq_exporter.store import records
from cbq_exporter.store.connections import MUTATION_TIMEOUT, Connections
from cbq_exporter.store.kept import DeadLetters, Retries
from cbq_exporter.store.keys import STATS_TTL, QueueKeys
from cbq_exporter.store.leases import read_lease
from cbq_exporter.store.paging import batches, chunks
from cbq_exporter.store.times import epoch_ms, epoch_of, ms, store_now_ms

LAST_SEND_TTL = 60  # seconds, as existing tools expect

# Nobody else is served while a script runs: each ends within 5 ms, unless a single payload takes longer.
_MOST_ITEMS = 500  # callbacks
_MOST_IN_ORDER = 250  # the same, where the script looks for the turn of each
_MOST_BYTES = 4 * 1024 * 1024  # of payloads
_MOST_HASHED_BYTES = 2 * 1024 * 1024  # the same, where the script computes their SHA-1
_MOST_STEPS = 200_000  # elements of processing to walk over, at worst: as a rule the oldest of ours are settled

_HELD_MS = 60_000  # until a callback that nobody has told of its turn asks
_LATE = 1.0  # seconds that the store's clock may be read too early

_SETTLED = {0: Settled.FENCED, 1: Settled.DONE, 2: Settled.MISSING}


class Queue:
    """One queue, with its ``retries`` and its ``dead`` letters. ``lock_value`` is what this daemon writes into the send
    lock.
    """

    def __init__(self, connections: Connections, keys: QueueKeys, *, lock_value: str = "") -> None:
        self.keys = keys
        self.lock_value = lock_value
        self.retries = Retries(connections, keys)
        self.dead = DeadLetters(connections, keys)
        self._connections = connections
        self._ahead_ms: int | None = None  # the store's clock less our elapsed time

    # --- the send lock -----------------------------------------------------------------------

    async def keep_lock(self, ttl: float) -> LockState:
        """Take the lock where it is free, prolong it where it is ours; ``ttl`` in seconds."""
        ours, left = await self._connections.run_named("lock_keep", [self.keys.lock], [self.lock_value, ms(ttl)])
        return LockState(ours == 1, left / 1000 if left >= 0 else None)

    async def free_lock(self) -> bool:
        """Free the lock only where it is still ours; says whether it was."""
        return bool(await self._connections.run_named("lock_free", [self.keys.lock], [self.lock_value]) == 1)

    # --- dispatching -------------------------------------------------------------------------

    async def waiting(self, early_size: int | None = None, *, last_batch: bool = False) -> Waiting:
        """What waits to be claimed, in one round trip; with ``last_batch`` also when anybody sent one."""
        k = self.keys
        commands: list[tuple[str | int, ...]] = [
            ("TIME",),
            ("LLEN", k.pending),
            ("LINDEX", k.pending, 0),
            ("ZRANGE", k.retry, 0, 0, "WITHSCORES"),
        ]
        if early_size is not None:
            commands.append(("LINDEX", k.pending, early_size - 1))
        if last_batch:
            commands.append(("GET", k.last_send))
        answers = await self._connections.read_all(commands)
        time, pending, oldest, due = answers[:4]
        return Waiting(
            at=epoch_ms(time) / 1000,
            pending=pending,
            oldest_queued_at=item.queued_at(oldest),
            early_queued_at=item.queued_at(answers[4]) if early_size is not None else None,
            next_due_at=float(due[1]) / 1000 if due else None,
            last_batch_at=epoch_of(answers[-1]) if last_batch else None,
        )

    async def wait_for_arrival(self, seconds: float) -> bool:
        """Block until pending is not empty, without polling; False after ``seconds``.

        It takes the head and puts it back at the head: one atomic step that changes nothing. It is a
        write to the server all the same, and for the lock's holder only.
        """
        k = self.keys
        seconds = max(seconds, 0.01)  # to the server, 0 is for ever
        head = await self._connections.wait(seconds, "BLMOVE", k.pending, k.pending, "LEFT", "LEFT", seconds)
        return head is not None

    async def claim(
        self,
        *,
        count: int,
        max_bytes: int,
        lease: float,
        lock_ttl: float,
        from_pending: int | None = None,
        order_by: str | None = None,
    ) -> Claim | None:
        """Take up to ``count`` callbacks under a lease of ``lease`` seconds; None where the lock is not ours.

        At most ``max_bytes`` are taken, but always at least one callback, and never more than one script may
        take: where fewer came than wait, claim again. Due retries go first at every other claim, pending
        callbacks at the others; ``from_pending`` bounds the latter.

        With ``order_by``, a field of the items, callbacks with the same value there have turns: one is taken only
        where every earlier one has ended or is taken by the same call. What waits for its turn goes to retry, so there
        may be callbacks left where none came.
        """
        k = self.keys
        answer = await self._connections.run_named(
            "claim",
            [
                k.lock,
                k.pending,
                k.processing,
                k.leases,
                k.retry,
                k.records,
                k.payloads,
                k.returned,
                k.fence,
                k.last_send,
                *((k.order,) if order_by else ()),
            ],
            [
                self.lock_value,
                ms(lock_ttl),
                min(count, _MOST_ITEMS if order_by is None else _MOST_IN_ORDER),
                min(max_bytes, _MOST_HASHED_BYTES),
                ms(lease),
                count if from_pending is None else from_pending,
                LAST_SEND_TTL,
                self._latest_ms(),
                *((order_by,) if order_by else ()),
            ],
        )
        if answer[0] == 0:
            self._ahead_ms = None
            return None
        _, now_ms, left, next_due, from_retry, new = answer[:6]
        self._ahead_ms = now_ms - _monotonic_ms()
        items = tuple(map(read_lease, answer[6::2], answer[7::2]))
        return Claim(now_ms, items, from_retry, new, left, next_due if next_due >= 0 else None)

    def _latest_ms(self) -> int:
        """The store's time past which a claim sent now has no one left to hear its answer; 0: not known."""
        if self._ahead_ms is None:
            return 0
        return _monotonic_ms() + self._ahead_ms + ms(MUTATION_TIMEOUT + _LATE)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """End claims. Repeating a call that ended with StoreUnavailable is safe: what was settled by it is
        answered FENCED the second time. Of those put back, each goes in front of the one before.

        Only what fits one script is settled: the answer may be shorter than ``settlements``, but is never empty.
        """
        if not settlements:
            return []
        k = self.keys
        size = 0
        has_turns = False
        kinds: list[str] = []
        leases: list[str] = []
        payloads: list[bytes] = []
        rest: list[int | bytes] = []
        for settlement in settlements:
            claimed, outcome = settlement.claimed, settlement.outcome
            size += len(claimed.payload)
            if kinds and (len(kinds) >= _MOST_ITEMS or size > _MOST_BYTES):
                break
            leases.append(claimed.lease)
            payloads.append(claimed.payload)
            if claimed.turn:
                has_turns = True
            if isinstance(outcome, Delivered):
                kinds.append("d")
            elif isinstance(outcome, PutBack):
                kinds.append("b")
            else:
                kind, delay = _kind_and_delay(outcome)
                kinds.append(kind)
                rest += (delay, records.of_settlement(settlement, outcome))
        args = [STATS_TTL, _MOST_STEPS, "".join(kinds), *leases, *payloads, *rest]
        answer = await self._connections.run_named(
            "settle",
            [
                k.leases,
                k.processing,
                k.pending,
                k.retry,
                k.dead,
                k.records,
                k.payloads,
                k.returned,
                k.stats_sent,
                k.stats_failed,
                *((k.order,) if has_turns else ()),
            ],
            args,
        )
        return [_SETTLED[code] for code in answer]

    async def put_back(self, claims: Sequence[Claimed]) -> int:
        """Return claimed callbacks unsent to the head of pending, in the given order; returns how many went.

        One that is not ours any more stays where it is.
        """
        returned = 0
        last_first = [Settlement(claim, PutBack()) for claim in reversed(claims)]
        while last_first:
            settled = await self.settle(last_first)
            returned += settled.count(Settled.DONE)
            del last_first[: len(settled)]
        return returned

    async def extend(self, leases: Sequence[str], lease: float) -> list[bool]:
        """Set the deadlines of leases to ``lease`` seconds from now; False for each that is not held any more."""
        held: list[bool] = []
        for chunk in chunks(leases, 5 * _MOST_ITEMS):
            answer = await self._connections.run_named("extend", [self.keys.leases], [ms(lease), *chunk])
            held += [code == 1 for code in answer]
        return held

    # --- producing ---------------------------------------------------------------------------

    async def enqueue(self, payloads: Sequence[bytes]) -> int:
        """Append payloads, counted as the existing producers count; returns the length of pending."""
        length = 0
        for batch in batches(payloads, len, most=2 * _MOST_ITEMS, most_bytes=_MOST_BYTES):
            length = await self._connections.run_named(
                "enqueue", [self.keys.pending, self.keys.stats_queued], [STATS_TTL, *batch]
            )
        return length

    async def store_now_ms(self) -> int:
        """The store's clock, in milliseconds since the epoch."""
        return await store_now_ms(self._connections)


def _kind_and_delay(outcome: Retry | Held | Dead) -> tuple[str, int]:
    """The letter that ``settle.lua`` knows it by, and milliseconds."""
    match outcome:
        case Retry():
            return "r" if outcome.attempt_used else "w", ms(outcome.delay)
        case Held():
            return "h", _HELD_MS
        case Dead():
            return "x" if outcome.attempt_used else "z", 0


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
