"""*Callback queues*: what a person on call looks at first. A row for each question."""

from __future__ import annotations

from monitoring import thresholds
from monitoring.dashboards.panels import (
    ANY,
    BYTES,
    CALLBACKS,
    NO,
    NUMBER,
    PER_SECOND,
    SECONDS,
    SHARE,
    YES,
    Board,
    Draw,
    Link,
    Panel,
    Query,
    Row,
    Word,
    number,
)
from monitoring.dashboards.queries import (
    COUNTED,
    DAEMON,
    INSTANCE,
    JOB,
    MARKS,
    QUEUE,
    TRUTH,
    age,
    events,
    failure_ratio,
    quantile,
    rate,
    state,
)
from monitoring.places import DESTINATION_DASHBOARD, QUEUES_DASHBOARD
from monitoring.rules import duration

_PENDING = f'{TRUTH},state="pending"'
_DEAD = f'{TRUTH},state="dead"'
_DEAD_OVER = duration(thresholds.DEAD_LETTERS.within or 0)
_SKIPPED_OVER = duration(thresholds.TASKS_SKIPPED.within or 0)
_QUEUES = "{{queue}}"

_DELIVERING = Row(
    "Is it delivering?",
    (
        number(
            "Alerts firing",
            "Warnings and critical ones, about the chosen queues or the daemons. Infos are not counted. Unknown where "
            "this Prometheus does not evaluate the rules.",
            NUMBER,
            'count(ALERTS{alertname=~"Cbq.+",alertstate="firing",severity=~"critical|warning",'
            'job=~"$job|",queue=~"$queue|"}) or count(job_queue_state:cbq_queue_length:max{job="$job"}) * 0',
            bad=ANY,
        ),
        number(
            "Delivered",
            "Callbacks a second that receivers took, all chosen queues together.",
            PER_SECOND,
            f"sum({rate('cbq_callbacks_delivered_total', 'queue')})",
        ),
        number(
            "Deepest backlog",
            "Callbacks that wait in pending, in the queue that has most of them.",
            CALLBACKS,
            f"max({state('cbq_queue_length', where=_PENDING)})",
            late=thresholds.BACKLOG,
        ),
        number(
            "Oldest waiting",
            "How long the callback that has waited longest in pending has been there; 0 where none waits.",
            SECONDS,
            f"max({age('cbq_queue_oldest_timestamp_seconds', where=_PENDING)}) "
            f"or max({state('cbq_queue_length', where=_PENDING)}) == 0",
            late=thresholds.OLDEST_PENDING,
            bad=thresholds.OLDEST_PENDING_CRITICAL,
        ),
        number(
            "Failed attempts",
            "The share of attempts in the last 10 minutes that failed, in the queue where it is largest.",
            SHARE,
            f"max({failure_ratio('queue')})",
            late=thresholds.FAILURE_RATIO,
            bad=thresholds.FAILURE_RATIO_CRITICAL,
            empty="no attempts",
        ),
        number(
            "Given up, 15 m",
            "Callbacks that became dead letters in the last 15 minutes, in the queue that has most of them.",
            CALLBACKS,
            f"max(sum by (queue) (increase(cbq_callbacks_dead_total{{{COUNTED}}}[{_DEAD_OVER}])) > 0 "
            # As in the rule: what was given up before the first scrape is no increase.
            f"or clamp_min({state('cbq_queue_length', where=_DEAD)} "
            f"- max by (queue) (cbq_queue_length{{{_DEAD}}} offset {_DEAD_OVER}), 0) "
            f"or {state('cbq_queue_length', where=_DEAD)} * 0)",
            bad=thresholds.DEAD_LETTERS,
        ),
        number(
            "Stuck",
            "Callbacks whose sender is gone and that were not brought back yet, in the queue that has most of them.",
            CALLBACKS,
            f"max({state('cbq_stuck_callbacks')})",
            bad=thresholds.STUCK,
        ),
        number(
            "Daemons in trouble",
            "Daemons that cannot be scraped, or do not reach Redis.",
            NUMBER,
            f"count(up{{{DAEMON}}} == 0 or cbq_up{{{DAEMON}}} == 0) or count(up{{{DAEMON}}}) * 0",
            bad=ANY,
        ),
        Panel(
            "Delivered",
            "Callbacks a second that receivers took.",
            PER_SECOND,
            (Query(rate("cbq_callbacks_delivered_total", "queue"), _QUEUES),),
        ),
        Panel(
            "Came in",
            "Callbacks a second that were taken from pending for the first time. "
            "What is above Delivered for long has to be somewhere: late, failing or given up.",
            PER_SECOND,
            (Query(rate("cbq_callbacks_enqueued_total", "queue"), _QUEUES),),
        ),
        Panel(
            "No batch though callbacks wait",
            "Time since the last batch, only while something waits in pending or a retry is overdue; where none was "
            "ever seen, how long the oldest has waited. A line that climbs: nobody sends.",
            SECONDS,
            (
                Query(
                    f"(time() - {state('cbq_last_send_timestamp_seconds')} "
                    f"or {age('cbq_queue_oldest_timestamp_seconds', where=_PENDING)} "
                    f"or {age('cbq_retry_oldest_due_timestamp_seconds')}) and on (queue) "
                    f"{state('cbq_queue_length', where=_PENDING)} + {state('cbq_retry_overdue_callbacks')} > 0",
                    _QUEUES,
                ),
            ),
            bad=thresholds.NO_SEND,
            empty="none waits",
        ),
        Panel(
            "Requests with several callbacks",
            "Where coalesce gathers callbacks: requests a second that carried several, the callbacks in them, requests "
            "whose halves had to go again (400, 413, 422), and those of which only some callbacks were taken.",
            PER_SECOND,
            (
                Query(f"{rate('cbq_bundle_size_callbacks_count', 'queue')} > 0", "{{queue}} requests"),
                Query(f"{rate('cbq_bundle_size_callbacks_sum', 'queue')} > 0", "{{queue}} callbacks"),
                Query(f"{rate('cbq_bundle_splits_total', 'queue')} > 0", "{{queue}} halved"),
                Query(f"{rate('cbq_bundle_partial_results_total', 'queue')} > 0", "{{queue}} taken in part"),
            ),
            empty="none carried several",
            wide=24,
            high=5,
        ),
    ),
)

