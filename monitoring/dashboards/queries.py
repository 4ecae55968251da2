"""The parts that queries of both dashboards share.

All replicas read the same Redis: what it says is ``max by (queue)``, never a sum over instances. What each daemon
counts itself is summed. An age is ``timestamp(x) - x``, as in the rules.
"""

from __future__ import annotations

from monitoring.dashboards.panels import Events, Variable
from monitoring.rules import duration
from monitoring.thresholds import RATIO_OVER

# What Redis says, whichever daemon read it; what the chosen daemons counted; and the latter without a queue.
TRUTH = 'job="$job",queue=~"$queue"'
COUNTED = 'job="$job",instance=~"$instance",queue=~"$queue"'
DAEMON = 'job="$job",instance=~"$instance"'

INTERVAL = "$__rate_interval"
RATIO_INTERVAL = duration(RATIO_OVER)

JOB = Variable("job", "Job", "label_values(cbq_build_info, job)")
QUEUE = Variable("queue", "Queue", 'label_values(cbq_queue_info{job="$job"}, queue)', many=True)
INSTANCE = Variable("instance", "Daemon", 'label_values(cbq_build_info{job="$job"}, instance)', many=True)


def rate(metric: str, by: str, where: str = COUNTED, over: str = INTERVAL) -> str:
    """Events a second of all chosen daemons; ``by`` are labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{over}]))"


def events(metric: str, by: str, where: str = COUNTED, over: str = INTERVAL) -> str:
    """How many there were, where there was any."""
    return f"sum by ({by}) (increase({metric}{{{where}}}[{over}])) > 0"


def state(metric: str, by: str = "queue", where: str = TRUTH) -> str:
    """What Redis says, once for all replicas."""
    return f"max by ({by}) ({metric}{{{where}}})"


def age(metric: str, by: str = "queue", where: str = TRUTH) -> str:
    """Seconds since a time that Redis tells, at the moment of the scrape."""
    return f"max by ({by}) (timestamp({metric}{{{where}}}) - {metric}{{{where}}})"


def quantile(share: float, histogram: str) -> str:
    """Of each queue that had any: without events it is NaN, which would fill the legend."""
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', 'queue, le')}) >= 0"


def failure_ratio(by: str, where: str = COUNTED) -> str:
    """Over the same time as in the rules; nothing where nothing was tried.

    Sends that are cancelled were cut off by a daemon that stops, which says nothing about the receiver.
    """
    failures = rate("cbq_delivery_failures_total", by, f'{where},kind!="cancelled"', RATIO_INTERVAL)
    return f"{failures} / ({rate('cbq_delivery_attempts_total', by, where, RATIO_INTERVAL)} > 0)"


# --- marks on the graphs -----------------------------------------------------------------------------

# An alert about a daemon has no queue: an empty label matches too. Marks are whole numbers in Grafana, hence ceil.
MARKS = (
    Events(
        "Alerts",
        'ALERTS{alertname=~"Cbq.+",alertstate="firing",job=~"$job|",queue=~"$queue|"}',
        "{{alertname}} {{queue}} {{instance}}",
        ("severity", "queue"),
        "red",
    ),
    Events(
        "Operations",
        f"ceil({events('cbq_operations_total', 'operation, trigger, result', DAEMON)})",
        "{{operation}} by {{trigger}}: {{result}}",
        ("operation", "trigger", "result"),
        "blue",
    ),
    Events(
        "Recoveries",
        f"ceil({events('cbq_recovered_callbacks_total', 'queue, trigger')})",
        "{{queue}}: callbacks recovered by {{trigger}}",
        ("queue", "trigger"),
        "green",
    ),
    Events(
        "Locks released",
        f"ceil({events('cbq_lock_releases_total', 'queue, reason')})",
        "{{queue}}: send lock released, {{reason}}",
        ("queue", "reason"),
        "purple",
    ),
)
