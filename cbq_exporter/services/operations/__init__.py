"""What people, alerts and the schedule may have done to a queue: each written once, planned, checked and audited."""

from cbq_exporter.services.operations.requests import (
    Executed,
    Operation,
    Pause,
    Plan,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    RetryDead,
    Undo,
    Unlock,
    name_of,
)

__all__ = [
    "Executed",
    "Operation",
    "Pause",
    "Plan",
    "PurgeDead",
    "Recover",
    "Reset",
    "Resume",
    "RetryDead",
    "Undo",
    "Unlock",
    "name_of",
]