_LATE = Row(
    "What is late?",
    (
        Panel(
            "Waiting",
            "Callbacks in pending.",
            CALLBACKS,
            (Query(state("cbq_queue_length", where=_PENDING), _QUEUES),),
            late=thresholds.BACKLOG,
        ),
        Panel(
            "Oldest waiting",
            "How long the oldest callback of pending has been there. Age tells more than depth: "
            "a deep queue that is drained quickly is not late.",
            SECONDS,
            (Query(age("cbq_queue_oldest_timestamp_seconds", where=_PENDING), _QUEUES),),
            late=thresholds.OLDEST_PENDING,
            bad=thresholds.OLDEST_PENDING_CRITICAL,
            empty="none waits",
        ),
        Panel(
            "From enqueue to delivery",
            "What clients feel: half of the callbacks were faster than p50, one in a hundred slower than p99.",
            SECONDS,
            (
                Query(quantile(0.5, "cbq_delivery_lag_seconds"), "{{queue}} p50"),
                Query(quantile(0.99, "cbq_delivery_lag_seconds"), "{{queue}} p99"),
            ),
        ),
        Panel(
            "Being sent",
            "Callbacks in processing: claimed, and neither delivered nor put back yet.",
            CALLBACKS,
            (Query(state("cbq_queue_length", where=f'{TRUTH},state="processing"'), _QUEUES),),
            wide=6,
        ),
        Panel(
            "Oldest being sent",
            "How long the callback that has been under a lease for longest has been sent. "
            "It is about the delivery timeout where a receiver does not answer.",
            SECONDS,
            (Query(age("cbq_processing_oldest_claim_timestamp_seconds"), _QUEUES),),
            empty="none",
            wide=6,
        ),
        Panel(
            "Waiting to be tried again",
            "Callbacks in retry, and those of them whose time has come and that nobody took.",
            CALLBACKS,
            (
                Query(state("cbq_queue_length", where=f'{TRUTH},state="retry"'), _QUEUES),
                Query(f"{state('cbq_retry_overdue_callbacks')} > 0", "{{queue}} overdue"),
            ),
            wide=6,
        ),
        Panel(
            "Retries are late by",
            "How long ago the first callback of retry was due; 0 while all of them still have time.",
            SECONDS,
            (Query(f"clamp_min({age('cbq_retry_oldest_due_timestamp_seconds')}, 0)", _QUEUES),),
            late=thresholds.OLDEST_RETRY,
            empty="none waits",
            wide=6,
        ),
    ),
)

