"""What each path answers, over a real socket."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cbq_exporter.config import Config
from cbq_exporter.metrics.exposition import OPENMETRICS, PLAIN
from cbq_exporter.model import LockView, Mode, QueueView, Snapshot, State
from cbq_exporter.policy.troubles import store_troubles, troubles
from cbq_exporter.web.app import DEADLINE, deadline
from tests.metrics.snapshots import AT, DOWN, MIXED, WELL
from tests.web.serving import FakeBackend, serving

PATHS = ("/", "/metrics", "/-/healthy", "/-/ready", "/api/v1/status")


def test_metrics_in_the_format_and_coding_that_is_asked_for() -> None:
    with serving(FakeBackend()) as served:
        plain = served.ask("/metrics")
        assert (plain.status, plain.headers["Content-Type"]) == (200, PLAIN)
        assert "Content-Encoding" not in plain.headers
        assert 'cbq_queue_length{queue="callbacks",state="pending"} 1234.0\n' in plain.text
        packed = served.ask("/metrics", Accept="application/openmetrics-text", Accept_Encoding="br;q=1, gzip;q=0.5")
        assert (packed.headers["Content-Type"], packed.headers["Content-Encoding"]) == (OPENMETRICS, "gzip")
        assert packed.headers["Vary"] == "Accept, Accept-Encoding"
        metrics = text_string_to_metric_families(gzip.decompress(packed.body).decode())  # type: ignore[no-untyped-call]
        names = {metric.name for metric in metrics}
        assert {"cbq_up", "process_cpu_seconds"} <= names
        assert "Content-Encoding" not in served.ask("/metrics", Accept_Encoding="gzip;q=0.0, identity").headers


@pytest.mark.parametrize("accept", ["\xff\xfe", ";q=x,,;", "application/openmetrics-text;version=x", "a" * 7000])
def test_a_bad_accept_gets_plain_text(accept: str) -> None:
    with serving(FakeBackend()) as served:
        answer = served.ask("/metrics", Accept=accept)
        assert (answer.status, answer.headers["Content-Type"]) == (200, PLAIN)


def test_redis_down_is_an_answer_and_not_an_error() -> None:
    with serving(FakeBackend(DOWN, reasons_not_ready=["Redis is away"])) as served:
        metrics = served.ask("/metrics")
        assert metrics.status == 200
        assert "\ncbq_up 0.0\n" in metrics.text
        assert "cbq_queue_length" not in metrics.text
        assert "process_cpu_seconds_total" in metrics.text
        assert served.ask("/-/healthy").status == 200
        ready = served.ask("/-/ready")
        assert (ready.status, ready.text) == (503, "Redis is away\n")
        assert json.loads(served.ask("/api/v1/status").body)["redis"]["up"] is False
        page = served.ask("/")
        assert page.status == 200
        assert "connection refused" in page.text


def test_health_gives_one_reason_a_line() -> None:
    backend = FakeBackend()
    with serving(backend) as served:
        assert (served.ask("/-/healthy").status, served.ask("/-/healthy").text) == (200, "healthy\n")
        assert (served.ask("/-/ready").status, served.ask("/-/ready").text) == (200, "ready\n")
        backend.reasons_not_healthy = ["the flush loop\nhas ended", "no beat for 40 s"]
        answer = served.ask("/-/healthy")
        assert (answer.status, answer.text) == (503, "the flush loop has ended\nno beat for 40 s\n")


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, DEADLINE), ("10", 9.5), ("0.2", 0.1), ("1e9", 60.0), ("nan", DEADLINE), ("-1", DEADLINE), ("x", DEADLINE)],
)
def test_the_deadline_follows_the_scraper(header: str | None, expected: float) -> None:
    assert deadline(header) == expected


def test_a_read_that_hangs_is_given_up_before_the_scraper_does() -> None:
    backend = FakeBackend(hangs=True)
    with serving(backend) as served:
        answer = served.ask("/metrics", X_Prometheus_Scrape_Timeout_Seconds="0.7")
        assert answer.status == 200
        assert "\ncbq_up 0.0\n" in answer.text
        assert backend.deadlines == [pytest.approx(0.2)]


def test_a_fault_of_ours_says_nothing_about_itself_outside_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Snapshot:
        raise RuntimeError("password=hunter2")

    backend = FakeBackend(fail)
    with caplog.at_level(logging.ERROR), serving(backend) as served:
        metrics = served.ask("/metrics")
        assert metrics.status == 200
        assert "\ncbq_up 0.0\n" in metrics.text
        backend.shown = MIXED
        backend.not_healthy = fail  # type: ignore[method-assign, assignment]
        health = served.ask("/-/healthy")
        assert health.status == 500
        assert "hunter2" not in health.text + metrics.text
    assert "a request failed" in caplog.text
    assert "hunter2" in caplog.text


def test_two_hundred_scrapes_at_once() -> None:
    with serving(FakeBackend()) as served, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: served.ask("/metrics", Accept_Encoding="gzip"), range(200)))
        assert {answer.status for answer in answers} == {200}
        assert all(b"cbq_up 1.0" in gzip.decompress(answer.body) for answer in answers)
        assert len(served.backend.deadlines) == 200


def test_a_scrape_shows_events_up_to_its_own_beginning() -> None:
    """The same snapshot again must not bring back an older rendering."""
    backend = FakeBackend()
    with serving(backend) as served:
        served.ask("/metrics")
        backend.instruments.queue("callbacks").delivered.inc(1000)
        assert 'cbq_callbacks_delivered_total{queue="callbacks"} 1003.0' in served.ask("/metrics").text


def test_the_status_document() -> None:
    with serving(FakeBackend()) as served:
        answer = served.ask("/api/v1/status")
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        document = json.loads(answer.body)
    assert list(document) == ["version", "at", "redis", "queues"]
    assert document["at"] == AT
    assert document["redis"] == {
        "up": True,
        "server": "valkey 9.1.0",
        "replica": None,
        "read_seconds": 0.0015,
        "memory_used_bytes": 12582912,
        "memory_max_bytes": 268435456,
        "disk_write_failed": None,
        "error": None,
    }
    busy, left_behind, idle, broken = document["queues"]
    assert busy == {
        "queue": "callbacks",
        "mode": "dispatch",
        "lengths": {"pending": 1234, "processing": 96, "retry": 7, "dead": 2, "trash": 5},
        "oldest_at": {
            "pending": AT - 12,
            "processing": AT - 14.25,
            "retry": None,
            "dead": AT - 86400,
            "trash": None,
        },
        "oldest_claim_at": AT - 3.125,
        "retry_overdue": 1,
        "stuck": 2,
        "untracked": 0,
        "leased": 96,
        "lock": {
            "held": True,
            "ttl_seconds": 23.5,
            "ours": True,
            "value": "worker_1763999999_4711",
            "keeper": {"verdict": "leave", "reason": None, "acts_at": None},
        },
        "last_send_at": AT - 0.25,
        "source_stats": {"queued": 1340, "sent": 100, "failed": 3},
        "memory_bytes": 1_536_000,
        "paused": False,
        "paused_destinations": 2,
        "failing_destinations": 1,
        "alerts_paused": True,
        "newer": None,
        "error": None,
    }
    assert left_behind["lock"]["ttl_seconds"] is None
    assert left_behind["lock"]["keeper"] == {"verdict": "release", "reason": "no_ttl", "acts_at": None}
    assert idle["lock"] == {"held": False, "ttl_seconds": None, "ours": False, "value": None, "keeper": None}
    assert broken["lock"]["held"] is None
    assert broken["error"].startswith("foreign:pending")


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_landing_page_says_what_is_going_on() -> None:
    with serving(FakeBackend(reasons_not_healthy=["the flush loop has ended"])) as served:
        answer = served.ask("/")
        found = Tags(answer.text)
        links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
        assert [served.ask(str(link)).status for link in links] == [200, 503, 200, 200]
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    words = {"callbacks", "invoices", "1,234", "this daemon", "23s left", "no expiry", "unreadable", "idle", "1h30m"}
    assert words | {"the flush loop has ended", "not healthy", "ready"} <= set(found.words)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "form", "link"}
    assert not [attributes for _, attributes in found.tags if "style" in attributes], "the policy forbids it"


def test_on_narrow_screens_each_value_stands_below_its_heading() -> None:
    """There the head of the table is not shown, so that nothing is cut at the right."""
    with serving(FakeBackend()) as served:
        text = served.ask("/").text
    headings = re.findall(r'<th scope="col"[^>]*>([^<]+)', text)
    labels = re.findall(r'<td[^>]* data-label="([^"]+)"', text)
    assert labels == headings[1:] * len(MIXED.queues)
    assert "content: attr(data-label)" in text


def test_a_lock_value_that_is_cut_says_so() -> None:
    view = QueueView("q", Mode.OBSERVE, lock=LockView("w" * 41, 1.0, ours=False))
    with serving(FakeBackend(Snapshot(up=True, at=AT, duration=0.1, queues=(view,)))) as served:
        assert f"{'w' * 39}…" in Tags(served.ask("/").text).words


def test_the_landing_page_sees_the_troubles_that_status_sees() -> None:
    paused = QueueView("q", Mode.DISPATCH, lengths={State.PENDING: 5}, paused=True, failing_destinations=1)
    newer = QueueView("r", Mode.OBSERVE, lengths={State.PENDING: 5}, newer="a newer version was here")
    snapshot = Snapshot(up=True, at=AT, duration=0.1, queues=(paused, newer), disk_write_failed=True)
    with serving(FakeBackend(snapshot)) as served:
        words = Tags(served.ask("/").text).words
        document = json.loads(served.ask("/api/v1/status").body)
    assert {"paused", "; ".join(troubles(paused, AT)), "a newer version was here"} <= set(words)
    assert set(store_troubles(snapshot)) <= set(words)
    assert [queue["newer"] for queue in document["queues"]] == [None, "a newer version was here"]


def test_nothing_from_outside_is_taken_as_markup() -> None:
    evil = "<script>alert('x')</script>\ud800\"&"
    view = QueueView("q", Mode.OBSERVE, error=evil, lock=LockView(evil, 1.0, ours=False))
    snapshot = Snapshot(up=True, at=AT, duration=0.1, queues=(view,), server=evil)
    with serving(FakeBackend(snapshot, reasons_not_ready=[evil], reasons_not_healthy=[evil])) as served:
        page = served.ask("/")
        assert page.status == 200
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text
        assert json.loads(served.ask("/api/v1/status").body)["redis"]["server"].startswith("<script>")
        assert served.ask("/-/ready").status == 503


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_every_answer_is_closed_to_browsers_tricks(path: str) -> None:
    with serving(FakeBackend(WELL)) as served:
        headers = served.ask(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Server"] == "cbq-exporter"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


LOCAL = [
    "localhost",
    "localhost.",
    "LOCALHOST:9847",
    "127.0.0.1:9847",
    "127.1",
    "[::1]:9847",
    "cbq",
    "host.docker.internal:9847",
    "cbq.monitoring.svc.cluster.local",
    socket.gethostname(),
]


def test_a_page_whose_name_leads_here_reads_nothing(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    with serving(backend) as served:
        for path in ("/", "/metrics", "/api/v1/status", "/nothing"):
            for host in (
                "evil.example",
                "evil.example:9847",
                "127.0.0.1.evil.example",
                "localhost.evil.example.",
                "a.b",
            ):
                answer = served.ask(path, Host=host)
                assert (answer.status, b"callbacks" in answer.body) == (421, False)
            assert {served.ask(path, Host=host).status for host in LOCAL} <= {200, 404}
        assert json.loads(served.ask("/api/v1/status", Host="evil.example").body)["status"] == 421
        assert {one.host for one in caplog.records} >= {"evil.example", "a.b"}  # type: ignore[attr-defined]
        backend.config = Config(web={"listen_address": ":9847"})
        assert served.ask("/metrics", Host="callbacks.example").status == 200, "others may well call it so"


def test_other_paths_and_methods() -> None:
    with serving(FakeBackend()) as served:
        for path in ("/nothing", "//metrics", "/metrics/", "/-/reload", "/%00", "/..%2f..%2fetc/passwd"):
            answer = served.ask(path)
            assert (answer.status, len(answer.text) < 120) == (404, True), path
        for path in PATHS:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
                answer = served.ask(path, method, body=b"{}")
                assert (answer.status, answer.headers.get("Allow")) == (405, "GET, HEAD"), (path, method)
            head, get = served.ask(path, "HEAD"), served.ask(path)
            assert (head.status, head.body) == (get.status, b"")
            assert head.headers["Content-Type"] == get.headers["Content-Type"]
