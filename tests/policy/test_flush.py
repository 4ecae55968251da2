"""When a batch goes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.model import FlushReason, Waiting
from cbq_exporter.policy.flush import FlushRule, decide

NOW = 1_764_000_000.0
# What existing software does: ten, or five seconds, or three that have waited two; half a second between two.
EXISTING = FlushRule(size=10, max_delay=5.0, min_interval=0.5, early_size=3, early_delay=2.0)
LONG_AGO = 1000.0


def waiting(pending: int, oldest: float | None = None, early: float | None = None, due: float | None = None) -> Waiting:
    """Ages in seconds; ``due`` is seconds from now."""
    return Waiting(
        NOW,
        pending,
        None if oldest is None else NOW - oldest,
        None if early is None else NOW - early,
        None if due is None else NOW + due,
    )


@pytest.mark.parametrize(
    ("state", "reason", "look_again_in"),
    [
        (waiting(0), None, None),
        (waiting(1, oldest=1.0), None, 4.0),
        (waiting(1, oldest=5.0), FlushReason.AGE, None),
        (waiting(10, oldest=0.0), FlushReason.SIZE, None),
        (waiting(3, oldest=2.5, early=1.5), None, 0.5),
        (waiting(3, oldest=2.5, early=2.0), FlushReason.EARLY, None),
        (waiting(2, oldest=2.5, early=None), None, 2.5),
        (waiting(0, due=0.0), FlushReason.RETRY, None),
        (waiting(0, due=7.0), None, 7.0),
        (waiting(1, oldest=1.0, due=0.5), None, 0.5),
        (waiting(1, oldest=9.0, due=-1.0), FlushReason.AGE, None),
    ],
)
def test_what_is_due(state: Waiting, reason: FlushReason | None, look_again_in: float | None) -> None:
    decision = decide(state, EXISTING, seen_for=0.0, since_last_batch=LONG_AGO)
    assert decision.reason == reason
    assert decision.look_again_in == pytest.approx(look_again_in)


def test_batches_keep_their_interval() -> None:
    decision = decide(waiting(500, oldest=60.0), EXISTING, seen_for=60.0, since_last_batch=0.2)
    assert decision.reason is None
    assert decision.look_again_in == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("ago", "look_again_in"),
    [(0.2, 0.3), (0.0, 0.5), (-0.1, 0.5), (0.5, None), (-3600.0, None)],
    ids=["just-now", "now", "a-clock-a-little-ahead", "long-enough", "a-clock-far-ahead"],
)
def test_batches_of_others_count_for_the_interval(ago: float, look_again_in: float | None) -> None:
    state = replace(waiting(500, oldest=60.0), last_batch_at=NOW - ago)
    decision = decide(state, EXISTING, seen_for=60.0, since_last_batch=LONG_AGO)
    assert decision.reason is (FlushReason.SIZE if look_again_in is None else None)
    assert decision.look_again_in == pytest.approx(look_again_in)


@pytest.mark.parametrize("oldest", [None, -3600.0])
def test_a_producer_without_a_clock_or_with_a_fast_one_is_not_made_to_wait(oldest: float | None) -> None:
    """An hour in the future is no reason to wait an hour: what counts is how long we have seen it."""
    assert decide(waiting(1, oldest), EXISTING, seen_for=5.0, since_last_batch=LONG_AGO).reason is FlushReason.AGE
    early = decide(waiting(1, oldest), EXISTING, seen_for=1.0, since_last_batch=LONG_AGO)
    assert early.look_again_in == pytest.approx(4.0)


def test_without_a_delay_everything_goes_at_once() -> None:
    rule = FlushRule(size=100, max_delay=0.0)
    assert decide(waiting(1, oldest=0.0), rule, seen_for=0.0, since_last_batch=LONG_AGO).reason is FlushReason.AGE


ages = st.none() | st.floats(-1e6, 1e6)


@given(st.integers(0, 50), ages, ages, st.none() | st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_looking_again_when_told_finds_it_due(
    pending: int, oldest: float | None, early: float | None, due: float | None, seen: float, since: float
) -> None:
    """No batch is missed and none spins: after the time that it says, nothing else having changed, it is due."""
    state = waiting(pending, oldest, early, due)
    first = decide(state, EXISTING, seen_for=seen, since_last_batch=since)
    if first.reason is not None:
        return
    if first.look_again_in is None:
        assert pending == 0
        assert due is None
        return
    assert first.look_again_in > 0
    later = first.look_again_in + 1e-3
    moved = Waiting(NOW + later, state.pending, state.oldest_queued_at, state.early_queued_at, state.next_due_at)
    again = decide(moved, EXISTING, seen_for=seen + later, since_last_batch=since + later)
    assert again.reason is not None
