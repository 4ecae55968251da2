"""The shipped rules in a real Prometheus that scrapes real daemons: every query finds data, and what is wrong fires.

Nothing waits its ``for`` here: promtool's tests are about time, this is about the daemon's real series.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from monitoring.rules import ALERTS, RECORDINGS, Alert
from monitoring.write import alerting_rules, recording_rules
from tests.deploy.test_rules import EXPRESSIONS
from tests.deploy.test_runbooks import PAGES, blocks
from tests.support.daemons import Daemon, merged, queue, until
from tests.support.prometheus import Prometheus, scraping
from tests.support.receiver import Answer, Receiver, Seen
from tests.support.servers import Server

_PATIENCE = 60.0  # seconds: on a busy machine a scrape may take longer than the second it has, and is made again
THEIRS = "worker_1764000000_1234"

# Only looks, soon: what is wrong with it stays wrong.
_GUARDED: dict[str, Any] = {
    "prefix": "guarded",
    "mode": "supervise",
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"auto": False, "every": "200ms", "stuck_after": "1s"},
    "lock": {"check_every": "200ms", "stale": {"auto": False, "no_ttl_after": "1s"}},
}

_ADDED = {"alertname", "alertstate", "severity", "job", "__name__"}

# Queries of runbooks that find nothing in this world, and why.
_RIGHTLY_EMPTY = {
    'sum by (kind) (rate(cbq_delivery_failures_total{destination="api.example.com"}[10m]))': "a name for an example",
    'cbq_destination_circuit_state{destination="api.example.com"}': "a name for an example",
    "cbq_queue_info offset 1h unless on (job, queue) cbq_queue_info": "nothing is an hour old",
}


@dataclass(frozen=True, slots=True)
class World:
    prometheus: Prometheus
    server: Server

    def firing(self) -> set[tuple[str, str, str]]:
        """The alerts that fire, as name, severity and what they are about."""
        found = [one.labels for one in self.prometheus.query('ALERTS{alertstate="firing", alertname=~"Cbq.*"}')]
        about = [",".join(of[label] for label in sorted(of.keys() - _ADDED)) for of in found]
        return {(of["alertname"], of["severity"], what) for of, what in zip(found, about, strict=True)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two replicas with load that mostly succeeds, and one queue, ``guarded``, that nobody heals."""
    folder = tmp_path_factory.mktemp("rules")
    files = {"recording.yml": recording_rules(), "alerts.yml": _at_once(alerting_rules()), "texts.yml": _texts()}
    for name, text in files.items():
        (folder / name).write_text(text)
    with ExitStack() as stack:
        server = stack.enter_context(Server("valkey", "--maxmemory", "512mb"))
        receiver = stack.enter_context(Receiver())
        queues = [
            queue(prefix="sent", batch={"max_delay": "10ms", "min_interval": "20ms"}),
            queue(merged(_GUARDED, {"name": "guarded"})),
            queue(name="watched", prefix="watched", mode="observe"),
        ]
        daemons = [stack.enter_context(Daemon(server.url, *queues)) for _ in range(2)]
        config = scraping(*(daemon.url for daemon in daemons), rule_files=[str(folder / name) for name in files])
        prometheus = stack.enter_context(Prometheus(config))
        client: Any = server.client
        callbacks = _callbacks(receiver)
        client.rpush("sent:pending", *callbacks[:100])
        client.set("guarded:lock", THEIRS)
        client.rpush("guarded:processing", _item(receiver.url("/claimed")))
        client.rpush("guarded:pending", _item(receiver.url("/waiting"), queued_at=time.time() - 3600))
        client.zadd("guarded:retry", {"1764000000000-1-1": (time.time() - 3600) * 1000})
        # One half before the first scrape, and one after it, so that rates have something to compare.
        _wait_for_scrapes(prometheus, len(daemons))
        client.rpush("sent:pending", *callbacks[100:])
        until(lambda: not client.llen("sent:pending") + client.llen("sent:processing") + client.zcard("sent:retry"))
        _wait_for_scrapes(prometheus, len(daemons))
        yield World(prometheus, server)


def test_no_rule_fails(world: World) -> None:
    until(lambda: all(rule["health"] != "unknown" for rule in world.prometheus.rules()))
    bad = [(rule["name"], rule["lastError"]) for rule in world.prometheus.rules() if rule["health"] != "ok"]
    assert bad == []


def test_everything_that_rules_look_at_is_there(world: World) -> None:
    asked = {found for expr in EXPRESSIONS.values() for found in re.findall(r"\b[\w:]*cbq_[\w:]+(?:\{[^}]*\})?", expr)}
    assert len(asked) > 30
    for selector in asked:
        world.prometheus.wait_for(selector)


def test_everything_that_is_recorded_is_there_once_for_all_replicas(world: World) -> None:
    for recording in RECORDINGS:
        found = world.prometheus.wait_for(recording.name)
        level = set(recording.name.partition(":")[0].split("_"))
        assert all(one.labels.keys() == {"__name__", *level} for one in found)
    (depth,) = world.prometheus.query('job_queue_state:cbq_queue_length:max{queue="guarded", state="pending"}')
    assert depth.value == 1
    (ratio,) = world.prometheus.query('job_queue:cbq_delivery_failures:ratio_rate10m{queue="callbacks"}')
    assert 0 < ratio.value < 0.1
    assert world.prometheus.query('job_queue:cbq_callbacks_delivered:rate5m{queue="callbacks"} > 0')


