"""Snapshots of every kind, and instruments that have counted: the same for metrics, pages and status."""

from __future__ import annotations

from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import (
    Actor,
    DeadReason,
    FailureKind,
    FlushReason,
    LockLook,
    LockRule,
    LockView,
    Mode,
    OperationName,
    QueueView,
    ReleaseReason,
    Result,
    Snapshot,
    State,
    Trigger,
)

AT = 1_764_000_000.5

LOCK_RULE = LockRule(no_ttl_after=60, max_ttl=600, dead_after=15)

BUSY = QueueView(
    queue="callbacks",
    mode=Mode.DISPATCH,
    lengths={State.PENDING: 1234, State.PROCESSING: 96, State.RETRY: 7, State.DEAD: 2, State.TRASH: 5},
    oldest_at={State.PENDING: AT - 12, State.PROCESSING: AT - 14.25, State.DEAD: AT - 86_400},
    oldest_claim_at=AT - 3.125,
    retry_overdue=1,
    retry_oldest_due_at=AT - 1.25,
    stuck=2,
    untracked=0,
    leased=96,
    lock=LockView("worker_1763999999_4711", 23.5, ours=True),
    lock_look=LockLook(b"worker_1763999999_4711", 23.5, AT - 1.5, AT - 1.5, None, AT),
    lock_rule=LOCK_RULE,
    last_send_at=AT - 0.25,
    source_stats={"queued": 1340, "sent": 100, "failed": 3},
    memory=1_536_000,
    paused=False,
    paused_destinations=2,
    failing_destinations=1,
    alerts_paused=True,
)
LEFT_BEHIND = QueueView(
    queue="invoices",
    mode=Mode.OBSERVE,
    lengths={State.PENDING: 5, State.PROCESSING: 3, State.RETRY: 0, State.DEAD: 0},
    oldest_at={State.PENDING: AT - 5400},
    retry_overdue=0,
    stuck=0,
    untracked=3,
    leased=0,
    lock=LockView("worker_1763990000_0042", None, ours=False),
    lock_look=LockLook(b"worker_1763990000_0042", None, AT - 5400, AT - 5400, None, AT),
    lock_rule=LOCK_RULE,
)
IDLE = QueueView(
    queue="reports",
    mode=Mode.SUPERVISE,
    lengths={State.PENDING: 0, State.PROCESSING: 0, State.RETRY: 0, State.DEAD: 0},
    retry_overdue=0,
    stuck=0,
    untracked=0,
    leased=0,
    last_send_at=AT - 7200,
)
BROKEN = QueueView(
    queue="foreign",
    mode=Mode.DISPATCH,
    error="foreign:pending: a key of this queue holds another type: rename or delete that key",
)

MIXED = Snapshot(
    up=True,
    at=AT,
    duration=0.0015,
    queues=(BUSY, LEFT_BEHIND, IDLE, BROKEN),
    server="valkey 9.1.0",
    memory_used=12_582_912,
    memory_max=268_435_456,
)
WELL = Snapshot(up=True, at=AT, duration=0.0015, queues=(IDLE,), server="redis 7.0.15", memory_used=1_000_000)
DOWN = Snapshot(
    up=False,
    at=AT,
    duration=2.0,
    queues=(QueueView("callbacks", Mode.DISPATCH, error="Redis is down"),),
    error="Redis at redis://localhost:6379/1 cannot be reached: connection refused",
)


def counted() -> Instruments:
    """One of everything, and more destinations than get series of their own."""
    instruments = Instruments(["callbacks"], max_destinations=2, revision="4f68792")
    queue = instruments.queue("callbacks")
    queue.enqueued.inc(5)
    queue.delivered.inc(3)
    queue.dead[DeadReason.MAX_AGE].inc()
    queue.retried[FailureKind.HTTP_5XX].inc()
    queue.flushes[FlushReason.SIZE].inc()
    queue.batch_wait.set(5)
    queue.batch_size.observe(5)
    queue.bundle_size.observe(4)
    queue.bundle_splits.inc()
    queue.bundle_partial_results.inc(2)
    queue.lag.observe(0.75)
    queue.recovered[Trigger.SCHEDULE].inc(2)
    queue.recovery_ineffective.set(1)
    queue.lock_releases[ReleaseReason.NO_TTL].inc()
    queue.lock_release_aborts.inc()
    instruments.operation_ended(OperationName.RECOVER, Actor(Trigger.SCHEDULE), Result.DONE)
    queue.fenced["settle"].inc()
    queue.taken_away.inc(2)
    queue.leader.set(1)
    for host in ("one.example", "two.example", "three.example", "four.example", "three.example"):
        destination = queue.destination(host)
        destination.attempts.inc()
        destination.in_flight.inc()
        destination.duration.observe(0.02)
    queue.destination("one.example").failures[FailureKind.TIMEOUT].inc()
    queue.destination("one.example").throttled.inc()
    circuit = queue.destination("one.example").circuit
    assert circuit is not None
    circuit.set(2)
    task = instruments.task("flush")
    task.runs.inc()
    task.duration.observe(0.01)
    task.interval.set(1)
    task.last_success.set(AT)
    instruments.task("never").failures.inc()
    instruments.redis_error("timeout")
    instruments.redis_error("something new")
    instruments.config_reloaded(True, AT - 60)
    instruments.config_reloaded(False, AT)
    return instruments
