"""What becomes of a callback after an attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.model import Dead, DeadReason, Delivered, FailureKind, Outcome, PutBack, Retry
from cbq_exporter.policy.retry import Attempt, RetryRule, backoff, judge

RULE = RetryRule(max_attempts=10, max_age=86_400.0, base=5.0, cap=3600.0, retry_after_cap=3600.0)


def after(
    status: int = 0,
    failure: FailureKind | None = None,
    *,
    retry_after: float | None = None,
    attempts: int = 0,
    age: float = 1.0,
    roll: float = 0.5,
) -> Outcome:
    return judge(Attempt(status, failure, retry_after), RULE, attempts_before=attempts, age=age, roll=roll)


def of_status(status: int) -> FailureKind | None:
    if 200 <= status < 300:
        return None
    return {1: FailureKind.HTTP_1XX, 3: FailureKind.HTTP_3XX, 4: FailureKind.HTTP_4XX}.get(
        status // 100, FailureKind.HTTP_5XX
    )


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((200, 201, 202, 204, 206, 299), Delivered),
        ((101, 301, 302, 303, 307, 308), Retry),
        ((408, 425, 429), Retry),
        ((500, 501, 502, 503, 504, 599, 999), Retry),
        ((400, 401, 403, 404, 405, 409, 410, 413, 422, 451), Dead),
    ],
)
def test_statuses(statuses: tuple[int, ...], kind: type[Outcome]) -> None:
    for status in statuses:
        outcome = after(status, of_status(status))
        assert isinstance(outcome, kind), status
        if isinstance(outcome, Dead):
            assert outcome.reason is DeadReason.REJECTED


NETWORK = (FailureKind.TIMEOUT, FailureKind.CONNECT, FailureKind.DNS, FailureKind.TLS, FailureKind.PROTOCOL)


@pytest.mark.parametrize("kind", NETWORK)
def test_trouble_on_the_way_is_tried_again_and_uses_up_an_attempt(kind: FailureKind) -> None:
    outcome = after(failure=kind)
    assert isinstance(outcome, Retry)
    assert outcome.attempt_used


def test_trouble_of_our_own_never_uses_up_an_attempt_however_often() -> None:
    outcome = after(failure=FailureKind.LOCAL, attempts=99, age=1e9)
    assert isinstance(outcome, Retry)
    assert not outcome.attempt_used
    assert outcome.delay > 0


@pytest.mark.parametrize("kind", [FailureKind.EXPIRED, FailureKind.CANCELLED])
def test_what_was_not_sent_goes_back(kind: FailureKind) -> None:
    assert isinstance(after(failure=kind, attempts=99), PutBack)


def test_a_blocked_address_is_dead_at_once_and_was_no_attempt() -> None:
    outcome = after(failure=FailureKind.BLOCKED)
    assert isinstance(outcome, Dead)
    assert (outcome.reason, outcome.attempt_used) == (DeadReason.BLOCKED, False)


def test_the_last_attempt_is_the_last() -> None:
    assert isinstance(after(503, FailureKind.HTTP_5XX, attempts=8), Retry)
    outcome = after(503, FailureKind.HTTP_5XX, attempts=9)
    assert isinstance(outcome, Dead)
    assert outcome.reason is DeadReason.MAX_ATTEMPTS


def test_nothing_is_tried_past_its_age() -> None:
    outcome = after(503, FailureKind.HTTP_5XX, age=RULE.max_age - 1, roll=0.9)
    assert isinstance(outcome, Dead)
    assert outcome.reason is DeadReason.MAX_AGE


def test_retry_after_is_a_lower_bound_and_capped() -> None:
    told = after(429, FailureKind.HTTP_4XX, retry_after=120.0)
    assert isinstance(told, Retry)
    assert 120.0 <= told.delay <= 121.0
    absurd = after(429, FailureKind.HTTP_4XX, retry_after=1e12)
    assert isinstance(absurd, Retry)
    assert absurd.delay <= RULE.retry_after_cap + 1.0
    short = after(429, FailureKind.HTTP_4XX, retry_after=1.0, attempts=8, roll=0.99)
    assert isinstance(short, Retry)
    assert short.delay > 1000.0  # our own wait is longer


@given(st.integers(0, 1000), st.floats(0.0, 1.0, exclude_max=True))
def test_backoff_is_full_jitter_under_a_doubling_bound(attempts: int, roll: float) -> None:
    bound = min(RULE.cap, RULE.base * 2.0 ** min(attempts, 30))
    assert backoff(attempts, RULE, roll) == pytest.approx(roll * bound)


statuses_and_kinds = st.one_of(
    st.integers(100, 599).map(lambda status: (status, of_status(status))),
    st.sampled_from(NETWORK).map(lambda kind: (0, kind)),
)


@given(statuses_and_kinds, st.none() | st.floats(0, 1e9), st.integers(0, 50), st.floats(0, 1e6), st.floats(0, 0.999))
def test_every_end_has_an_outcome_within_the_rule(
    end: tuple[int, FailureKind | None], retry_after: float | None, attempts: int, age: float, roll: float
) -> None:
    outcome = after(*end, retry_after=retry_after, attempts=attempts, age=age, roll=roll)
    if isinstance(outcome, Retry):
        assert attempts + 1 < RULE.max_attempts
        assert 0 <= outcome.delay <= RULE.cap + 1.0
        assert age + outcome.delay <= RULE.max_age
