"""Scrapes of a real daemon: many at once, and what only a real delivery can show."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from prometheus_client.core import Sample
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cbq_exporter.metrics.exposition import OPENMETRICS
from tests.e2e.bare_client import item
from tests.support.daemons import Daemon, queue, until
from tests.support.receiver import Answer, Receiver
from tests.support.servers import Server


@pytest.fixture
def daemon(server: Server) -> Iterator[Daemon]:
    with Daemon(server.url) as running:
        running.wait_until_ready()
        yield running


def test_two_hundred_scrapes_at_once_are_all_answered_and_share_reads(server: Server, daemon: Daemon) -> None:
    count = 200
    with ExitStack() as stack:
        address = urlsplit(daemon.url)
        connections = [
            stack.enter_context(socket.create_connection((str(address.hostname), address.port or 0), 30))
            for _ in range(count)
        ]
        server.client.config_resetstat()
        server.send_signal(signal.SIGSTOP)  # the first read lasts until all have asked
        try:
            for connection in connections:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
            assert daemon.get("/-/healthy")[0] == 200  # it came last, and is answered: the others have been taken in
        finally:
            server.send_signal(signal.SIGCONT)
        answers = [whole(connection) for connection in connections]
    assert all(answer.startswith(b"HTTP/1.1 200 ") and b"\ncbq_up 1.0\n" in answer for answer in answers)
    assert server.client.info("commandstats")["cmdstat_mget"]["calls"] < count / 10


def whole(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_a_slow_delivery_can_be_found_by_its_exemplar(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, queue()) as daemon:
        receiver.on("/slow", Answer(delay=1.1))
        began = time.time()
        server.client.rpush("callback_queue:pending", item(receiver.url("/slow"), 1, queued_at=began - 20))
        server.client.rpush("callback_queue:pending", item(receiver.url("/quick"), 2, queued_at=began))
        until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 2)
        (slow,) = [seen for seen in receiver.requests if seen.path == "/slow"]
        found = [sample for sample in openmetrics(daemon) if sample.exemplar]
    assert {(sample.name, sample.labels["le"]) for sample in found} == {
        ("cbq_delivery_duration_seconds_bucket", "2.5"),
        ("cbq_delivery_lag_seconds_bucket", "30.0"),
    }
    for sample in found:
        assert sample.exemplar is not None
        assert sample.exemplar.labels == {"webhook_id": slow.headers["webhook-id"]}
        assert sample.exemplar.value > 1
        assert sample.exemplar.timestamp is not None
        assert began <= float(sample.exemplar.timestamp) <= time.time()


def openmetrics(daemon: Daemon) -> list[Sample]:
    _, text = daemon.get("/metrics", Accept=OPENMETRICS)
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return [sample for family in families for sample in family.samples]


def test_the_memory_of_a_queue_is_shown_once_it_was_measured(server: Server) -> None:
    server.client.rpush("callback_queue:processing", *(item("http://127.0.0.1:9/", number) for number in range(1000)))
    with Daemon(server.url, queue(mode="observe")) as daemon:
        memory = until(lambda: daemon.metrics().get("cbq_queue_memory_bytes"))
        assert memory is not None
        assert memory > 100_000
        assert daemon.metrics().get("cbq_task_runs_total", task="measure") == 1
