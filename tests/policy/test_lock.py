"""When a send lock is released without its holder: never where it frees itself, unless our own dead daemon held it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.model import LockLook, LockRule, ReleaseReason
from cbq_exporter.policy.lock import Leave, Release, Verdict, Watch, is_family, judge

RULE = LockRule(no_ttl_after=60, max_ttl=600, dead_after=15)
NOW = 1_764_000_000.0
THEIRS, OURS = b"worker_1764000000_1234", b"cbq-exporter_1764000000_host_ab"


def look(value: bytes, ttl: float | None, untouched_for: float, beat_age: float | None = None) -> LockLook:
    since = NOW - untouched_for
    return LockLook(value, ttl, NOW - 86_400, since, None if beat_age is None else NOW - beat_age, NOW)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (look(THEIRS, 30.0, 86_400), Leave()),
        (look(THEIRS, 600.0, 86_400), Leave()),
        (look(THEIRS, 0.001, 86_400), Leave()),
        (look(THEIRS, None, 0), Watch(NOW + 60, ReleaseReason.NO_TTL)),
        (look(THEIRS, None, 59.5), Watch(NOW + 0.5, ReleaseReason.NO_TTL)),
        (look(THEIRS, None, 60), Release(ReleaseReason.NO_TTL)),
        (look(THEIRS, 600.5, 10), Watch(NOW + 50, ReleaseReason.TTL_BEYOND_MAX)),
        (look(THEIRS, 600.5, 60), Release(ReleaseReason.TTL_BEYOND_MAX)),
        # Ours: its heartbeat counts, and a lock that is prolonged is a sign of life too.
        (look(OURS, 30.0, 86_400, beat_age=5), Leave()),
        (look(OURS, 30.0, 86_400, beat_age=16), Release(ReleaseReason.HOLDER_DEAD)),
        (look(OURS, 30.0, 3, beat_age=3600), Leave()),
        (look(OURS, 30.0, 10, beat_age=None), Leave()),
        (look(OURS, 30.0, 16, beat_age=None), Release(ReleaseReason.HOLDER_DEAD)),
        # The store's clock was set back: what beat before that has beaten in the future.
        (look(OURS, 330.0, 14, beat_age=-300), Leave()),
        (look(OURS, 330.0, 16, beat_age=-300), Release(ReleaseReason.HOLDER_DEAD)),
        (look(OURS, None, 86_400, beat_age=1), Release(ReleaseReason.NO_TTL)),
        (look(OURS, None, 20, beat_age=1), Watch(NOW + 40, ReleaseReason.NO_TTL)),
        # Somebody else's heartbeat is nothing we know about.
        (look(THEIRS, 30.0, 86_400, beat_age=3600), Leave()),
    ],
)
def test_what_becomes_of_a_lock(seen: LockLook, verdict: Verdict) -> None:
    assert judge(seen, RULE) == verdict


@given(
    value=st.sampled_from([THEIRS, OURS, b"", b"\xff", b"x" + OURS]),
    ttl=st.none() | st.floats(0, 1e9),
    first=st.floats(0, 2e9),
    untouched=st.floats(0, 2e9),
    beat=st.none() | st.floats(0, 2e9),
    now=st.floats(0, 2e9),
    rule=st.builds(LockRule, st.floats(0.1, 1e6), st.floats(1, 1e6), st.floats(0.3, 1e6)),
)
def test_a_sane_ttl_is_never_touched_and_nothing_is_released_early(
    value: bytes, ttl: float | None, first: float, untouched: float, beat: float | None, now: float, rule: LockRule
) -> None:
    verdict = judge(LockLook(value, ttl, first, untouched, beat, now), rule)
    if isinstance(verdict, Release):
        if verdict.reason is ReleaseReason.HOLDER_DEAD:
            assert is_family(value)
            assert now - untouched > rule.dead_after
        else:
            assert ttl is None or ttl > rule.max_ttl
            assert now >= untouched + rule.no_ttl_after
