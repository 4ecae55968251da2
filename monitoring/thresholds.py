"""Where a number turns from good to bad: the one source for alerting rules and for the colours of dashboards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["callbacks", "seconds", "ratio", "attempts/s", "times", "state"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Bad is above ``value``. ``within`` is the seconds over which it is counted; None where it is a state.

    ``why`` is the reason of the number.
    """

    value: float
    unit: Unit
    why: str
    within: float | None = None


MINUTE = 60.0
HOUR = 60 * MINUTE
RATIO_OVER = 10 * MINUTE  # what a share of attempts is counted over

# --- what is late ------------------------------------------------------------------------------------
BACKLOG = Threshold(100, "callbacks", "The software that this replaces warns above 100 callbacks in pending.")
OLDEST_PENDING = Threshold(10, "seconds", "The software that this replaces warns when the oldest has waited for 10 s.")
OLDEST_PENDING_CRITICAL = Threshold(
    5 * MINUTE, "seconds", "Clients give up waiting after minutes; the existing software took 5 m for stuck."
)
OLDEST_RETRY = Threshold(
    5 * MINUTE, "seconds", "Due retries go first at every other claim: only more of them than can be sent take minutes."
)
NO_SEND = Threshold(
    2 * MINUTE, "seconds", "A batch goes out every few seconds where there is anything; a lock lives 30 s."
)

# --- who is failing ----------------------------------------------------------------------------------
FAILURE_RATIO = Threshold(
    0.1,
    "ratio",
    "One attempt in ten: more than receivers being deployed, less than half of them being down.",
    RATIO_OVER,
)
FAILURE_RATIO_CRITICAL = Threshold(
    0.5, "ratio", "Most of what is sent fails: it is our side, or a main client.", RATIO_OVER
)
DESTINATION_FAILURE_RATIO = Threshold(
    0.5, "ratio", "One receiver that fails most of the time is down; a smaller share heals by retries.", RATIO_OVER
)
RATIO_NEEDS = Threshold(0.05, "attempts/s", "30 attempts in 10 m: of fewer, a ratio says nothing.", RATIO_OVER)
CIRCUIT = Threshold(
    0, "state", "1 is probed, 2 is left alone. By itself it is probed within 10 m: for longer, each probe has failed."
)
HELD_BACK = Threshold(
    0.05,
    "attempts/s",
    "Bursts are spread within minutes; what is put off all the time is more than is let through.",
    HOUR,
)
DEAD_LETTERS = Threshold(
    10, "callbacks", "A few a quarter of an hour are single bad URLs; more is a client or a producer.", 900
)

# --- what has to be healed ---------------------------------------------------------------------------
STUCK = Threshold(0, "callbacks", "Recovery looks every 15 s: what stays stuck for longer is not being recovered.")
RECOVERY_INEFFECTIVE = Threshold(
    0, "callbacks", "A callback that had to be recovered twice kills its worker, or is never cleared away."
)
LOCK_HELD = Threshold(
    10 * MINUTE, "seconds", "The default of lock.stale.max_ttl; existing workers hold the lock for a batch: 30 s."
)
LOCKS_FORCED = Threshold(3, "times", "One is a worker that died; several an hour are workers that keep dying.", HOUR)

# --- whether the daemon is well ----------------------------------------------------------------------
TASK_INTERVALS = Threshold(3, "times", "A task may be slow once; three intervals without a success it is broken.")
TASK_GRACE = Threshold(
    MINUTE, "seconds", "On top of the intervals: the shortest is one second, less than the time between scrapes."
)
TASKS_SKIPPED = Threshold(
    5, "times", "One slow run skips a turn; more than five in a quarter of an hour: slower than its interval.", 900
)
RESTARTS = Threshold(
    3, "times", "A configuration that is tried out takes a few; more than three an hour: something ends it.", HOUR
)
WEBHOOK_UNAUTHORIZED = Threshold(
    0, "times", "Only Alertmanager knows the address: one refused is a wrong token, or a stranger.", 900
)
ALERT_ACTIONS_FAILED = Threshold(
    0, "times", "What was to be healed without a person was not: somebody has to do it.", 900
)
REDIS_MEMORY = Threshold(0.9, "ratio", "Of maxmemory, where producers are refused: a tenth is left to act in.")

# --- what people forget ------------------------------------------------------------------------------
QUEUE_PAUSED = Threshold(HOUR, "seconds", "A pause for a deployment of the receivers takes minutes.")
DESTINATION_PAUSED = Threshold(
    24 * HOUR, "seconds", "A client may well be away over night; retry.max_age gives up after 24 h by default."
)
ALERTS_PAUSED = Threshold(
    24 * HOUR, "seconds", "Work on the queues takes hours; after a day nobody remembers that nothing heals on alerts."
)
