"""What is to be done about the send lock. Pure: the same values always give the same answer."""

from __future__ import annotations

from dataclasses import dataclass

from cbq_exporter.model import LockLook, LockRule, QueueView, ReleaseReason

FAMILY = b"cbq-exporter_"  # how the locks of our daemons begin


@dataclass(frozen=True, slots=True)
class Leave:
    """It expires by itself, or its holder lives."""


@dataclass(frozen=True, slots=True)
class Watch:
    """It will be released at ``acts_at``, in epoch seconds, if nothing happens to it until then."""

    acts_at: float
    reason: ReleaseReason


@dataclass(frozen=True, slots=True)
class Release:
    reason: ReleaseReason


Verdict = Leave | Watch | Release


def judge(look: LockLook, rule: LockRule) -> Verdict:
    """A lock with a sane TTL is left alone, unless one of our own daemons held it and is dead.

    All ages count from the first sight of the lock as it is now: one that was prolonged since is young.
    """
    if is_family(look.value):
        last_sign = look.untouched_since
        if look.beat_at is not None and look.beat_at <= look.now:  # else the clock was set back: it says nothing
            last_sign = max(last_sign, look.beat_at)
        if look.now - last_sign > rule.dead_after:
            return Release(ReleaseReason.HOLDER_DEAD)
    if look.ttl is None:
        reason = ReleaseReason.NO_TTL
    elif look.ttl > rule.max_ttl:
        reason = ReleaseReason.TTL_BEYOND_MAX
    else:
        return Leave()
    acts_at = look.untouched_since + rule.no_ttl_after
    return Release(reason) if look.now >= acts_at else Watch(acts_at, reason)


def thought(view: QueueView) -> Verdict | None:
    """What the lock keeper thinks of the lock in ``view``; None where it is free, or no daemon supervises."""
    if view.lock_look is None or view.lock_rule is None:
        return None
    return judge(view.lock_look, view.lock_rule)


def is_stale(view: QueueView) -> bool | None:
    """Whether the lock in ``view`` was left behind; None where it is free, or nobody can tell."""
    look = view.lock_look or view.own_look
    if look is None or view.lock_rule is None:
        return None
    if look is view.own_look and is_family(look.value):
        return None  # who only observes does not hear its heartbeat
    return isinstance(judge(look, view.lock_rule), Release)


def is_family(value: bytes) -> bool:
    """Whether one of our daemons wrote it."""
    return value.startswith(FAMILY)
