"""Every metric that exists in this version: one table, from which instruments, families and documentation are made.

Base units, timestamps rather than ages, unknown is absent. No URL, error text, item id or lock value is ever a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PREFIX = "cbq_"
UNITS = ("seconds", "bytes")

# Sub-millisecond receivers on the same network up to the longest usual timeout.
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
# From a callback that leaves at once to one that is delivered by its last retry.
LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400)
BATCH_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
TASK_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60)


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. ``name`` is without the prefix; ``help`` is what ``/metrics`` says, ``why`` what it is good for.

    A histogram has exemplars, in OpenMetrics, of what was no less than ``exemplars_from``, in its unit.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    why: str
    buckets: tuple[float, ...] = ()
    exemplars_from: float = math.inf

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def unit(self) -> str:
        """The base unit that the name ends in; empty where it counts things."""
        last = self.name.rpartition("_")[2]
        return last if last in UNITS else ""


def definition(name: str) -> Definition:
    return _BY_NAME[name]


def markdown() -> str:
    """The table for ``docs/metrics.md``, with the names as a query writes them."""
    lines = ["| metric | type | labels | what it says | why |", "|---|---|---|---|---|"]
    for one in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        kind: str = one.type
        if one.buckets:
            kind += " (" + ", ".join(f"{bound:g}" for bound in one.buckets) + ")"
        lines.append(f"| `{one.full_name}` | {kind} | {labels} | {one.help} | {one.why} |")
    return "\n".join(lines) + "\n"


_QUEUE = ("queue",)
_DESTINATION = ("queue", "destination")

CATALOGUE: tuple[Definition, ...] = (
    # --- read from Redis at each scrape -----------------------------------------------------------
    Definition("up", "gauge", (), "Whether Redis answered this scrape.", "The first thing to alert on."),
    Definition(
        "scrape_duration_seconds", "gauge", (), "How long reading Redis took for this scrape.", "A slow store shows."
    ),
    Definition(
        "scrape_collector_success",
        "gauge",
        ("collector", "queue"),
        "Whether this part could be read; collector is server, or queue with the queue's name.",
        "One queue with a foreign key must not look like an idle one.",
    ),
    Definition(
        "queue_info",
        "gauge",
        ("queue", "mode"),
        "Always 1; mode is how far this daemon may go with the queue.",
        "Only where one dispatches has a queue a leader.",
    ),
    Definition(
        "queue_length",
        "gauge",
        ("queue", "state"),
        "Callbacks in this state.",
        "Depth: pending grows when nothing is sent, dead when somebody must look.",
    ),
    Definition(
        "queue_oldest_timestamp_seconds",
        "gauge",
        ("queue", "state"),
        "When the oldest callback of this state entered it; absent where the state is empty or does not tell.",
        "Age beats depth: time() minus this is how late the queue is.",
    ),
    Definition(
        "processing_oldest_claim_timestamp_seconds",
        "gauge",
        _QUEUE,
        "When the callback that has been under a lease for longest was claimed.",
        "The true age of what is in flight.",
    ),
    Definition(
        "retry_overdue_callbacks",
        "gauge",
        _QUEUE,
        "Callbacks whose retry is due and has not been taken.",
        "Retries that nobody makes.",
    ),
    Definition(
        "retry_oldest_due_timestamp_seconds",
        "gauge",
        _QUEUE,
        "When the first retry is due; in the future where none is yet, absent where retry is empty.",
        "How late retries are: a few overdue may be on their way, one that stays is not.",
    ),
    Definition(
        "stuck_callbacks",
        "gauge",
        _QUEUE,
        "Callbacks whose lease has run out, and those of others that were first seen in processing too long ago; "
        "where nobody supervises, 1 stands for any number: only the oldest is watched.",
        "Their sender died; recovery has to act.",
    ),
    Definition(
        "untracked_callbacks",
        "gauge",
        _QUEUE,
        "Callbacks in processing without a lease of ours.",
        "Somebody else's claims, or claims left behind.",
    ),
    Definition(
        "queue_paused",
        "gauge",
        _QUEUE,
        "Whether an operator has paused the queue: daemons take nothing from it.",
        "A pause that was forgotten.",
    ),
    Definition(
        "paused_destinations",
        "gauge",
        _QUEUE,
        "Destinations that are paused: by an operator, by an alert, or as they answered that they are gone. Those "
        "paused by the configuration are not counted.",
        "Callbacks of theirs wait in retry.",
    ),
    Definition(
        "failing_destinations",
        "gauge",
        _QUEUE,
        "Destinations whose circuit is not closed: they fail, and are left alone or probed.",
        "Callbacks of theirs wait in retry.",
    ),
    Definition(
        "alerts_paused",
        "gauge",
        _QUEUE,
        "Whether an operator lets alerts cause nothing in the queue.",
        "A pause that was forgotten.",
    ),
    Definition(
        "queue_memory_bytes",
        "gauge",
        _QUEUE,
        "Memory that the queue's keys take, by samples; without what a reset moved. Measured in the background; "
        "absent until it is.",
        "Which queue it is that fills Redis.",
    ),
    Definition("redis_memory_used_bytes", "gauge", (), "Memory that Redis uses.", "A queue that is full of payloads."),
    Definition(
        "redis_memory_max_bytes",
        "gauge",
        (),
        "The most memory Redis may use; absent where there is no limit.",
        "Beyond it Redis refuses callbacks.",
    ),
    Definition("lock_held", "gauge", _QUEUE, "Whether the send lock is held.", "Without a holder nobody sends."),
    Definition(
        "lock_without_expiry",
        "gauge",
        _QUEUE,
        "Whether the send lock is held and has no expiry.",
        "Such a lock never frees itself.",
    ),
    Definition(
        "lock_ttl_seconds",
        "gauge",
        _QUEUE,
        "Time until the send lock expires; absent where it is free or has no expiry.",
        "A TTL far beyond the usual one.",
    ),
    Definition(
        "lock_first_seen_timestamp_seconds",
        "gauge",
        _QUEUE,
        "When the present value of the send lock was first seen, in observe mode since the start; absent where it is "
        "free.",
        "Who holds it has held it at least since then.",
    ),
    Definition(
        "lock_stale",
        "gauge",
        _QUEUE,
        "Whether the send lock was left behind, by the rules of lock.stale; absent where nobody has seen it yet.",
        "It will be released, or, with lock.stale.auto false and in observe mode, a person has to do it.",
    ),
    Definition(
        "last_send_timestamp_seconds",
        "gauge",
        _QUEUE,
        "When the last batch went out, whoever sent it; absent until one is seen.",
        "Delivery has stalled.",
    ),
    Definition(
        "source_stats_total",
        "counter",
        ("queue", "stat"),
        "The existing software's own counters (queued, sent, failed). They expire a day after their last change.",
        "To compare with ours during a migration.",
    ),
    # --- counted by this daemon -------------------------------------------------------------------
    Definition("build_info", "gauge", ("version", "revision"), "Always 1.", "Which version runs where."),
    Definition(
        "callbacks_enqueued_total",
        "counter",
        _QUEUE,
        "Callbacks taken from pending for the first time.",
        "What came in; compare with delivered and dead.",
    ),
    Definition("callbacks_delivered_total", "counter", _QUEUE, "Callbacks delivered.", "The main job."),
    Definition(
        "callbacks_dead_total",
        "counter",
        ("queue", "reason"),
        "Callbacks given up and kept as dead letters.",
        "Each one needs a person.",
    ),
    Definition(
        "callbacks_retried_total",
        "counter",
        ("queue", "reason"),
        "Callbacks put off to be tried again, by the kind of failure.",
        "Trouble that may heal itself.",
    ),
    Definition(
        "delivery_attempts_total",
        "counter",
        _DESTINATION,
        "Attempts that have ended.",
        "The ground of a failure ratio.",
    ),
    Definition(
        "delivery_failures_total",
        "counter",
        ("queue", "destination", "kind"),
        "Attempts that failed.",
        "Who is failing, and how.",
    ),
    Definition(
        "delivery_duration_seconds",
        "histogram",
        _QUEUE,
        "How long an attempt took, connecting included.",
        "Slow receivers.",
        DURATION_BUCKETS,
        exemplars_from=1.0,
    ),
    Definition(
        "delivery_lag_seconds",
        "histogram",
        _QUEUE,
        "From the producer's enqueue to the delivery.",
        "What the clients feel.",
        LAG_BUCKETS,
        exemplars_from=10.0,  # late by the software that this replaces
    ),
    Definition(
        "batch_size_callbacks",
        "histogram",
        _QUEUE,
        "Callbacks claimed in one go.",
        "How well it batches.",
        BATCH_BUCKETS,
    ),
    Definition(
        "batch_flushes_total", "counter", ("queue", "reason"), "Batches, by what made them due.", "Tuning of batch.*."
    ),
    Definition(
        "batch_wait_seconds",
        "gauge",
        _QUEUE,
        "How long a callback may wait for its batch because the configuration says so, by batch.max_delay or "
        "batch.min_interval; absent where this daemon does not dispatch.",
        "What waits no longer than this is not late.",
    ),
    Definition(
        "bundle_size_callbacks",
        "histogram",
        _QUEUE,
        "Callbacks in a request that carried several, where coalesce asks for that. Their number is that of the "
        "requests, their sum that of the callbacks in them; what went alone is not counted.",
        "How well it coalesces.",
        BATCH_BUCKETS,
    ),
    Definition(
        "bundle_splits_total",
        "counter",
        _QUEUE,
        "Requests that carried several callbacks and were answered 400, 413 or 422: their halves go again.",
        "A callback that spoils others, or requests that are too large for their receiver.",
    ),
    Definition(
        "bundle_partial_results_total",
        "counter",
        _QUEUE,
        "Requests of which the receiver took some callbacks and not others, by its results for each.",
        "Callbacks that fail beside others that do not.",
    ),
    Definition(
        "destination_in_flight", "gauge", _DESTINATION, "Requests under way.", "A receiver that holds everything up."
    ),
    Definition(
        "destination_throttled_total",
        "counter",
        _DESTINATION,
        "Times that a callback was put off because its destination is busy, paced or left alone.",
        "Limits that are too tight.",
    ),
    Definition(
        "destination_circuit_state",
        "gauge",
        _DESTINATION,
        "Whether the destination is left alone because it fails: 0 no (closed), 1 probed (half-open), 2 yes (open).",
        "Which receivers are down. Not for `other`.",
    ),
    Definition(
        "destination_series",
        "gauge",
        _QUEUE,
        "Destinations that have series of their own.",
        "How near the limit is.",
    ),
    Definition(
        "destination_series_limit",
        "gauge",
        (),
        "The most destinations of one queue that get series of their own.",
        "The bound on the number of series.",
    ),
    Definition(
        "destination_series_refused",
        "gauge",
        _QUEUE,
        "Destinations that are counted together as other, because the limit was reached; counted up to 10000.",
        "Whether other hides something.",
    ),
    Definition(
        "recovered_callbacks_total",
        "counter",
        ("queue", "trigger"),
        "Stuck callbacks put back to pending or given up.",
        "Workers that die.",
    ),
    Definition(
        "recovery_ineffective_callbacks",
        "gauge",
        _QUEUE,
        "Callbacks that were recovered twice or more and got stuck or wait again; absent until they were counted.",
        "Recovering does not help: their worker dies of them, or does not clear them away.",
    ),
    Definition(
        "lock_releases_total",
        "counter",
        ("queue", "reason"),
        "Send locks released because they were left behind.",
        "Workers that die while they hold the lock.",
    ),
    Definition(
        "lock_release_aborts_total",
        "counter",
        _QUEUE,
        "Send locks that were to be released and had changed in the last moment.",
        "Holders that are slow rather than dead.",
    ),
    Definition(
        "operations_total",
        "counter",
        ("operation", "trigger", "result"),
        "Operations that this daemon has ended, by what was done, who asked for it and how it ended. Those of the "
        "command line are in the audit only.",
        "Every action is accounted for.",
    ),
    Definition(
        "alerts_received_total",
        "counter",
        ("outcome",),
        "Alerts received by the webhook, by what became of them; requests that were refused as a whole count as one.",
        "Every alert is accounted for.",
    ),
    Definition(
        "alerts_truncated_total",
        "counter",
        (),
        "Alerts that Alertmanager left out of what it sent.",
        "A max_alerts that is too low.",
    ),
    Definition(
        "fenced_total",
        "counter",
        ("queue", "operation"),
        "Operations refused because the lock or the lease was not ours any more.",
        "A daemon that was paused, or leases that are too short.",
    ),
    Definition(
        "callbacks_taken_away_total",
        "counter",
        _QUEUE,
        "Callbacks that somebody else took out of processing while they were being sent.",
        "Existing tools that recover or clean up: what they move back is sent a second time.",
    ),
    Definition(
        "dispatch_leader", "gauge", _QUEUE, "Whether this daemon holds the send lock.", "Exactly one of all daemons."
    ),
    Definition("task_runs_total", "counter", ("task",), "Runs of a scheduled task.", "It runs at all."),
    Definition("task_failures_total", "counter", ("task",), "Runs that ended with an error.", "It works."),
    Definition(
        "task_missed_total", "counter", ("task",), "Runs that came too late and were left out.", "An overloaded loop."
    ),
    Definition(
        "task_skipped_total",
        "counter",
        ("task",),
        "Runs left out because the one before was still running.",
        "A task that is slower than its interval.",
    ),
    Definition("task_duration_seconds", "histogram", ("task",), "How long a run took.", "Slow tasks.", TASK_BUCKETS),
    Definition(
        "task_last_success_timestamp_seconds",
        "gauge",
        ("task",),
        "When the task last succeeded; absent until it has.",
        "One dead-man rule for every task, together with the interval.",
    ),
    Definition("task_interval_seconds", "gauge", ("task",), "How often the task is to run.", "See above."),
    Definition("redis_errors_total", "counter", ("kind",), "Errors of commands to Redis.", "Trouble between scrapes."),
    Definition(
        "config_last_reload_successful",
        "gauge",
        (),
        "Whether the configuration was accepted when it was last read.",
        "An old configuration still in use.",
    ),
    Definition(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "When a configuration was last accepted.",
        "Whether a change has arrived.",
    ),
)

_BY_NAME = {one.name: one for one in CATALOGUE}
