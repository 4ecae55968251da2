"""What is brought back by itself: nothing where it is only to look, and nothing that is not there."""

from __future__ import annotations

import pytest

from cbq_exporter.model import ProcessingLook
from cbq_exporter.policy.stuck import Due, StuckRule, decide


@pytest.mark.parametrize(
    ("auto", "leases_over", "stuck", "due"),
    [
        (True, 0, 0, Due()),
        (True, 1, 0, Due(own=True)),
        (True, 0, 1, Due(others=True)),
        (True, 2, 3, Due(own=True, others=True)),
        (False, 2, 3, Due()),
    ],
)
def test_what_is_due(auto: bool, leases_over: int, stuck: int, due: Due) -> None:
    look = ProcessingLook(at=1.0, untracked=10, new=5, leases_over=leases_over, stuck=stuck)
    assert decide(look, StuckRule(auto, 300, 3)) == due
    assert bool(due) == (due != Due())
