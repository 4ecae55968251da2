"""A plain model of one queue: what is where, and what each change makes of it. No Redis, no clock."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

from cbq_exporter.model import (
    Claimed,
    Dead,
    DeadReason,
    Delivered,
    Held,
    LockRule,
    Outcome,
    PutBack,
    ReleaseReason,
    Retry,
    Settled,
)

# Seconds. Time passes by so much that no comparison is near its limit, however slow the machine.
PASS = 210.0
LOCK_TTL = 500.0  # of our locks
FOREIGN_TTL = 30.0
TOO_LONG_TTL = 10_000.0
FORGET_AFTER = 250.0  # without a look at the lock
BEATS_KEPT = 3600.0
LOCK_RULE = LockRule(no_ttl_after=300.0, max_ttl=600.0, dead_after=300.0)
FAMILY = "cbq-exporter_"
ORDER_BY = "task_id"
PAGES = (16, 80)  # of a list that is walked from its tail, where they end; each is taken back by one script
MOST_OF_A_KEY = 16  # in one claim, and woken by one end
NOW = float("inf")  # due, and only the store knows since when
PERHAPS = float("-inf")  # so, or where something that is nowhere stands in front of it, in a minute
NEW_TURN = "~"  # a turn that the store has given and the test has not read yet: later than all that are known


@dataclass
class Kept:
    """A callback in retry: ``due`` is its place among the due ones, None before it is due.

    ``failed`` for ``destination``, or it only waits for its turn.
    """

    payload: bytes
    attempts: int
    recoveries: int
    due: float | None = None
    turn: str = ""
    failed: bool = False
    destination: str = ""


@dataclass
class Memory:
    """Of a callback that went back to pending."""

    attempts: int = 0
    recoveries: int = 0
    turn: str = ""


@dataclass
class Taken:
    """What a claim is to bring."""

    payload: bytes
    attempts: int
    recoveries: int
    turn: str


@dataclass
class Lease:
    """``ran_out`` is its place among those whose deadline has passed."""

    claimed: Claimed
    ran_out: int | None = None


@dataclass
class Letter:
    payload: bytes
    reason: str
    destination: str = ""


@dataclass
class Lock:
    """``ttl`` is seconds; None: it has none."""

    value: str
    ttl: float | None

    @property
    def is_sane(self) -> bool:
        """It frees itself, and soon enough."""
        return self.ttl is not None and self.ttl <= LOCK_RULE.max_ttl

    @property
    def is_family(self) -> bool:
        return self.value.startswith(FAMILY)


@dataclass
class LockSeen:
    """The lock at the last look; ``untouched_for`` and ``unlooked_for`` are seconds."""

    value: str
    ttl: float | None
    untouched_for: float = 0.0
    unlooked_for: float = 0.0


@dataclass
class Contents:
    """What a reset moves, and an undo brings back."""

    pending: list[bytes] = field(default_factory=list)
    processing: Counter[bytes] = field(default_factory=Counter)
    retry: dict[str, Kept] = field(default_factory=dict)
    dead: dict[str, Letter] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    memory: dict[bytes, Memory] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    stats: Counter[str] = field(default_factory=Counter)

    @property
    def callbacks(self) -> Counter[bytes]:
        kept = [one.payload for one in self.retry.values()] + [one.payload for one in self.dead.values()]
        return Counter(self.pending) + self.processing + Counter(kept)

    @property
    def counts(self) -> dict[str, int]:
        return {
            "pending": len(self.pending),
            "processing": self.processing.total(),
            "retry": len(self.retry),
            "dead": len(self.dead),
        }


@dataclass
class Trashed(Contents):
    """``begun``: partly put back; ``expired``: the end of its keeping has come."""

    begun: bool = False
    expired: bool = False


@dataclass
class Model(Contents):
    trash: dict[str, Trashed] = field(default_factory=dict)  # by id, the oldest first
    paused: set[str | None] = field(default_factory=set)  # destinations; None: the queue
    lock: Lock | None = None
    lock_seen: LockSeen | None = None
    beats: dict[str, float] = field(default_factory=dict)  # lock value of a daemon: seconds since its sign of life
    claims: int = 0
    last_turns: dict[str, str] = field(default_factory=dict)  # by key
    hands: dict[int, bytes] = field(default_factory=dict)  # worker: what it has taken out and not yet put down
    accepted: Counter[bytes] = field(default_factory=Counter)
    doubled: Counter[bytes] = field(default_factory=Counter)  # by existing software that moved what was not there
    delivered: Counter[bytes] = field(default_factory=Counter)
    removed: Counter[bytes] = field(default_factory=Counter)  # by an operator or by existing software
    lost: Counter[bytes] = field(default_factory=Counter)  # with a worker that was killed

    @property
    def lock_value(self) -> str | None:
        return None if self.lock is None else self.lock.value

    @property
    def leases_over(self) -> int:
        return sum(lease.ran_out is not None for lease in self.leases.values())

    @property
    def leased(self) -> Counter[bytes]:
        return Counter(lease.claimed.payload for lease in self.leases.values())

    # --- the lock and its keeper -------------------------------------------------------------

    def time_passes_for_the_lock(self) -> None:
        if self.lock is not None and self.lock.ttl is not None:
            self.lock.ttl -= PASS
            if self.lock.ttl <= 0:
                self.lock = None
        seen = self.lock_seen
        if seen is not None:
            seen.untouched_for += PASS
            seen.unlooked_for += PASS
            if seen.ttl is not None:
                seen.ttl -= PASS
            if seen.unlooked_for > FORGET_AFTER:
                self.lock_seen = None
        self.beats = {value: age + PASS for value, age in self.beats.items()}

    def beat(self, value: str) -> None:
        self.beats = {other: age for other, age in self.beats.items() if age <= BEATS_KEPT} | {value: 0.0}

    def look_at_lock(self, *, leapt: bool) -> ReleaseReason | None:
        """Why it is to be released, if it is. ``leapt``: the clock has, so all begins anew."""
        lock, seen = self.lock, self.lock_seen
        if lock is None:
            self.lock_seen = None
            return None
        if seen is None or leapt or seen.value != lock.value or _is_prolonged(seen.ttl, lock.ttl):
            seen = self.lock_seen = LockSeen(lock.value, lock.ttl)
        seen.unlooked_for = 0.0
        silent_for = min(seen.untouched_for, self.beats.get(lock.value, float("inf")))
        if lock.is_family and silent_for > LOCK_RULE.dead_after:
            return ReleaseReason.HOLDER_DEAD
        if lock.is_sane or seen.untouched_for < LOCK_RULE.no_ttl_after:
            return None
        return ReleaseReason.NO_TTL if lock.ttl is None else ReleaseReason.TTL_BEYOND_MAX

    def release_lock(self) -> None:
        self.lock = self.lock_seen = None

    # --- sending -----------------------------------------------------------------------------

    def claim(self, count: int, max_bytes: int, from_pending: int, *, ordered: bool) -> tuple[list[Taken], int, int]:
        """What a claim brings, taken out of its places; how many of it come from retry; and how many left pending for
        the first time.

        With an order the turns that it gives are NEW_TURN and a number, as are the ids of what it sets aside.
        """
        self.claims += 1
        taken: list[Taken] = []
        looked_at: list[bytes] = []  # taken or set aside
        from_retry = new = given = 0

        def fits(payload: bytes) -> bool:
            return not looked_at or (len(looked_at) < count and sum(map(len, looked_at)) + len(payload) <= max_bytes)

        def turn_of(known: str, payload: bytes) -> str:
            nonlocal given
            if not ordered or known or key_of(payload) is None:
                return known if ordered else ""
            given += 1
            return f"{key_of(payload)}:{NEW_TURN}{given:06}"

        def waits(turn: str) -> bool:
            of_key = [one.turn for one in taken if one.turn and is_of_one_key(one.turn, turn)]
            return bool(turn) and (len(of_key) >= MOST_OF_A_KEY or any(other < turn for other, _ in self.turns(turn)))

        for source in ("retry", "pending") if self.claims % 2 == 0 else ("pending", "retry"):
            if source == "retry":
                due = sorted((kept.due, name) for name, kept in self.retry.items() if kept.due is not None)
                for _, name in due[: count - len(taken)]:
                    kept = self.retry[name]
                    if not fits(kept.payload):
                        break
                    turn = turn_of(kept.turn, kept.payload)
                    if waits(turn):
                        kept.turn, kept.due = turn, None
                        continue
                    taken.append(Taken(kept.payload, kept.attempts, kept.recoveries, turn))
                    looked_at.append(kept.payload)
                    del self.retry[name]
                    from_retry += 1
            else:
                for payload in self.pending[:from_pending]:
                    if len(looked_at) == count or not fits(payload):
                        break
                    new += payload not in self.memory
                    memory = self.memory.pop(payload, Memory())
                    turn = turn_of(memory.turn, payload)
                    if waits(turn):
                        name = f"{NEW_TURN}{len(looked_at):06}"
                        self.retry[name] = Kept(payload, memory.attempts, memory.recoveries, turn=turn)
                    else:
                        taken.append(Taken(payload, memory.attempts, memory.recoveries, turn))
                    looked_at.append(payload)
                    self.pending.pop(0)
        return taken, from_retry, new

    @property
    def all_turns(self) -> set[str]:
        """Of those that have left pending for the first time and have not ended."""
        turns = {kept.turn for kept in self.retry.values()} | {memory.turn for memory in self.memory.values()}
        return (turns | {lease.claimed.turn for lease in self.leases.values()}) - {""}

    def turns(self, turn: str) -> Iterator[tuple[str, Kept | None]]:
        """All that have left pending and not ended, of the key of ``turn``; with those that wait in retry.

        What went back to an empty pending was taken by somebody else.
        """
        others: list[tuple[str, Kept | None]] = [(one.turn, one) for one in self.retry.values()]
        others += [(lease.claimed.turn, None) for lease in self.leases.values()]
        if self.pending:
            others += [(memory.turn, None) for memory in self.memory.values()]
        return (pair for pair in others if pair[0] and is_of_one_key(pair[0], turn))

    def _pass_on(self, turn: str) -> None:
        """One has ended: those that waited for nothing else are due now, at a time that only the store knows."""
        for _, kept in sorted(self.turns(turn), key=lambda pair: pair[0]):
            if kept is None:
                break
            if kept.due is None:
                kept.due = NOW

    def settle(self, claimed: Claimed, outcome: Outcome, destination: str) -> Settled:
        payload = claimed.payload
        if self.leases.pop(claimed.lease, None) is None:
            return Settled.FENCED
        used = isinstance(outcome, Retry | Dead) and outcome.attempt_used
        self.stats["sent"] += isinstance(outcome, Delivered)
        self.stats["failed"] += used
        if not self.processing[payload]:
            self._pass_on(claimed.turn)
            return Settled.MISSING
        self.processing -= Counter([payload])
        identity = claimed.lease.split("|")[0]
        match outcome:
            case Delivered():
                self.delivered[payload] += 1
            case PutBack():
                self.pending.insert(0, payload)
                self.memory[payload] = Memory(claimed.attempts, claimed.recoveries, claimed.turn)
            case Retry() | Held():
                kept = Kept(
                    payload,
                    claimed.attempts + used,
                    claimed.recoveries,
                    turn=claimed.turn,
                    failed=isinstance(outcome, Retry),
                    destination=destination,
                )
                if isinstance(outcome, Held) and not any(other < kept.turn for other, _ in self.turns(kept.turn)):
                    kept.due = PERHAPS
                self.retry[identity] = kept
            case Dead():
                self.dead[identity] = Letter(payload, outcome.reason.value, destination)
        if isinstance(outcome, Delivered | Dead):
            self._pass_on(claimed.turn)
        return Settled.DONE

    # --- recovery ----------------------------------------------------------------------------

    def recover_expired(self, order: list[bytes], max_recoveries: int) -> tuple[int, int, int]:
        """What leases that ran out held: how many returned, died, and had only a lease left.

        ``order`` is processing, and is left as processing is then.
        """
        over = sorted((lease.ran_out, name) for name, lease in self.leases.items() if lease.ran_out is not None)
        wanted: dict[bytes, list[str]] = {}
        for _, name in over:
            wanted.setdefault(self.leases[name].claimed.payload, []).append(name)
        returned = dead = 0
        back: dict[int, list[bytes]] = {}  # by script
        total = len(order)
        for place in reversed(range(total)):
            payload = order[place]
            if not wanted.get(payload):
                continue
            page = sum(total - 1 - place >= end for end in PAGES)
            name = wanted[payload].pop()
            claimed = self.leases.pop(name).claimed
            self.processing -= Counter([payload])
            del order[place]
            if claimed.recoveries + 1 > max_recoveries:
                self.dead[name.split("|")[0]] = Letter(payload, DeadReason.POISON.value)
                dead += 1
            else:
                back.setdefault(page, []).append(payload)
                self.memory[payload] = Memory(claimed.attempts, claimed.recoveries + 1, claimed.turn)
                returned += 1
        for payloads in back.values():
            self._put_back(payloads)
        for names in wanted.values():
            for name in names:
                del self.leases[name]
        return returned, dead, len(over) - returned - dead

    def _put_back(self, last_first: list[bytes]) -> None:
        """What one script takes back: to the head, but behind the rest while a worker has the lock."""
        if self.lock is not None and not self.lock.value.startswith(FAMILY):
            self.pending += reversed(last_first)
        else:
            self.pending = last_first[::-1] + self.pending

    def recover_others(
        self, order: Sequence[bytes], stuck: Counter[bytes] | None, max_recoveries: int | None
    ) -> tuple[int, Counter[bytes]]:
        """What others left in processing, which is ``order``: how many returned, and what died (its ids are not known).

        ``stuck`` None: all of it; ``max_recoveries`` None: recoveries are not counted.
        """
        wanted = Counter(order) if stuck is None else stuck.copy()
        ours = set(self.leased)
        last_first = list(reversed(order))
        returned, dead = 0, Counter[bytes]()
        for start, end in pairwise((0, *PAGES, None)):
            page = last_first[start:end]
            back: list[bytes] = []
            before, deaths = dict(self.memory), dead.total()
            for payload in page:
                if payload in ours or not wanted[payload]:
                    continue
                wanted[payload] -= 1
                self.processing -= Counter([payload])
                known = before.get(payload, Memory())
                if max_recoveries is not None and known.recoveries + 1 > max_recoveries:
                    dead[payload] += 1
                    self.memory.pop(payload, None)
                    continue
                back.append(payload)
                returned += 1
                if max_recoveries is not None:
                    self.memory[payload] = Memory(known.attempts, known.recoveries + 1, known.turn)
            self._put_back(back)
            self.claims += dead.total() > deaths  # the ids of dead letters are made of the fence
        return returned, dead

    # --- operations --------------------------------------------------------------------------

    def reset(self, trash_id: str) -> None:
        self.trash[trash_id] = Trashed(**{one.name: getattr(self, one.name) for one in fields(Contents)})
        for one in fields(Contents):
            setattr(self, one.name, getattr(Contents(), one.name))
        self.lock = None

    def undo(self, trash_id: str, *, in_order: bool) -> None:
        """Where there is an order retries come back one by one, and what is kept for nobody does not."""
        back = self.trash.pop(trash_id)
        if not (self.retry or self.dead or self.orphans or (in_order and back.retry)):
            self.orphans = back.orphans
        self.pending = back.pending + self.pending
        self.processing += back.processing
        self.retry |= back.retry
        self.dead |= back.dead
        self.leases |= back.leases
        self.memory = back.memory | self.memory
        self.stats += back.stats

    def waiting_to_be_tried(self, destination: str | None) -> set[str]:
        """What has failed, for one destination or any, and is not due."""
        return {
            name
            for name, kept in self.retry.items()
            if kept.due is None and kept.failed and destination in (None, kept.destination)
        }

    def dead_retry(self, name: str) -> None:
        payload = self.dead.pop(name).payload
        self.pending.append(payload)
        self.memory.pop(payload, None)

    def dead_purge(self, name: str) -> None:
        self.removed[self.dead.pop(name).payload] += 1


def _is_prolonged(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return (before is None) != (now is None)
    return now > before + 1.0


def key_of(payload: bytes) -> str | None:
    """What stands for the key of a callback in its turn; None: it has none."""
    try:
        read = json.loads(payload)
    except ValueError:
        return None
    key = read.get(ORDER_BY) if isinstance(read, dict) else None
    return None if key is None else hashlib.sha1(f"s{key}".encode()).hexdigest()[:20]


def is_of_one_key(turn: str, other: str) -> bool:
    return turn.partition(":")[0] == other.partition(":")[0]