_FAILING = Row(
    "Who is failing?",
    (
        Panel(
            "Destinations, worst first",
            "The 20 receivers with most failures. A click on one leads to its own dashboard.",
            PER_SECOND,
            (
                Query(f"topk(20, {rate('cbq_delivery_failures_total', 'queue, destination')})", "Failures", PER_SECOND),
                Query(rate("cbq_delivery_attempts_total", "queue, destination"), "Attempts", PER_SECOND),
                Query(
                    failure_ratio("queue, destination"),
                    "Failed, 10 m",
                    SHARE,
                    thresholds.DESTINATION_FAILURE_RATIO,
                ),
                Query(f"sum by (queue, destination) (cbq_destination_in_flight{{{COUNTED}}})", "Under way", CALLBACKS),
                Query(rate("cbq_destination_throttled_total", "queue, destination"), "Held back", PER_SECOND),
            ),
            Draw.TABLE,
            wide=16,
            high=11,
            columns=(("queue", "Queue"), ("destination", "Destination")),
            link=Link(
                "One destination",
                f"/d/{DESTINATION_DASHBOARD}?var-datasource=${{datasource}}&var-job=${{job}}"
                "&var-queue=${__data.fields.Queue:percentencode}"
                "&var-destination=${__data.fields.Destination:percentencode}&${__url_time_range}",
            ),
        ),
        Panel(
            "Failed attempts",
            "The share of attempts in the last 10 minutes that failed. A failed attempt is tried again.",
            SHARE,
            (Query(failure_ratio("queue"), _QUEUES),),
            high=11,
            late=thresholds.FAILURE_RATIO,
            bad=thresholds.FAILURE_RATIO_CRITICAL,
        ),
        Panel(
            "Failures by kind",
            "Attempts a second that failed. local is trouble on our side and uses up no attempt.",
            PER_SECOND,
            (Query(f"{rate('cbq_delivery_failures_total', 'kind')} > 0", "{{kind}}"),),
            Draw.BARS,
            wide=6,
        ),
        Panel(
            "Not sent to",
            "Destinations that are left alone because they fail, and those that are paused: by a person, or by an "
            "answer that asks for it, such as 410.",
            NUMBER,
            (
                Query(f"{state('cbq_failing_destinations')} > 0", "{{queue}} left alone"),
                Query(f"{state('cbq_paused_destinations')} > 0", "{{queue}} paused"),
            ),
            empty="none",
            wide=6,
        ),
        Panel(
            "Given up, by reason",
            "Callbacks that became dead letters. They are kept: cbq-exporter dead list shows them.",
            CALLBACKS,
            (Query(events("cbq_callbacks_dead_total", "queue, reason"), "{{queue}} {{reason}}"),),
            Draw.BARS,
            wide=6,
        ),
        Panel(
            "Kept as dead letters",
            "Dead letters that wait for a person.",
            CALLBACKS,
            (Query(state("cbq_queue_length", where=_DEAD), _QUEUES),),
            wide=6,
        ),
    ),
)

