"""The words of the program: states, outcomes and what a reader sees. Frozen values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec


class Mode(StrEnum):
    """How far the daemon may go with one queue (each includes the one before)."""

    OBSERVE = "observe"
    SUPERVISE = "supervise"
    DISPATCH = "dispatch"


class State(StrEnum):
    """Where a callback is. Delivered ones are gone: they are counted, not kept."""

    PENDING = "pending"
    PROCESSING = "processing"
    RETRY = "retry"
    DEAD = "dead"
    TRASH = "trash"


class FailureKind(StrEnum):
    """Why one attempt failed. A closed set: it is a metric label."""

    TIMEOUT = "timeout"
    CONNECT = "connect"
    DNS = "dns"
    TLS = "tls"
    PROTOCOL = "protocol"  # the answer is not HTTP, ends early, or its headers are endless
    HTTP_1XX = "http_1xx"  # a final status below 200
    HTTP_3XX = "http_3xx"  # redirects are not followed
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    BLOCKED = "blocked"  # refused by the egress guard
    LOCAL = "local"  # trouble on our side: no route, no resolver, no file descriptors
    EXPIRED = "expired"  # not sent: the lease could have run out before the send began
    CANCELLED = "cancelled"  # not finished: the daemon is stopping


class PutOff(StrEnum):
    """Why a callback that could be sent waits for its destination; kept with it, where a failure would be."""

    THROTTLED = "throttled"
    CIRCUIT_OPEN = "circuit_open"
    PAUSED = "paused"


WAITS_FOR_TURN = (
    "waiting"  # kept likewise, where an earlier callback of its key has not ended (claim.lua writes it too)
)


class DeadReason(StrEnum):
    """Why a callback is given up. A closed set: it is a metric label."""

    INVALID_JSON = "invalid_json"
    INVALID_ITEM = "invalid_item"  # JSON, but not an object
    INVALID_URL = "invalid_url"
    NO_DATA = "no_data"  # body: data, and the item has no `data`
    TOO_LARGE = "too_large"  # the body is larger than max_request_bytes
    RENDER = "render"  # the body could not be made
    BLOCKED = "blocked"
    REJECTED = "rejected"  # an answer that repeating will not change
    MAX_ATTEMPTS = "max_attempts"
    MAX_AGE = "max_age"
    POISON = "poison"  # recovered too often


class Trigger(StrEnum):
    """Who asked for an action. A closed set: it is a metric label."""

    SCHEDULE = "schedule"
    CLI = "cli"
    API = "api"
    ALERT = "alert"


class OperationName(StrEnum):
    """What a person, an alert or the schedule may have done to a queue. A closed set: it is a metric label."""

    UNLOCK = "unlock"
    RECOVER = "recover"
    RESET = "reset"
    UNDO = "undo"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY_DEAD = "retry_dead"
    PURGE_DEAD = "purge_dead"
    RETRY_NOW = "retry_now"
    ENQUEUE = "enqueue"
    EXPIRE = "expire"  # of what a reset had moved, at the end of its keeping
    PAUSE_ALERTS = "pause_alerts"
    RESUME_ALERTS = "resume_alerts"
    RELOAD = "reload"  # of the configuration, with something about the queue that is different


class AlertAction(StrEnum):
    """What an alert may cause."""

    RECOVER = "recover"
    UNLOCK = "unlock"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY_DEAD = "retry_dead"


class AlertOutcome(StrEnum):
    """What becomes of an alert that is received. A closed set: it is a metric label."""

    ACCEPTED = "accepted"  # the action is carried out
    DRY_RUN = "dry_run"  # accepted, and the route says only to look
    NOT_NEEDED = "not_needed"  # the store shows nothing to be done
    DUPLICATE = "duplicate"  # this firing of this alert was accepted before
    COOLDOWN = "cooldown"
    CAPPED = "capped"  # max_per_hour
    PAUSED = "paused"  # a person has paused actions on alerts
    RESOLVED = "resolved"  # never causes anything
    UNMATCHED = "unmatched"  # no route fits
    UNKNOWN_QUEUE = "unknown_queue"  # it names no configured queue
    OBSERVED = "observed"  # its queue is only observed
    INVALID = "invalid"  # it lacks what its route needs; or a whole request that cannot be read
    UNAUTHORIZED = "unauthorized"  # a whole request
    FAILED = "failed"  # the store could not be asked: Alertmanager is told to try again


class FlushReason(StrEnum):
    """Why a batch goes out now. A closed set: it is a metric label."""

    SIZE = "size"  # as many callbacks wait as fill a batch
    AGE = "age"  # the oldest has waited long enough
    EARLY = "early"  # the trigger between the two
    RETRY = "retry"  # a retry is due


# Of these two one is made for each callback; a Struct is made several times faster than a frozen dataclass.
class Claimed(msgspec.Struct, frozen=True, gc=False):
    """One callback under our lease.

    ``lease`` is opaque: it is handed back when settling and is good for exactly this claim.
    ``fingerprint`` is the SHA-1 of the payload, in hexadecimal: the callback's identity.
    ``attempts`` counts the finished attempts before this one; ``first_claimed_ms`` is the store's clock,
    in milliseconds since the epoch, when the callback was first claimed by any daemon. ``turn`` is ``<key>:<place>``
    where callbacks of one key go one after the other, else empty.
    """

    lease: str
    fingerprint: str
    payload: bytes
    attempts: int
    recoveries: int
    first_claimed_ms: int
    turn: str = ""

    @property
    def kept_as(self) -> str:
        """Its id in retry or among the dead letters, where it goes there."""
        return self.lease.partition("|")[0]


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of an attempt that did not deliver, as kept with the callback."""

    kind: str
    status: int = 0
    detail: str = ""
    sample: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Settle as done."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Settle as to be tried again in ``delay`` seconds.

    ``attempt_used`` is False where nothing of it was the receiver's doing.
    """

    delay: float
    failure: Failure
    attempt_used: bool = True


@dataclass(frozen=True, slots=True)
class Dead:
    """Settle as given up."""

    reason: DeadReason
    failure: Failure
    attempt_used: bool = True


@dataclass(frozen=True, slots=True)
class PutBack:
    """Settle as not sent: back to the head of pending, no attempt used."""


@dataclass(frozen=True, slots=True)
class Held:
    """Settle as waiting in retry for an earlier callback of its key, no attempt used."""


Outcome = Delivered | Retry | Held | Dead | PutBack


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How one claim ended. ``url`` and ``destination`` are kept with retries and dead letters, for people."""

    claimed: Claimed
    outcome: Outcome
    url: str = ""
    destination: str = ""


