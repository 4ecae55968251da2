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
from cbq_exporter.services.operations.running import Operations

__all__ = [
    "Executed",
    "Operation",
    "Operations",
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
