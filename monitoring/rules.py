"""Every recording and alerting rule, as data. ``docs/runbooks/`` has a page for each alert.

All replicas of one job read the same Redis: what Redis says is ``max by (job, queue)``, never a sum over instances.
What each daemon counts itself is summed. An age is ``timestamp(x) - x``, not ``time() - x``: the latter grows between
two scrapes though nothing has aged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring import thresholds
from monitoring.places import DESTINATION_DASHBOARD, GRAFANA, JOB, QUEUES_DASHBOARD, RUNBOOKS
from monitoring.thresholds import HOUR, MINUTE, Threshold

Severity = Literal["critical", "warning", "info"]
Action = Literal["recover", "unlock"]


@dataclass(frozen=True, slots=True)
class Recording:
    """``name`` is level:metric:operations, as Prometheus recommends; ``why`` says what it is for."""

    name: str
    expr: str
    why: str


@dataclass(frozen=True, slots=True)
class Alert:
    """``wait`` is its ``for``, in seconds: how long it must hold. ``summary`` and ``description`` are templates.

    ``scope`` are the labels of its series. ``action``: what the daemon may be asked to do about it without a person;
    only where doing so again and again would do no harm.
    """

    name: str
    severity: Severity
    expr: str
    wait: float
    summary: str
    description: str
    scope: tuple[str, ...] = ("job", "queue")
    action: Action | None = None

    @property
    def runbook_url(self) -> str:
        return f"{RUNBOOKS}/{self.name}.md"

    @property
    def runbook_command(self) -> str:
        """Prints the page of this version, wherever the program is; the address depends on who publishes it."""
        return f"cbq-exporter explain {self.name}"

    @property
    def dashboard_url(self) -> str:
        """The dashboard, with its variables set to what the alert is about."""
        dashboard = DESTINATION_DASHBOARD if "destination" in self.scope else QUEUES_DASHBOARD
        shown = [label for label in self.scope if label in ("job", "instance", "queue", "destination")]
        query = "&".join(f"var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in shown)
        return f"{GRAFANA}/d/{dashboard}" + (f"?{query}" if query else "")


def duration(seconds: float) -> str:
    """As Prometheus writes it: the largest unit that divides it."""
    for unit, size in (("h", HOUR), ("m", MINUTE)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def _over(threshold: Threshold) -> str:
    """The range over which a threshold is counted."""
    assert threshold.within is not None
    return f"[{duration(threshold.within)}]"


def _above(threshold: Threshold) -> str:
    return f"> {threshold.value:g}"


def _counted_above(threshold: Threshold) -> str:
    """For ``increase()``, which extrapolates: of three events it makes 3.05, which are not more than three."""
    return f"> {threshold.value + 0.5:g}"


def _ever_since(state: str, seconds: float) -> str:
    """That ``state`` was above 0 whenever it was looked at, and could be nearly always.

    Not by ``for``: that begins anew with each restart of the only daemon, and never comes to the end of a day.
    """
    looks = 60 if seconds <= HOUR else 24 * 12
    seen = f"{state}[{duration(seconds)}:{duration(seconds / looks)}]"
    return (
        f"and on (job, queue)\nmin_over_time({seen}) > 0\n"
        f"and on (job, queue)\ncount_over_time({seen}) > {_MOSTLY * looks:g}"
    )


# Prometheus's own word of each target. Another environment is another job, and has this name in its own.
# While one is down nobody can say that none of the job leads: that one may. Where it matters callbacks wait, and
# CbqDeliveryStalled sees it.
_UP = f'up{{job=~".*{JOB}.*"}}'
_MOSTLY = 0.9  # of the looks
_PAUSED = "max by (job, queue) (cbq_queue_paused) == 1"
_PAUSED_DESTINATIONS = "max by (job, queue) (cbq_paused_destinations)"
_PAUSED_ALERTS = "max by (job, queue) (cbq_alerts_paused)"
_DEAD = 'max by (job, queue) (cbq_queue_length{state="dead"})'
# As long as the configuration lets callbacks wait for their batch they are not late; absent where others send.
_WAIT = "max by (job, queue) (cbq_batch_wait_seconds)"
_LONG = duration(thresholds.RATIO_OVER)
_ATTEMPTS = f"rate(cbq_delivery_attempts_total[{_LONG}])"
# Those that are cancelled were cut off by a daemon that stops.
_FAILURES = f'rate(cbq_delivery_failures_total{{kind!="cancelled"}}[{_LONG}])'
_PENDING_AGE = "job_queue:cbq_pending_age_seconds:max"


def _attempts(level: str) -> str:
    """The name of what is recorded for each ``level``: labels, joined by ``_``."""
    return f"{level}:cbq_delivery_attempts:rate{_LONG}"


def _failure_ratio(level: str) -> str:
    return f"{level}:cbq_delivery_failures:ratio_rate{_LONG}"


RECORDINGS: tuple[Recording, ...] = (
    Recording(
        "job_queue_state:cbq_queue_length:max",
        "max by (job, queue, state) (cbq_queue_length)",
        "Depth of each state, once for all replicas.",
    ),
    Recording(
        _PENDING_AGE,
        "max by (job, queue) (\n"
        '  timestamp(cbq_queue_oldest_timestamp_seconds{state="pending"})\n'
        '    - cbq_queue_oldest_timestamp_seconds{state="pending"}\n'
        ")",
        "How long the oldest callback of pending had waited when it was scraped.",
    ),
    Recording(
        "job_queue:cbq_callbacks_delivered:rate5m",
        "sum by (job, queue) (rate(cbq_callbacks_delivered_total[5m]))",
        "Deliveries a second of all replicas.",
    ),
    Recording(
        _attempts("job_queue"),
        f"sum by (job, queue) ({_ATTEMPTS})",
        "Attempts a second of all replicas.",
    ),
    Recording(
        _failure_ratio("job_queue"),
        f"sum by (job, queue) ({_FAILURES})\n/\n(sum by (job, queue) ({_ATTEMPTS}) > 0)",
        "The share of attempts that failed; nothing where there was none.",
    ),
    Recording(
        _attempts("job_queue_destination"),
        f"sum by (job, queue, destination) ({_ATTEMPTS})",
        "The same for each receiver.",
    ),
    Recording(
        _failure_ratio("job_queue_destination"),
        f"sum by (job, queue, destination) ({_FAILURES})\n/\n(sum by (job, queue, destination) ({_ATTEMPTS}) > 0)",
        "The same for each receiver.",
    ),
)


def _pending_too_old(severity: Severity, threshold: Threshold) -> Alert:
    return Alert(
        "CbqOldestPendingTooOld",
        severity,
        f"{_PENDING_AGE} {_above(threshold)}\n"
        f"unless on (job, queue)\n{_PENDING_AGE} - {_WAIT} <= {threshold.value:g}\n"
        f"unless on (job, queue)\n{_PAUSED}",
        MINUTE,
        "Callbacks of {{ $labels.queue }} are late",
        "The oldest callback of {{ $labels.queue }} has waited for {{ $value | humanizeDuration }} "
        f"(more than {duration(threshold.value)} beyond what batch.* lets it wait).",
    )


def _failing(severity: Severity, threshold: Threshold) -> Alert:
    return Alert(
        "CbqFailureRatioHigh",
        severity,
        f"{_failure_ratio('job_queue')} {_above(threshold)}\n"
        "and on (job, queue)\n"
        f"{_attempts('job_queue')} {_above(thresholds.RATIO_NEEDS)}",
        5 * MINUTE,
        "Sending callbacks of {{ $labels.queue }} fails",
        "{{ $value | humanizePercentage }} of the attempts of {{ $labels.queue }} in the last 10 minutes failed "
        f"(more than {threshold.value:.0%}). They are tried again.",
    )


ALERTS: tuple[Alert, ...] = (
    # --- is anybody looking? ---------------------------------------------------------------------------
    Alert(
        "CbqExporterAbsent",
        "critical",
        f"absent(cbq_up)\nunless on ()\nmax({_UP}) == 0",
        5 * MINUTE,
        "Nothing reports about callback queues",
        f"No series cbq_up exists: Prometheus has no target of the job {JOB}, or what answers there is something else. "
        "Every other Cbq alert is silent meanwhile.",
        scope=(),
    ),
    Alert(
        "CbqExporterAbsent",
        "warning",
        "group by (job) (cbq_up offset 1h)\nunless on (job)\ncbq_up\nunless on (job)\nup == 0\nand on ()\ncbq_up",
        5 * MINUTE,
        "Nothing reports about the callback queues of {{ $labels.job }} any more",
        "An hour ago a cbq-exporter of {{ $labels.job }} reported; now Prometheus has no target of that job, or what "
        "answers there is something else. Every other Cbq alert of this job is silent meanwhile. "
        "It ends by itself an hour after the job was removed or renamed.",
        scope=("job",),
    ),
    Alert(
        "CbqExporterDown",
        "critical",
        f"max by (job) ({_UP}) == 0",
        2 * MINUTE,
        "No cbq-exporter of {{ $labels.job }} can be scraped",
        "All daemons of {{ $labels.job }} are down or do not answer. Where they dispatch, no callback goes out.",
        scope=("job",),
    ),
    Alert(
        "CbqReplicaDown",
        "warning",
        f"{_UP} == 0\nand on (job)\nmax by (job) ({_UP}) == 1",
        5 * MINUTE,
        "{{ $labels.instance }} cannot be scraped",
        "Another daemon of {{ $labels.job }} still works; there is one less to take over.",
        scope=("job", "instance"),
    ),
    Alert(
        "CbqDaemonRestarting",
        "warning",
        f"changes(process_start_time_seconds{_over(thresholds.RESTARTS)}) {_above(thresholds.RESTARTS)}\n"
        "and on (job, instance)\n"
        "cbq_up",
        0,
        "{{ $labels.instance }} starts again and again",
        "{{ $labels.instance }} has started {{ $value | humanize }} times in the last hour "
        f"(more than {thresholds.RESTARTS.value:g}). It is up for too short a time for some other alerts.",
        scope=("job", "instance"),
    ),
    Alert(
        "CbqQueueGone",
        "info",
        "group by (job, queue) (cbq_queue_info offset 1h)\n"
        "unless on (job, queue)\n"
        "cbq_queue_info\n"
        "and on (job)\n"
        "cbq_up",
        5 * MINUTE,
        "{{ $labels.queue }} is no longer watched",
        "No daemon of {{ $labels.job }} knows the queue {{ $labels.queue }} any more; an hour ago one did. "
        "It ends by itself an hour after the queue was removed from the configuration.",
    ),
    # --- Redis -----------------------------------------------------------------------------------------
    Alert(
        "CbqRedisUnreachable",
        "critical",
        "max by (job) (cbq_up) == 0",
        MINUTE,
        "Redis does not answer any cbq-exporter of {{ $labels.job }}",
        "No daemon of {{ $labels.job }} can use Redis: producers most likely cannot either. "
        "What the queues hold is unknown until it is back.",
        scope=("job",),
    ),
    Alert(
        "CbqRedisUnreachable",
        "warning",
        "cbq_up == 0\nand on (job)\nmax by (job) (cbq_up) == 1",
        5 * MINUTE,
        "Redis does not answer {{ $labels.instance }}",
        "Other daemons of {{ $labels.job }} reach Redis; this one could not take over.",
        scope=("job", "instance"),
    ),
    Alert(
        "CbqQueueUnreadable",
        "warning",
        'max by (job, queue) (cbq_scrape_collector_success{collector="queue"} == 0 and on (job, instance) cbq_up == 1)',
        2 * MINUTE,
        "{{ $labels.queue }} cannot be read",
        "Redis answers, but not about {{ $labels.queue }}: a key of another type, or no permission. "
        "Its metrics are missing, so no other alert about it can fire.",
    ),
    Alert(
        "CbqRedisMemoryNearLimit",
        "warning",
        f"max by (job) (cbq_redis_memory_used_bytes / cbq_redis_memory_max_bytes) {_above(thresholds.REDIS_MEMORY)}",
        5 * MINUTE,
        "Redis of {{ $labels.job }} is nearly full",
        "Redis uses {{ $value | humanizePercentage }} of its maxmemory. Beyond it, producers are refused.",
        scope=("job",),
    ),
    # --- is it delivering? -----------------------------------------------------------------------------
    Alert(
        "CbqDeliveryStalled",
        "critical",
        "(\n"
        '  max by (job, queue) (cbq_queue_length{state="pending"})\n'
        "    + max by (job, queue) (cbq_retry_overdue_callbacks) > 0\n"
        ")\n"
        "unless on (job, queue)\n"
        "time() - max by (job, queue) (cbq_last_send_timestamp_seconds) "
        f"<= {thresholds.NO_SEND.value:g}\n"
        "unless on (job, queue)\n"
        f"time() - max by (job, queue) (cbq_last_send_timestamp_seconds) - {_WAIT} <= {thresholds.NO_SEND.value:g}\n"
        "unless on (job, queue)\n"
        f"({_PENDING_AGE} >= 0) <= {_WAIT}\n"
        f"unless on (job, queue)\n{_PAUSED}",
        MINUTE,
        "Nobody sends the callbacks of {{ $labels.queue }}",
        "{{ $value | humanize }} callbacks of {{ $labels.queue }} wait, and no batch has gone out for more than "
        f"{duration(thresholds.NO_SEND.value)}.",
    ),
    Alert(
        "CbqNoLeader",
        "warning",
        "sum by (job, queue) (max_over_time(cbq_dispatch_leader[2m])) == 0\n"
        "and on (job, queue)\n"
        'cbq_queue_info{mode="dispatch"}\n'
        f"unless on (job)\n{_UP} == 0",
        2 * MINUTE,
        "No daemon holds the send lock of {{ $labels.queue }}",
        "Daemons of {{ $labels.job }} are to dispatch {{ $labels.queue }}, and none has got its send lock for minutes.",
    ),
    Alert(
        "CbqTwoLeaders",
        "warning",
        "sum by (job, queue) (cbq_dispatch_leader) > 1",
        MINUTE,
        "More than one daemon takes itself for the leader of {{ $labels.queue }}",
        "{{ $value | humanize }} daemons say that they hold the send lock of {{ $labels.queue }}. "
        "Scripts check the lock, so nothing is sent twice; but they do not see the same Redis, or one hangs.",
    ),
    Alert(
        "CbqPauseForgotten",
        "warning",
        f"{_PAUSED}\n{_ever_since('max by (job, queue) (cbq_queue_paused)', thresholds.QUEUE_PAUSED.value)}",
        0,
        "{{ $labels.queue }} is still paused",
        "Somebody paused {{ $labels.queue }} more than "
        f"{duration(thresholds.QUEUE_PAUSED.value)} ago. Its callbacks wait.",
    ),
    Alert(
        "CbqDestinationPauseForgotten",
        "info",
        f"{_PAUSED_DESTINATIONS} > 0\n{_ever_since(_PAUSED_DESTINATIONS, thresholds.DESTINATION_PAUSED.value)}",
        0,
        "Destinations of {{ $labels.queue }} are still paused",
        "{{ $value | humanize }} destinations of {{ $labels.queue }} have been paused for more than "
        f"{duration(thresholds.DESTINATION_PAUSED.value)}. Their callbacks wait in retry.",
    ),
    Alert(
        "CbqAlertsPauseForgotten",
        "info",
        f"{_PAUSED_ALERTS} == 1\n{_ever_since(_PAUSED_ALERTS, thresholds.ALERTS_PAUSED.value)}",
        0,
        "Alerts still cause nothing in {{ $labels.queue }}",
        "Somebody paused the actions on alerts more than "
        f"{duration(thresholds.ALERTS_PAUSED.value)} ago: nothing is healed by them.",
    ),
    # --- what is late? ---------------------------------------------------------------------------------
    _pending_too_old("warning", thresholds.OLDEST_PENDING),
    _pending_too_old("critical", thresholds.OLDEST_PENDING_CRITICAL),
    Alert(
        "CbqBacklogTooDeep",
        "warning",
        f'max by (job, queue) (cbq_queue_length{{state="pending"}}) {_above(thresholds.BACKLOG)}\n'
        f"unless on (job, queue)\n{_PAUSED}",
        5 * MINUTE,
        "Callbacks of {{ $labels.queue }} pile up",
        "{{ $value | humanize }} callbacks wait in {{ $labels.queue }} "
        f"(more than {thresholds.BACKLOG.value:g}, for 5 minutes).",
    ),
    Alert(
        "CbqOldestRetryTooLate",
        "warning",
        "max by (job, queue) (\n"
        "  timestamp(cbq_retry_oldest_due_timestamp_seconds) - cbq_retry_oldest_due_timestamp_seconds\n"
        f") {_above(thresholds.OLDEST_RETRY)}\n"
        f"unless on (job, queue)\n{_PAUSED}",
        MINUTE,
        "Retries of {{ $labels.queue }} are late",
        "A callback of {{ $labels.queue }} was to be tried again {{ $value | humanizeDuration }} ago "
        f"(more than {duration(thresholds.OLDEST_RETRY.value)}), and nobody has taken it.",
    ),
    # --- who is failing? -------------------------------------------------------------------------------
    _failing("warning", thresholds.FAILURE_RATIO),
    _failing("critical", thresholds.FAILURE_RATIO_CRITICAL),
    Alert(
        "CbqDestinationFailing",
        "info",
        f"{_failure_ratio('job_queue_destination')} {_above(thresholds.DESTINATION_FAILURE_RATIO)}\n"
        "and on (job, queue, destination)\n"
        f"{_attempts('job_queue_destination')} {_above(thresholds.RATIO_NEEDS)}",
        10 * MINUTE,
        "{{ $labels.destination }} does not take callbacks",
        "{{ $value | humanizePercentage }} of the attempts to {{ $labels.destination }} failed. "
        "They are tried again; other receivers are not held up.",
        scope=("job", "queue", "destination"),
    ),
    Alert(
        "CbqCircuitOpen",
        "warning",
        f"max by (job, queue, destination) (cbq_destination_circuit_state) {_above(thresholds.CIRCUIT)}",
        10 * MINUTE,
        "{{ $labels.destination }} is left alone: it has failed for 10 minutes",
        "Callbacks of {{ $labels.queue }} for {{ $labels.destination }} wait in retry, without using up attempts. "
        "A few are sent now and then to see whether it is well again.",
        scope=("job", "queue", "destination"),
    ),
    Alert(
        "CbqDestinationBehind",
        "info",
        f"sum by (job, queue, destination) (rate(cbq_destination_throttled_total[{_LONG}])) "
        f"{_above(thresholds.HELD_BACK)}\n"
        "unless on (job, queue, destination)\n"
        f"max by (job, queue, destination) (cbq_destination_circuit_state) {_above(thresholds.CIRCUIT)}\n"
        "and on (job, queue)\n"
        'max by (job, queue) (cbq_queue_length{state="retry"})\n'
        '  > max by (job, queue) (cbq_queue_length{state="retry"} '
        f"offset {duration(thresholds.HELD_BACK.within or 0)})",
        30 * MINUTE,
        "{{ $labels.destination }} gets more callbacks than its limits let through",
        "{{ $value | humanize }} times a second a callback for {{ $labels.destination }} is put off, because "
        "it is slow or by its concurrency or rate, and more of {{ $labels.queue }} wait in retry than an hour ago. "
        "They arrive later and later; other receivers are not held up.",
        scope=("job", "queue", "destination"),
    ),
    Alert(
        "CbqDeadLettersGrowing",
        "warning",
        f"sum by (job, queue) (increase(cbq_callbacks_dead_total{_over(thresholds.DEAD_LETTERS)})) "
        f"{_counted_above(thresholds.DEAD_LETTERS)}\n"
        # What a daemon gives up before its first scrape is no increase; what was kept meanwhile tells.
        "or\n"
        f"{_DEAD}\n"
        f"  - {_DEAD.removesuffix(')')} offset {duration(thresholds.DEAD_LETTERS.within or 0)}) "
        f"{_above(thresholds.DEAD_LETTERS)}",
        0,
        "Callbacks of {{ $labels.queue }} are given up",
        "{{ $value | humanize }} callbacks of {{ $labels.queue }} became dead letters in the last 15 minutes "
        f"(more than {thresholds.DEAD_LETTERS.value:g}). They are kept, and can be sent again.",
    ),
    # --- what has to be healed? ------------------------------------------------------------------------
    Alert(
        "CbqStuckItems",
        "warning",
        f"max by (job, queue) (cbq_stuck_callbacks) {_above(thresholds.STUCK)}",
        MINUTE,
        "Callbacks of {{ $labels.queue }} are stuck in processing",
        "{{ $value | humanize }} callbacks of {{ $labels.queue }} were claimed by somebody who is gone, "
        "and are not brought back.",
        action="recover",
    ),
    Alert(
        "CbqRecoveryIneffective",
        "warning",
        f"max by (job, queue) (cbq_recovery_ineffective_callbacks) {_above(thresholds.RECOVERY_INEFFECTIVE)}",
        5 * MINUTE,
        "Callbacks of {{ $labels.queue }} get stuck again and again",
        "{{ $value | humanize }} callbacks of {{ $labels.queue }} were recovered twice or more and are not delivered.",
    ),
    Alert(
        "CbqLockWithoutExpiry",
        "warning",
        "max by (job, queue) (cbq_lock_without_expiry) == 1",
        2 * MINUTE,
        "The send lock of {{ $labels.queue }} never expires",
        "Somebody left the send lock of {{ $labels.queue }} without an expiry. "
        "Until it is released, nobody else sends.",
        action="unlock",
    ),
    Alert(
        "CbqLockOverheld",
        "warning",
        "(\n"
        "  max by (job, queue) "
        "(timestamp(cbq_lock_first_seen_timestamp_seconds) - cbq_lock_first_seen_timestamp_seconds)\n"
        f"    {_above(thresholds.LOCK_HELD)}\n"
        f"  or max by (job, queue) (cbq_lock_ttl_seconds) {_above(thresholds.LOCK_HELD)}\n"
        ")\n"
        "unless on (job, queue)\n"
        "max by (job, queue) (cbq_dispatch_leader) == 1\n"
        f"unless on (job)\n{_UP} == 0",
        MINUTE,
        "Another worker holds the send lock of {{ $labels.queue }} for too long",
        "The send lock of {{ $labels.queue }} is held, or will be, for {{ $value | humanizeDuration }} "
        f"(more than {duration(thresholds.LOCK_HELD.value)}) by a worker that is not one of these daemons.",
    ),
    Alert(
        "CbqLocksForcedOften",
        "warning",
        f"sum by (job, queue) (increase(cbq_lock_releases_total{_over(thresholds.LOCKS_FORCED)})) "
        f"{_counted_above(thresholds.LOCKS_FORCED)}",
        0,
        "Send locks of {{ $labels.queue }} are left behind often",
        "{{ $value | humanize }} send locks of {{ $labels.queue }} had to be released in the last hour "
        f"(more than {thresholds.LOCKS_FORCED.value:g}): workers die while they send.",
    ),
    # --- is the daemon well? ---------------------------------------------------------------------------
    Alert(
        "CbqTaskStale",
        "warning",
        "(\n"
        "  timestamp(cbq_task_last_success_timestamp_seconds) - cbq_task_last_success_timestamp_seconds\n"
        f"    > {thresholds.TASK_INTERVALS.value:g} * cbq_task_interval_seconds + {thresholds.TASK_GRACE.value:g}\n"
        ")\n"
        "or\n"
        "(cbq_task_interval_seconds unless cbq_task_last_success_timestamp_seconds)",
        2 * MINUTE,
        "{{ $labels.task }} of {{ $labels.instance }} does not succeed",
        "The scheduled task {{ $labels.task }} has not succeeded for more than three intervals, or never.",
        scope=("job", "instance", "task"),
    ),
    Alert(
        "CbqTaskSkipping",
        "info",
        f"increase(cbq_task_skipped_total{_over(thresholds.TASKS_SKIPPED)})\n"
        f"  + increase(cbq_task_missed_total{_over(thresholds.TASKS_SKIPPED)})\n"
        f"  {_counted_above(thresholds.TASKS_SKIPPED)}",
        5 * MINUTE,
        "{{ $labels.task }} of {{ $labels.instance }} is slower than its interval",
        "{{ $value | humanize }} runs of {{ $labels.task }} were left out in the last 15 minutes.",
        scope=("job", "instance", "task"),
    ),
    Alert(
        "CbqReloadFailed",
        "warning",
        "cbq_config_last_reload_successful == 0",
        MINUTE,
        "{{ $labels.instance }} refused its new configuration",
        "The configuration that was last read is not valid; the old one is still in use, until a restart.",
        scope=("job", "instance"),
    ),
    Alert(
        "CbqWebhookUnauthorized",
        "warning",
        'sum by (job) (increase(cbq_alerts_received_total{outcome="unauthorized"}'
        f"{_over(thresholds.WEBHOOK_UNAUTHORIZED)})) {_above(thresholds.WEBHOOK_UNAUTHORIZED)}",
        0,
        "Alerts posted to {{ $labels.job }} are refused",
        "{{ $value | humanize }} requests to the alert webhook of {{ $labels.job }} had no token or a wrong one in the "
        "last 15 minutes. If they came from Alertmanager, the daemon heals nothing on alerts.",
        scope=("job",),
    ),
    Alert(
        "CbqAlertActionFailed",
        "warning",
        'sum by (job) (increase(cbq_alerts_received_total{outcome="failed"}'
        f"{_over(thresholds.ALERT_ACTIONS_FAILED)}))\n"
        '+ sum by (job) (increase(cbq_operations_total{trigger="alert", result="failed"}'
        f"{_over(thresholds.ALERT_ACTIONS_FAILED)}))\n"
        f"{_above(thresholds.ALERT_ACTIONS_FAILED)}",
        0,
        "{{ $labels.job }} could not do what an alert asks for",
        "{{ $value | humanize }} alerts of the last 15 minutes could not be judged or acted on. "
        "What they are about is not healed.",
        scope=("job",),
    ),
)
