"""What becomes of a callback after an attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.model import Dead, DeadReason, Delivered, FailureKind, Outcome, PutBack, Retry
from cbq_exporter.policy.retry import Attempt, RetryRule, backoff, judge, meaning_of

RULE = RetryRule(max_attempts=10, max_age=86_400.0, base=5.0, cap=3600.0, retry_after_cap=3600.0)


def after(
    status: int = 0,
    failure: FailureKind | None = None,
    *,
    retry_after: float | None = None,
    attempts: int = 0,
    age: float = 1.0,
    roll: float = 0.5,
    rule: RetryRule = RULE,
) -> Outcome:
    return judge(Attempt(status, failure, retry_after), rule, attempts_before=attempts, age=age, roll=roll)


def of_status(status: int) -> FailureKind | None:
    if 200 <= status < 300:
        return None
    return {1: FailureKind.HTTP_1XX, 3: FailureKind.HTTP_3XX, 4: FailureKind.HTTP_4XX}.get(
        status // 100, FailureKind.HTTP_5XX
    )


# What each status means without a table.
USUAL = {
    "retry": (101, 300, 301, 302, 303, 304, 307, 308, 399, 408, 425, 429, 500, 501, 502, 503, 504, 599, 600, 999),
    "dead": (400, 401, 402, 403, 404, 405, 407, 409, 411, 413, 417, 422, 423, 424, 426, 428, 431, 451, 499),
    "pause": (410,),
}
MEANINGS = ("delivered", "retry", "dead", "pause")


def table(**statuses: str) -> RetryRule:
    return replace(RULE, statuses={name.strip("_"): meaning for name, meaning in statuses.items()})


def is_as(outcome: Outcome, meaning: str) -> bool:
    """A pause is a dead letter like others; whoever sends sees to the rest."""
    if meaning in ("dead", "pause"):
        return isinstance(outcome, Dead) and outcome.reason is DeadReason.REJECTED and outcome.attempt_used
    return isinstance(outcome, Delivered if meaning == "delivered" else Retry)


@pytest.mark.parametrize(
    ("status", "usual"), [(status, usual) for usual, statuses in USUAL.items() for status in statuses]
)
def test_each_status_by_itself_and_with_every_table(status: int, usual: str) -> None:
    kind = of_status(status)
    assert meaning_of(status, RULE) == usual
    assert is_as(after(status, kind), usual)
    single, of_class = f"_{status}", f"_{status // 100}xx"
    for one in MEANINGS:
        for other in MEANINGS:
            assert is_as(after(status, kind, rule=table(**{single: one})), one)
            assert is_as(after(status, kind, rule=table(**{of_class: one})), one)
            assert is_as(after(status, kind, rule=table(**{of_class: one, single: other})), other)
            assert is_as(after(status, kind, rule=table(_299=one, _9xx=other) if status < 900 else RULE), usual)


def test_a_2xx_is_delivered_whatever_the_table_says() -> None:
    for status in range(200, 300):
        assert is_as(after(status, None, rule=table(_2xx="dead")), "delivered")


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if not kind.name.startswith("HTTP_")])
def test_without_an_answer_no_table_counts(kind: FailureKind) -> None:
    said = {f"_{number}xx": "dead" for number in range(1, 6)}
    for statuses in ({}, said, dict.fromkeys(said, "delivered")):
        assert after(failure=kind, rule=table(**statuses)) == after(failure=kind)


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