def test_only_who_sends_says_how_long_a_batch_may_wait(world: World) -> None:
    found = {
        one.labels["queue"]: one.value for one in world.prometheus.query("max by (queue) (cbq_batch_wait_seconds)")
    }
    assert found == {"callbacks": 0.02}


def test_queries_of_runbooks_find_something(world: World) -> None:
    queries = {line for page in PAGES for line in blocks(page.read_text(), "promql")}

    def empty() -> set[str]:
        found = {query for query in queries if not world.prometheus.query(query)}  # raises where it is not PromQL
        return {query for query in found if not re.search(r" [=!<>]=? ?-?[\d.]+$", query)}

    until(lambda: empty() == _RIGHTLY_EMPTY.keys(), what=lambda: empty() ^ _RIGHTLY_EMPTY.keys())


def test_texts_of_alerts_are_filled_in(world: World) -> None:
    shown = {one["labels"]["alertname"]: one for one in until(lambda: _shown_texts(world))}
    for alert in ALERTS:
        one = shown[_text_name(alert)]
        for text in one["annotations"].values():
            assert not re.search(r"\{\{|<error|<no value>|NaN|%!", text), text
        link = one["annotations"]["dashboard_url"]
        for label, value in (("queue", "a+queue"), ("instance", "an+instance"), ("destination", "a+destination")):
            assert (f"var-{label}={value}" in link) == (label in alert.scope)
    assert "waited for 7s" in shown["Text-CbqOldestPendingTooOld-warning"]["annotations"]["description"]
    assert "700% of the attempts of a queue" in shown["Text-CbqFailureRatioHigh-warning"]["annotations"]["description"]


def test_what_is_wrong_fires_and_nothing_else_and_ends_when_it_is_mended(world: World) -> None:
    expected = {
        ("CbqLockWithoutExpiry", "warning", "guarded"),
        ("CbqStuckItems", "warning", "guarded"),
        ("CbqDeliveryStalled", "critical", "guarded"),
        ("CbqOldestPendingTooOld", "warning", "guarded"),
        ("CbqOldestPendingTooOld", "critical", "guarded"),
        ("CbqOldestRetryTooLate", "warning", "guarded"),
    }
    until(lambda: world.firing() == expected, _PATIENCE, what=lambda: world.firing() ^ expected)
    world.server.client.delete("guarded:lock", "guarded:processing", "guarded:pending", "guarded:retry")
    until(lambda: world.firing() == set(), _PATIENCE, what=world.firing)


def _wait_for_scrapes(prometheus: Prometheus, daemons: int) -> None:
    """Until each daemon has been scraped after now."""
    now = time.time()
    until(lambda: len(prometheus.query(f"timestamp(cbq_up) > {now:f}")) == daemons, _PATIENCE, what=prometheus.log)


def _callbacks(receiver: Receiver) -> list[bytes]:
    """Of 200 six fail once and one for ever, all at the end: below any threshold."""
    seen: set[str] = set()

    def fails_once(request: Seen) -> Answer:
        first = request.path not in seen
        seen.add(request.path)
        return Answer(503) if first else Answer()

    for number in range(6):
        receiver.on(f"/flaky/{number}", fails_once)
    receiver.on("/refused", Answer(404))
    paths = ["/refused", *(f"/flaky/{number}" for number in range(6)), *(f"/good/{n}" for n in range(193))]
    return [_item(receiver.url(path)) for path in reversed(paths)]


def _item(url: str, queued_at: float | None = None) -> bytes:
    return json.dumps({"url": url, "data": {"url": url}, "_queued_at": queued_at or time.time()}).encode()


def _at_once(rules: str) -> str:
    content = yaml.safe_load(rules)
    for rule in content["groups"][0]["rules"]:
        rule.pop("for", None)
    return yaml.safe_dump(content)


def _texts() -> str:
    """Rules that always fire, with the texts of the real ones."""
    content = yaml.safe_load(alerting_rules())
    content["groups"][0]["name"] = "texts"
    for alert, rule in zip(ALERTS, content["groups"][0]["rules"], strict=True):
        rule.pop("for", None)
        rule["alert"] = _text_name(alert)
        rule["expr"] = "vector(7)"
        for label in alert.scope:
            a = "an" if label[0] in "aeiou" else "a"
            rule["expr"] = f'label_replace({rule["expr"]}, "{label}", "{a} {label}", "", "")'
    return yaml.safe_dump(content)


def _text_name(alert: Alert) -> str:
    return f"Text-{alert.name}-{alert.severity}"


def _shown_texts(world: World) -> list[dict[str, Any]]:
    found = [one for one in world.prometheus.alerts() if one["labels"]["alertname"].startswith("Text-")]
    return found if len(found) == len(ALERTS) else []
