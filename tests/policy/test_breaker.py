"""When a circuit opens, and what closes it."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.model import FailureKind
from cbq_exporter.policy import breaker
from cbq_exporter.policy.breaker import BreakerRule, Circuit, Phase

RULE = BreakerRule(failure_ratio=0.5, min_attempts=10, window=30.0, open_for=30.0, longest_open=600.0, probes=3)


def after(circuit: Circuit, now: float, succeeded: int = 0, failed: int = 0, *, rule: BreakerRule = RULE) -> Circuit:
    return breaker.record(circuit, rule, succeeded=succeeded, failed=failed, now=now, roll=0.0)


def opened(times: int = 1) -> tuple[Circuit, float]:
    """A circuit that has opened so many times in a row, and when."""
    now = 0.0
    circuit = after(Circuit(), now, failed=10)
    for _ in range(times - 1):
        now = circuit.until
        circuit = after(circuit, now, failed=1)
    assert (circuit.phase, circuit.openings) == (Phase.OPEN, times)
    return circuit, now


def test_it_opens_for_a_ratio_of_enough_attempts_and_not_for_fewer() -> None:
    few = after(Circuit(), 1.0, failed=9)
    assert few.phase is Phase.CLOSED
    assert after(few, 2.0, failed=1).phase is Phase.OPEN
    well = after(Circuit(), 1.0, succeeded=100)
    assert after(well, 2.0, failed=99).phase is Phase.CLOSED
    assert after(well, 2.0, failed=100).phase is Phase.OPEN
    # A success never opens one, however bad things were.
    assert after(after(Circuit(), 1.0, failed=9), 2.0, succeeded=1).phase is Phase.CLOSED


def test_either_opens_it_with_exactly_enough_attempts() -> None:
    """The ratio without a row, and a row of which the window has seen half."""
    assert after(after(Circuit(), 1.0, succeeded=4), 2.0, failed=6).phase is Phase.OPEN
    assert after(after(Circuit(), 1.0, succeeded=3), 2.0, failed=6).phase is Phase.CLOSED
    assert after(after(Circuit(), 1000.0, failed=5), 1061.0, failed=5).phase is Phase.OPEN
    assert after(after(Circuit(), 1000.0, failed=5), 1061.0, failed=4).phase is Phase.CLOSED


def test_both_halves_of_the_window_count_together() -> None:
    first_half = after(after(Circuit(), 100.0, failed=8), 101.0, succeeded=1)
    assert after(first_half, 116.0, failed=8).phase is Phase.OPEN
    well = after(after(Circuit(), 100.0, succeeded=100), 116.0, succeeded=1)
    assert after(well, 120.0, failed=9).phase is Phase.CLOSED  # the hundred still count
    assert after(well, 129.0, failed=10).phase is Phase.CLOSED


def test_a_row_of_failures_opens_it_however_long_they_take() -> None:
    """A receiver that lets four at a time wait for 15 s."""
    circuit = Circuit()
    for round_ in range(2):
        circuit = after(circuit, 15.0 * round_, failed=4)
        assert circuit.phase is Phase.CLOSED
    assert after(circuit, 60.0, failed=4).phase is Phase.OPEN
    assert after(after(circuit, 60.0, succeeded=1), 100.0, failed=4).phase is Phase.CLOSED  # the row has ended
    assert after(circuit, 400.0, failed=4).phase is Phase.CLOSED  # it was too long ago
    assert not breaker.says_nothing(circuit, RULE, 100.0)
    assert breaker.says_nothing(circuit, RULE, 400.0)


def test_what_was_before_the_window_does_not_count() -> None:
    long_ago = after(Circuit(), 100.0, succeeded=1000)
    assert after(long_ago, 116.0, failed=10).phase is Phase.CLOSED  # still in the half before
    assert after(long_ago, 130.1, failed=10).phase is Phase.OPEN
    assert breaker.says_nothing(long_ago, RULE, 130.1)
    assert not breaker.says_nothing(long_ago, RULE, 120.0)


def test_probes_are_let_through_when_its_time_is_over_and_close_it() -> None:
    circuit, _ = opened()
    assert circuit.until == 30.0
    assert breaker.places(circuit, RULE) == 0
    assert after(circuit, 29.0, succeeded=5) == circuit  # begun before it opened
    half_open = breaker.probing(circuit, 30.0)
    assert (half_open.phase, breaker.places(half_open, RULE)) == (Phase.HALF_OPEN, 3)
    two = after(half_open, 31.0, succeeded=2)
    assert (two.phase, breaker.places(two, RULE)) == (Phase.HALF_OPEN, 1)
    closed = after(two, 32.0, succeeded=1)
    assert (closed.phase, breaker.places(closed, RULE)) == (Phase.CLOSED, None)
    assert after(closed, 33.0, failed=9).phase is Phase.CLOSED  # it begins anew


def test_each_failed_probe_doubles_the_time_up_to_the_longest() -> None:
    lengths = []
    for times in range(1, 9):
        circuit, now = opened(times)
        lengths.append(circuit.until - now)
    assert lengths == [30, 60, 120, 240, 480, 600, 600, 600]
    rolled = breaker.record(Circuit(), RULE, succeeded=0, failed=10, now=0.0, roll=0.999)
    assert 35.9 < rolled.until < 36.0


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_is_judged(kind: FailureKind) -> None:
    expected = {
        "failure": {"timeout", "connect", "dns", "tls", "protocol", "http_5xx"},
        "nothing": {"local", "blocked", "expired", "cancelled"},
    }
    judged = breaker.failed(kind, 404 if kind is FailureKind.HTTP_4XX else 0)
    assert judged is (True if kind in expected["failure"] else None if kind in expected["nothing"] else False)
    assert breaker.failed(None, 200) is False
    assert breaker.failed(FailureKind.HTTP_4XX, 429) is True


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 30), st.integers(0, 30), st.floats(0, 0.999)), max_size=60),
    st.floats(0.05, 1.0),
    st.integers(1, 50),
    st.integers(1, 5),
)
def test_whatever_happens(
    events: list[tuple[float, int, int, float]], ratio: float, min_attempts: int, probes: int
) -> None:
    rule = BreakerRule(ratio, min_attempts, 30.0, 5.0, 80.0, probes)
    circuit, now = Circuit(), 0.0
    recent: list[tuple[float, int, int]] = []  # since it was last closed anew
    for passed, succeeded, failures, roll in events:
        now += passed
        before = breaker.probing(circuit, now)
        circuit = breaker.record(circuit, rule, succeeded=succeeded, failed=failures, now=now, roll=roll)
        match before.phase, circuit.phase:
            case Phase.OPEN, phase:
                assert phase is Phase.OPEN
                assert circuit == before
            case Phase.HALF_OPEN, Phase.OPEN:
                assert failures
                assert circuit.openings == before.openings + 1
            case Phase.HALF_OPEN, Phase.CLOSED:
                assert not failures
                assert before.succeeded + succeeded >= probes
            case Phase.CLOSED, Phase.OPEN:
                all_of_them = [*recent, (now, succeeded, failures)]
                seen = [(s, f) for at, s, f in all_of_them if now - at <= rule.window + 1e-6]
                in_a_row = sum(f for _, _, f in takewhile(lambda one: not one[1], reversed(all_of_them)))
                assert max(sum(s + f for s, f in seen), in_a_row) >= min_attempts
                assert any(f for _, f in seen)
            case _:
                pass
        if circuit.phase is Phase.OPEN:
            if circuit != before:
                assert 5.0 - 1e-6 <= circuit.until - now <= 80.0 * 1.2 + 1e-6
        elif circuit.phase is Phase.CLOSED:
            if before.phase is Phase.CLOSED:
                recent.append((now, succeeded, failures))
            else:
                recent = []
        left = breaker.places(circuit, rule)
        assert left is None or 0 <= left <= probes
