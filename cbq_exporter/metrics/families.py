"""What a snapshot of Redis says, as metric families. Pure: the same snapshot makes the same families.

What the snapshot does not know has no sample. With Redis down only that remains: nothing that was true before.
"""

from __future__ import annotations

from prometheus_client.core import Metric

from cbq_exporter.metrics.catalogue import definition
from cbq_exporter.model import QueueView, Snapshot
from cbq_exporter.policy import lock

SERVER, QUEUE = "server", "queue"  # the collectors


def families(snapshot: Snapshot) -> list[Metric]:
    """In the catalogue's order. Those without a sample are left out."""
    into = _Samples()
    into.add("up", float(snapshot.up))
    into.add("scrape_duration_seconds", snapshot.duration)
    memory_known = snapshot.up and snapshot.memory_used is not None
    into.add("scrape_collector_success", float(memory_known), collector=SERVER)
    for view in snapshot.queues:
        good = snapshot.up and view.error is None
        into.add("scrape_collector_success", float(good), collector=QUEUE, queue=view.queue)
    for view in snapshot.queues:
        into.add("queue_info", 1.0, queue=view.queue, mode=view.mode)
    if snapshot.up:
        into.add("redis_memory_used_bytes", snapshot.memory_used)
        into.add("redis_memory_max_bytes", snapshot.memory_max)
        for view in snapshot.queues:
            _queue(view, into)
    return into.metrics()


def _queue(view: QueueView, into: _Samples) -> None:
    queue = view.queue
    for state, length in view.lengths.items():
        into.add("queue_length", length, queue=queue, state=state)
    for state, at in view.oldest_at.items():
        into.add("queue_oldest_timestamp_seconds", at, queue=queue, state=state)
    into.add("processing_oldest_claim_timestamp_seconds", view.oldest_claim_at, queue=queue)
    into.add("retry_overdue_callbacks", view.retry_overdue, queue=queue)
    into.add("retry_oldest_due_timestamp_seconds", view.retry_oldest_due_at, queue=queue)
    into.add("stuck_callbacks", view.stuck, queue=queue)
    into.add("untracked_callbacks", view.untracked, queue=queue)
    into.add("queue_paused", None if view.paused is None else float(view.paused), queue=queue)
    into.add("paused_destinations", view.paused_destinations, queue=queue)
    into.add("failing_destinations", view.failing_destinations, queue=queue)
    into.add("alerts_paused", None if view.alerts_paused is None else float(view.alerts_paused), queue=queue)
    into.add("queue_memory_bytes", view.memory, queue=queue)
    into.add("last_send_timestamp_seconds", view.last_send_at, queue=queue)
    for stat, count in view.source_stats.items():
        into.add("source_stats_total", count, queue=queue, stat=stat)
    if view.lock is not None:
        into.add("lock_held", 1.0, queue=queue)
        into.add("lock_without_expiry", float(view.lock.ttl is None), queue=queue)
        into.add("lock_ttl_seconds", view.lock.ttl, queue=queue)
        look, stale = view.lock_look or view.own_look, lock.is_stale(view)
        into.add("lock_first_seen_timestamp_seconds", None if look is None else look.first_seen_at, queue=queue)
        into.add("lock_stale", None if stale is None else float(stale), queue=queue)
    elif view.error is None:
        into.add("lock_held", 0.0, queue=queue)
        into.add("lock_without_expiry", 0.0, queue=queue)
        into.add("lock_stale", 0.0, queue=queue)


class _Samples:
    """Families by name; made with their first sample, so that an unknown value leaves no trace."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, name: str, value: float | None, **labels: str) -> None:
        if value is None:
            return
        metric = self._metrics.get(name) or self._make(name)
        sample = f"{metric.name}_total" if metric.type == "counter" else metric.name
        metric.add_sample(sample, labels, float(value))

    def metrics(self) -> list[Metric]:
        return list(self._metrics.values())

    def _make(self, name: str) -> Metric:
        of = definition(name)
        # The client library writes a counter's suffix itself.
        made = Metric(of.full_name.removesuffix("_total"), of.help, of.type, of.unit)
        self._metrics[name] = made
        return made