_HEALED = Row(
    "What healed itself?",
    (
        Panel(
            "Recovered callbacks",
            "Callbacks whose sender was gone: put back, or given up after too many times; by who asked for it.",
            CALLBACKS,
            (Query(events("cbq_recovered_callbacks_total", "queue, trigger"), "{{queue}} by {{trigger}}"),),
            Draw.BARS,
        ),
        Panel(
            "Stuck",
            "Callbacks to be recovered. They should be gone at the next look, every 15 seconds by default.",
            CALLBACKS,
            (Query(state("cbq_stuck_callbacks"), _QUEUES),),
            bad=thresholds.STUCK,
        ),
        Panel(
            "Recovered again and again",
            "Callbacks that were recovered twice or more and are not delivered: their worker dies of them, "
            "or does not clear them away.",
            CALLBACKS,
            (Query(state("cbq_recovery_ineffective_callbacks", where=COUNTED), _QUEUES),),
            bad=thresholds.RECOVERY_INEFFECTIVE,
        ),
        Panel(
            "Send locks released",
            "Locks that were left behind, by how that was seen; and those that changed in the last moment, "
            "whose holders are slow rather than dead.",
            CALLBACKS,
            (
                Query(events("cbq_lock_releases_total", "queue, reason"), "{{queue}} {{reason}}"),
                Query(events("cbq_lock_release_aborts_total", "queue"), "{{queue}} changed"),
            ),
            Draw.BARS,
        ),
        Panel(
            "Send lock held by another worker",
            "How long a worker that is none of these daemons has held the lock, as far as is known.",
            SECONDS,
            (
                Query(
                    f"{age('cbq_lock_first_seen_timestamp_seconds')} unless on (queue) "
                    f"{state('cbq_dispatch_leader')} == 1",
                    _QUEUES,
                ),
            ),
            bad=thresholds.LOCK_HELD,
            empty="none",
        ),
        Panel(
            "Refused: no longer ours",
            "Operations that were refused because the lock or the lease had gone to somebody else: "
            "a daemon that was paused, or leases that are too short. "
            "And callbacks that others, such as existing tools, took away while they were being sent.",
            CALLBACKS,
            (
                Query(events("cbq_fenced_total", "queue, operation"), "{{queue}} {{operation}}"),
                Query(events("cbq_callbacks_taken_away_total", "queue"), "{{queue}} taken away"),
            ),
            Draw.BARS,
        ),
        Panel(
            "Operations",
            "What the daemons did on request or by themselves, and how it ended. What people do on the command line "
            "is in cbq-exporter audit.",
            CALLBACKS,
            (
                Query(
                    events("cbq_operations_total", "operation, trigger, result", DAEMON),
                    "{{operation}} by {{trigger}}: {{result}}",
                ),
            ),
            Draw.BARS,
            wide=12,
        ),
        Panel(
            "Alerts received",
            "What Alertmanager sent to the daemons, by what became of it. unauthorized: somebody without the token.",
            CALLBACKS,
            (Query(events("cbq_alerts_received_total", "outcome", DAEMON), "{{outcome}}"),),
            Draw.BARS,
            wide=12,
        ),
    ),
)

