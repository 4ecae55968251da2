"""What somebody should look at, in words: the same on the command line and on the landing page. Pure."""

from __future__ import annotations

from cbq_exporter.model import Mode, QueueView, ReleaseReason, Snapshot, State
from cbq_exporter.phrases import age, count
from cbq_exporter.policy.lock import Release, Watch, thought

_WAITS_TOO_LONG = 60.0  # seconds
_REASONS = {
    ReleaseReason.NO_TTL: "no expiry",
    ReleaseReason.TTL_BEYOND_MAX: "its TTL is too long",
    ReleaseReason.HOLDER_DEAD: "its daemon is dead",
}


def store_troubles(snapshot: Snapshot) -> list[str]:
    """Of the server that all queues are in; none while it cannot be reached."""
    found = []
    if snapshot.disk_write_failed:
        found.append("the server's last write to its disk failed: it may refuse every change")
    if snapshot.memory_used is not None and snapshot.memory_max and snapshot.memory_used >= snapshot.memory_max:
        found.append("the server's memory is full: producers are refused, or keys are evicted")
    if snapshot.replica and any(view.mode is not Mode.OBSERVE for view in snapshot.queues):
        found.append("the server is a replica: it refuses every change")
    return found


def troubles(view: QueueView, now: float) -> list[str]:
    """Of one queue, one phrase each; none where all is well. ``now`` is epoch seconds.

    ``view.error`` is among them as it is: what somebody else wrote has to be made safe by whoever shows it.
    """
    found = []
    if view.error:
        found.append(view.error)
    if view.paused:
        found.append("paused by an operator")
    if view.paused_destinations:
        found.append(f"{count(view.paused_destinations, 'destination')} paused")
    if view.failing_destinations:
        found.append(f"{count(view.failing_destinations, 'destination')} left alone for failing")
    if view.alerts_paused:
        found.append("actions on alerts paused by an operator")
    found += _lock(view)
    if view.stuck:
        found.append(f"{view.stuck:,} stuck in processing: their sender is gone")
    if view.retry_overdue:
        found.append(f"{view.retry_overdue:,} {'retry' if view.retry_overdue == 1 else 'retries'} overdue")
    waiting = view.oldest_at.get(State.PENDING)
    unsent = any(view.lengths.get(state) for state in (State.PENDING, State.PROCESSING, State.RETRY))
    # A daemon that dispatches holds the lock all the time, also of a queue that is empty or paused.
    if view.mode is Mode.DISPATCH and view.lock is None and unsent:
        found.append("nobody sends: is the daemon running?")
    elif waiting is not None and now - waiting > _WAITS_TOO_LONG:
        found.append("callbacks wait for more than a minute")
    return found


def _lock(view: QueueView) -> list[str]:
    found = []
    ttl = None if view.lock is None else view.lock.ttl
    if view.lock is not None and ttl is None:
        found.append("the lock cannot expire by itself")
    if ttl is not None and view.lock_rule is not None and ttl > view.lock_rule.max_ttl:
        found.append(f"the lock expires only in {age(ttl)}")
    look = view.lock_look
    if look is not None:
        match thought(view):
            case Release(reason):
                since = age(look.now - look.untouched_since)
                found.append(f"the lock was left behind ({_REASONS[reason]}, untouched for {since})")
            case Watch(acts_at, reason):
                left = age(acts_at - look.now)
                found.append(f"the lock is taken to be left behind in {left} ({_REASONS[reason]})")
    return found