class Settled(StrEnum):
    """What came of a settlement."""

    DONE = "done"
    FENCED = "fenced"  # the lease was not ours any more: nothing was done
    MISSING = "missing"  # somebody else took the callback out of processing: only the lease went


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought. ``at_ms`` and ``next_due_ms`` are the store's clock, in milliseconds.

    ``new`` callbacks left pending for the first time: some are not among ``items``, as they wait for their turn.
    """

    at_ms: int
    items: tuple[Claimed, ...]
    from_retry: int
    new: int
    pending_left: int
    next_due_ms: int | None


@dataclass(frozen=True, slots=True)
class LockState:
    """The send lock after a try to take it. ``ttl`` is the seconds until it expires; None where it never does."""

    ours: bool
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits to be claimed, as the flush decision sees it. Times are epoch seconds; ``at`` is the store's.

    ``oldest_queued_at`` and ``early_queued_at`` (the callback at the early trigger's position) are the
    producers' clocks; None where there is no such callback or it does not say. ``last_batch_at`` is the clock of
    whoever sent the last batch; None where that is not known, or was not asked.
    """

    at: float
    pending: int
    oldest_queued_at: float | None
    early_queued_at: float | None
    next_due_at: float | None
    last_batch_at: float | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one look for expired leases did, in callbacks."""

    returned: int = 0
    dead: int = 0
    leases_dropped: int = 0

    @property
    def total(self) -> int:
        return self.returned + self.dead

    def __add__(self, other: Recovery) -> Recovery:
        return Recovery(
            self.returned + other.returned, self.dead + other.dead, self.leases_dropped + other.leases_dropped
        )


@dataclass(frozen=True, slots=True)
class ProcessingLook:
    """What one look at processing found; see ``store.sightings``.

    ``untracked`` counts callbacks that no lease of ours holds, ``stuck`` those of them that were first seen long
    enough ago. ``new`` and ``gone`` are sightings that began and ended with this look. ``ineffective`` counts
    callbacks that were recovered twice or more and are not delivered yet. ``at`` is the store's clock, in epoch
    seconds. ``begun_anew``: the store's clock had leapt, so that what was seen before no longer counts.
    """

    at: float
    untracked: int = 0
    stuck: int = 0
    new: int = 0
    gone: int = 0
    leases_over: int = 0
    ineffective: int = 0
    begun_anew: bool = False


@dataclass(frozen=True, slots=True)
class LockLook:
    """The send lock as it was seen. Times are epoch seconds of the store's clock; ``ttl`` is seconds, None: no expiry.

    ``value`` is what it holds, byte for byte. ``first_seen_at`` is when that value was first seen,
    ``untouched_since`` when it was first seen and not prolonged since. ``beat_at`` is the last heartbeat of the daemon
    that wrote the value; None where there was none.
    """

    value: bytes
    ttl: float | None
    first_seen_at: float
    untouched_since: float
    beat_at: float | None
    now: float

    @property
    def shown(self) -> str:
        """The value for people."""
        return self.value.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class LockRule:
    """When a lock is left behind. Times are seconds; ``dead_after`` is the age of a heartbeat that counts as dead."""

    no_ttl_after: float
    max_ttl: float
    dead_after: float


class ReleaseReason(StrEnum):
    """Why a lock is released without its holder. A closed set: it is a metric label."""

    NO_TTL = "no_ttl"
    TTL_BEYOND_MAX = "ttl_beyond_max"
    HOLDER_DEAD = "holder_dead"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. ``name``: empty for the schedule, user@host, the API's user, or the alert's fingerprint."""

    trigger: Trigger
    name: str = ""

    def __str__(self) -> str:
        return f"{self.trigger}:{self.name}" if self.name else str(self.trigger)