_WELL = Row(
    "Is the daemon well?",
    (
        Panel(
            "Redis reached",
            "Whether Redis answered the scrapes of each daemon.",
            NUMBER,
            (Query(f"max by (instance) (cbq_up{{{DAEMON}}})", "{{instance}}"),),
            Draw.STATES,
            wide=6,
            high=5,
            words=(NO, YES),
        ),
        Panel(
            "Leads",
            "Which daemon holds the send lock of which queue: exactly one for each queue that is dispatched.",
            NUMBER,
            (
                Query(
                    f"max by (queue, instance) (cbq_dispatch_leader{{{COUNTED}}} "
                    f'and on (instance, queue) cbq_queue_info{{{COUNTED},mode="dispatch"}})',
                    "{{queue}} {{instance}}",
                ),
            ),
            Draw.STATES,
            wide=6,
            high=5,
            words=(Word("stands by", "blue"), Word("leads", "green")),
        ),
        Panel(
            "Configuration accepted",
            "Whether each daemon accepted its configuration when it last read it. If not, it works with the old one.",
            NUMBER,
            (Query(f"max by (instance) (cbq_config_last_reload_successful{{{DAEMON}}})", "{{instance}}"),),
            Draw.STATES,
            wide=6,
            high=5,
            words=(NO, YES),
        ),
        Panel(
            "Acts on alerts",
            "Whether alerts may cause something in each queue, or a person has paused that.",
            NUMBER,
            (Query(state("cbq_alerts_paused"), _QUEUES),),
            Draw.STATES,
            wide=6,
            high=5,
            words=(Word("yes", "green"), Word("paused", "orange")),
        ),
        Panel(
            "Tasks without success, in intervals",
            "How many of its intervals ago a scheduled task last succeeded, a minute of grace taken off. "
            "Tasks that are well are left out.",
            NUMBER,
            (
                Query(
                    f"max by (task) (clamp_min(timestamp(cbq_task_last_success_timestamp_seconds{{{DAEMON}}}) "
                    f"- cbq_task_last_success_timestamp_seconds{{{DAEMON}}} "
                    f"- {thresholds.TASK_GRACE.value:g}, 0) / cbq_task_interval_seconds{{{DAEMON}}}) > 0",
                    "{{task}}",
                ),
            ),
            bad=thresholds.TASK_INTERVALS,
            empty="all on time",
        ),
        Panel(
            "Task runs left out, 15 m",
            "Runs that came too late, or while the one before was still running.",
            NUMBER,
            (
                Query(
                    f"max by (task) (increase(cbq_task_skipped_total{{{DAEMON}}}[{_SKIPPED_OVER}]) "
                    f"+ increase(cbq_task_missed_total{{{DAEMON}}}[{_SKIPPED_OVER}])) > 0",
                    "{{task}}",
                ),
            ),
            late=thresholds.TASKS_SKIPPED,
            empty="none",
        ),
        Panel(
            "Task runs that failed",
            "Runs that ended with an error: the daemon's log has it.",
            NUMBER,
            (Query(events("cbq_task_failures_total", "task", DAEMON), "{{task}}"),),
            Draw.BARS,
        ),
        Panel(
            "Errors of Redis",
            "Commands a second that Redis refused or did not answer.",
            PER_SECOND,
            (Query(f"{rate('cbq_redis_errors_total', 'kind', DAEMON)} > 0", "{{kind}}"),),
            Draw.BARS,
        ),
        Panel(
            "Reading Redis for a scrape",
            "One round trip, however many queues.",
            SECONDS,
            (Query(f"max by (instance) (cbq_scrape_duration_seconds{{{DAEMON}}})", "{{instance}}"),),
        ),
        Panel(
            "Memory of Redis, of its limit",
            "Beyond its limit, Redis refuses producers. Nothing is shown where it has none.",
            SHARE,
            (
                Query(
                    'max by (job) (cbq_redis_memory_used_bytes{job="$job"} / cbq_redis_memory_max_bytes{job="$job"})',
                    "of maxmemory",
                ),
            ),
            bad=thresholds.REDIS_MEMORY,
            empty="no limit",
        ),
        Panel(
            "Memory",
            "What the daemons take, and what Redis uses.",
            BYTES,
            (
                Query(f"max by (instance) (process_resident_memory_bytes{{{DAEMON}}})", "{{instance}}"),
                Query('max by (job) (cbq_redis_memory_used_bytes{job="$job"})', "Redis"),
            ),
        ),
        Panel(
            "Processor",
            "The share of one processor that each daemon takes.",
            SHARE,
            (Query(rate("process_cpu_seconds_total", "instance", DAEMON), "{{instance}}"),),
        ),
        Panel(
            "Memory of each queue",
            "What the keys of each queue take in Redis, by samples, without what a reset moved.",
            BYTES,
            (Query(state("cbq_queue_memory_bytes"), _QUEUES),),
        ),
    ),
)

QUEUES = Board(
    QUEUES_DASHBOARD,
    "Callback queues",
    "Is it delivering, what is late, who is failing, what healed itself, is the daemon well?",
    (JOB, QUEUE, INSTANCE),
    MARKS,
    (_DELIVERING, _LATE, _FAILING, _HEALED, _WELL),
    Link("One destination", f"/d/{DESTINATION_DASHBOARD}"),
)
