"""So many requests and bytes in a time, and no more, however late the loop wakes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.delivery import pacing
from cbq_exporter.delivery.pacing import BURST, Pace, PaceRule


@given(
    st.floats(0.1, 20_000),
    st.lists(st.floats(0, 0.5), min_size=2, max_size=200),
)
def test_no_more_begin_in_any_time_than_the_rate_and_a_small_burst(rate: float, pauses: list[float]) -> None:
    rule = PaceRule(rate, None)
    pace, now = Pace(), 1000.0
    began: list[float] = []
    for pause in pauses:
        now += pause
        while pacing.ready_at(pace) <= now and len(began) < 500:
            pace = pacing.begun(pace, rule, 0, now)
            began.append(now)
    for first in range(0, len(began), 7):
        for last in range(first, len(began), 11):
            assert last - first + 1 <= rate * (began[last] - began[first] + BURST) + 1 + 1e-6


@given(st.floats(1, 2000), st.lists(st.floats(0, 0.9 * BURST), min_size=20, max_size=60))
def test_who_wakes_a_little_late_each_time_keeps_the_rate(rate: float, late: list[float]) -> None:
    rule = PaceRule(rate, None)
    pace = pacing.begun(Pace(), rule, 0, 0.0)
    begun, now = 1, 0.0
    for lateness in late:
        now = max(now, pacing.ready_at(pace)) + lateness
        while pacing.ready_at(pace) <= now:
            pace = pacing.begun(pace, rule, 0, now)
            begun += 1
    assert begun >= rate * now


@given(st.floats(1e3, 1e9), st.lists(st.integers(0, 3_000_000), min_size=1, max_size=50))
def test_bytes_are_paid_for_afterwards_to_the_last(bandwidth: float, sizes: list[int]) -> None:
    rule = PaceRule(None, bandwidth)
    pace, now = Pace(), 0.0
    sent = 0
    for size in sizes:
        now = max(now, pacing.ready_at(pace))
        assert 8 * sent <= bandwidth * (now + BURST) * (1 + 1e-9)
        pace = pacing.begun(pace, rule, size, now)
        sent += size


def test_the_tighter_of_two_limits_counts_and_none_is_no_limit() -> None:
    both = PaceRule(rate=10.0, bandwidth=8e6)
    assert pacing.ready_at(pacing.begun(Pace(), both, 10, 5.0)) == 5.0 + 0.1 - BURST
    assert pacing.ready_at(pacing.begun(Pace(), both, 1_000_000, 5.0)) > 5.9
    assert pacing.ready_at(pacing.begun(Pace(), PaceRule(None, None), 10**9, 5.0)) == float("-inf")