class Result(StrEnum):
    """How an operation ended, or how far it is. A closed set: it is a metric label."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"  # by a safety rule, or by the operator
    DRY_RUN = "dry_run"
    CHANGED = "changed"  # what was planned no longer matched what was there


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit. ``at`` is epoch seconds, by the store; ``before`` and ``after`` are plain values."""

    id: str
    at: float
    actor: Actor
    operation: str
    queue: str
    reason: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    result: Result


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as an operator sees it. Times are epoch seconds; ``payload`` only where asked for."""

    id: str
    reason: str
    url: str
    destination: str
    attempts: int
    first_at: float
    died_at: float
    failure: Failure
    size: int
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class WaitingRetry:
    """A callback that waits in retry, as an operator sees it. Times are epoch seconds; ``payload`` where asked for.

    The kind of ``failure`` says why it waits.
    """

    id: str
    url: str
    destination: str
    attempts: int
    first_at: float
    due_at: float
    failure: Failure
    size: int
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class LockView:
    """The send lock. ``ttl`` in seconds; None where the lock has no expiry."""

    value: str
    ttl: float | None
    ours: bool


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue at one moment. Absent numbers are None: unknown is never zero.

    Timestamps are epoch seconds. ``lock_look`` is the lock as a daemon that supervises sees it; None where it is free
    or none does. ``own_look`` is the lock as a daemon that only observes has seen it since its start. ``lock_rule``
    says when one counts as left behind. ``memory`` is bytes, as last measured. ``newer`` says that a newer version has
    written to the queue, where one has. ``error`` says why the rest is missing.
    """

    queue: str
    mode: Mode
    lengths: Mapping[State, int] = field(default_factory=dict)
    oldest_at: Mapping[State, float] = field(default_factory=dict)
    oldest_claim_at: float | None = None
    retry_overdue: int | None = None
    retry_oldest_due_at: float | None = None
    stuck: int | None = None
    untracked: int | None = None
    leased: int | None = None
    lock: LockView | None = None
    lock_look: LockLook | None = None
    own_look: LockLook | None = None
    lock_rule: LockRule | None = None
    last_send_at: float | None = None
    source_stats: Mapping[str, int] = field(default_factory=dict)
    memory: int | None = None
    paused: bool | None = None
    paused_destinations: int | None = None
    failing_destinations: int | None = None
    alerts_paused: bool | None = None
    newer: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one scrape, ``status`` or the API shows: all queues, read in one round trip.

    ``at`` is the store's clock in epoch seconds, ``duration`` the seconds that reading took. ``disk_write_failed`` says
    that the last snapshot or write of the append-only file did. None is unknown.
    """

    up: bool
    at: float
    duration: float
    queues: tuple[QueueView, ...]
    server: str = ""
    replica: bool | None = None
    memory_used: int | None = None
    memory_max: int | None = None
    disk_write_failed: bool | None = None
    error: str | None = None
