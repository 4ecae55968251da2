"""What people, alerts and the schedule may have done to a queue: each written once, planned, checked and audited."""

from cbq_exporter.services.operations.requests import (
    Executed,
    Operation,
    Pause,
    PauseAlerts,
    Plan,
    PurgeDead,
    Recover,
    Reset,
    Resume,
    ResumeAlerts,
    RetryDead,
    RetryNow,
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
    "PauseAlerts",
    "Plan",
    "PurgeDead",
    "Recover",
    "Reset",
    "Resume",
    "ResumeAlerts",
    "RetryDead",
    "RetryNow",
    "Undo",
    "Unlock",
    "name_of",
]
