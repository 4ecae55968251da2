"""*One destination*: what a receiver does with our callbacks, and whether the others suffer from it."""

from __future__ import annotations

from monitoring import thresholds
from monitoring.dashboards.panels import (
    CALLBACKS,
    NUMBER,
    PER_SECOND,
    SECONDS,
    SHARE,
    Board,
    Draw,
    Link,
    Panel,
    Query,
    Row,
    Variable,
    Word,
    number,
)
from monitoring.dashboards.queries import (
    COUNTED,
    INSTANCE,
    JOB,
    MARKS,
    QUEUE,
    TRUTH,
    failure_ratio,
    quantile,
    rate,
    state,
)
from monitoring.places import DESTINATION_DASHBOARD, QUEUES_DASHBOARD

_HERE = f'{COUNTED},destination="$destination"'
_OTHERS = f'{COUNTED},destination!="$destination"'

_DESTINATION = Variable(
    "destination", "Destination", 'label_values(cbq_delivery_attempts_total{job="$job",queue=~"$queue"}, destination)'
)
_IN_FLIGHT = f"sum by (queue) (cbq_destination_in_flight{{{_HERE}}})"

_TAKING = Row(
    "Does it take what we send?",
    (
        number(
            "Attempts",
            "Requests a second to this destination that have ended, well or not.",
            PER_SECOND,
            f"sum({rate('cbq_delivery_attempts_total', 'queue', _HERE)})",
            wide=6,
        ),
        number(
            "Failed, 10 m",
            "The share of attempts in the last 10 minutes that failed.",
            SHARE,
            f"max({failure_ratio('queue', _HERE)})",
            wide=6,
            bad=thresholds.DESTINATION_FAILURE_RATIO,
            empty="no attempts",
        ),
        number(
            "Requests under way", "Sent, and not answered yet.", CALLBACKS, f"sum({_IN_FLIGHT})", wide=6, empty="none"
        ),
        number(
            "Share of all attempts",
            "How much of what the chosen queues send goes here.",
            SHARE,
            f"sum({rate('cbq_delivery_attempts_total', 'queue', _HERE)}) / "
            f"(sum({rate('cbq_delivery_attempts_total', 'queue')}) > 0)",
            wide=6,
            empty="no attempts",
        ),
        Panel(
            "Attempts and failures",
            "Requests a second that have ended, and those of them that failed.",
            PER_SECOND,
            (
                Query(rate("cbq_delivery_attempts_total", "queue", _HERE), "{{queue}}"),
                Query(rate("cbq_delivery_failures_total", "queue", _HERE), "{{queue}} failed"),
            ),
            wide=12,
            high=9,
        ),
        Panel(
            "Failed attempts",
            "The share of attempts in the last 10 minutes that failed. Above the line this receiver counts as down.",
            SHARE,
            (Query(failure_ratio("queue", _HERE), "{{queue}}"),),
            wide=12,
            high=9,
            bad=thresholds.DESTINATION_FAILURE_RATIO,
        ),
    ),
)

_HOW = Row(
    "How does it fail, and do limits hold it back?",
    (
        Panel(
            "Failures by kind",
            "timeout, connect, dns and tls: it is not reached. http_4xx: it refuses what we send. http_5xx: it is ill. "
            "blocked: our egress guard refuses its address.",
            PER_SECOND,
            (Query(f"{rate('cbq_delivery_failures_total', 'kind', _HERE)} > 0", "{{kind}}"),),
            Draw.BARS,
            wide=6,
        ),
        Panel(
            "Requests under way",
            "At most delivery.per_destination.concurrency for each queue. At the limit for long: the receiver is slow.",
            CALLBACKS,
            (Query(_IN_FLIGHT, "{{queue}}"),),
            wide=6,
        ),
        Panel(
            "Held back",
            "Callbacks a second that were put off: its concurrency or rate did not let them go, or it is left alone.",
            PER_SECOND,
            (Query(rate("cbq_destination_throttled_total", "queue", _HERE), "{{queue}}"),),
            wide=6,
        ),
        Panel(
            "Left alone for failing",
            "Whether its circuit is open: nothing is sent but a few now and then, to see whether it is well again.",
            NUMBER,
            (Query(f"max by (queue) (cbq_destination_circuit_state{{{_HERE}}}) > bool 0", "{{queue}}"),),
            Draw.STATES,
            wide=6,
            words=(Word("no", "green"), Word("left alone", "red")),
        ),
    ),
)

_OTHERS_ROW = Row(
    "Do the others suffer?",
    (
        Panel(
            "Failed attempts, all others",
            "The same share for every other destination. Where it is as high, the trouble is on our side.",
            SHARE,
            (Query(failure_ratio("queue", _OTHERS), "{{queue}}"),),
            late=thresholds.FAILURE_RATIO,
            bad=thresholds.FAILURE_RATIO_CRITICAL,
        ),
        Panel(
            "How long attempts take, whole queue",
            "From the start of the request to the end of the answer, connecting included.",
            SECONDS,
            (
                Query(quantile(0.5, "cbq_delivery_duration_seconds"), "{{queue}} p50"),
                Query(quantile(0.99, "cbq_delivery_duration_seconds"), "{{queue}} p99"),
            ),
        ),
        Panel(
            "Waiting to be tried again, whole queue",
            "Callbacks in retry: most of them belong to the destinations that fail.",
            CALLBACKS,
            (Query(state("cbq_queue_length", where=f'{TRUTH},state="retry"'), "{{queue}}"),),
        ),
    ),
)

DESTINATION = Board(
    DESTINATION_DASHBOARD,
    "One destination",
    "What one receiver does with our callbacks, and whether the others suffer from it.",
    (JOB, QUEUE, INSTANCE, _DESTINATION),
    MARKS,
    (_TAKING, _HOW, _OTHERS_ROW),
    Link("Callback queues", f"/d/{QUEUES_DASHBOARD}"),
)
