"""Every query of every panel and mark, asked of a real Prometheus that scrapes a real daemon under load."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.grafana import boards
from tests.grafana.boards import Ask, filled
from tests.grafana.load import FAILING, FOREIGN, IDLE, NEVER_SENT, loaded
from tests.support.daemons import until
from tests.support.prometheus import Prometheus, scraping
from tests.support.servers import Server

ASKS = tuple(ask for path in boards.FILES for ask in boards.asks(boards.load(path)))

# What has nothing to show in this load, and why.
EMPTY: Mapping[str, str] = MappingProxyType(
    {
        "Callback queues / What is late? / Waiting to be tried again / B": "retries are taken when they are due",
        "Callback queues / What healed itself? / Send locks released / B": "a lock would have to change in between",
        "Callback queues / Is the daemon well? / Tasks without success, in intervals / A": "it takes a minute at least",
        "Callback queues / Is the daemon well? / Task runs left out, 15 m / A": "no task here is slow",
    }
)

# As Grafana fills them in where everything is chosen, for scrapes each second.
EVERYTHING = {"job": "cbq-exporter", "queue": ".*", "instance": ".*", "__rate_interval": "4s"}

_RULES = boards.ROOT / "deploy" / "prometheus"
_RANGE = 15.0  # seconds shown


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    """One that has seen enough."""
    rules = [str(path) for path in sorted(_RULES.glob("*.rules.yml"))]
    with Server() as server, loaded(server) as daemon:
        config = scraping(daemon.url, rule_files=rules)
        with Prometheus(config) as it:
            it.wait_for('cbq_lock_releases_total{reason="no_ttl"} > 0')
            it.wait_for('cbq_recovered_callbacks_total{trigger="schedule"} > 0')
            it.wait_for('ALERTS{alertname="CbqDeadLettersGrowing",alertstate="firing"}')
            yield it


@pytest.fixture(scope="module")
def values(prometheus: Prometheus) -> dict[str, str]:
    """Of every variable; the destination is the one that fails."""
    failing = prometheus.wait_for(f'cbq_delivery_failures_total{{destination=~"{FAILING}.*"}} > 0')
    return EVERYTHING | {"destination": failing[0].labels["destination"]}


@pytest.mark.parametrize("ask", ASKS, ids=str)
def test_a_query_returns_data(prometheus: Prometheus, values: dict[str, str], ask: Ask) -> None:
    expr = filled(ask.expr, values)
    assert "$" not in expr, "a variable that is not filled in"
    if str(ask) in EMPTY:
        assert isinstance(series(prometheus, ask, expr), list)  # it is at least understood
        return
    until(lambda: series(prometheus, ask, expr), what=f"no data: {expr}")


@pytest.mark.parametrize("path", boards.FILES, ids=lambda path: path.stem)
def test_a_variable_has_the_values_that_the_queries_need(
    prometheus: Prometheus, values: dict[str, str], path: Path
) -> None:
    for name, selector, label in boards.variables(boards.load(path)):
        offered = {one.labels[label] for one in prometheus.query(f"group by ({label}) ({filled(selector, values)})")}
        assert offered, name
        assert values[name] in offered or values[name] == ".*"


def test_a_queue_that_nobody_ever_sent_is_not_shown_as_one_in_which_none_waits(prometheus: Prometheus) -> None:
    (ask,) = [ask for ask in ASKS if "/ No batch though callbacks wait /" in str(ask)]
    shown = filled(ask.expr, EVERYTHING | {"queue": NEVER_SENT})
    assert prometheus.wait_for(f"({shown}) > 1")


@pytest.mark.parametrize("title", ["Deepest backlog", "Oldest waiting", "Stuck"])
def test_what_cannot_be_read_is_unknown_and_what_is_empty_is_zero(prometheus: Prometheus, title: str) -> None:
    """As with Redis away: of this queue nothing is known either."""
    board = boards.load(boards.ROOT / "grafana/dashboards/queues.json")
    (panel,) = [panel for panel in boards.panels(board) if panel["title"] == title and panel["type"] == "stat"]
    expr = panel["targets"][0]["expr"]
    assert not prometheus.query(filled(expr, EVERYTHING | {"queue": FOREIGN}))
    assert panel["fieldConfig"]["defaults"]["noValue"] == "unknown"
    (idle,) = prometheus.wait_for(filled(expr, EVERYTHING | {"queue": IDLE}))
    assert idle.value == 0


def test_a_prometheus_without_targets_or_rules_is_not_shown_as_one_without_trouble() -> None:
    (queues,) = [boards.load(path) for path in boards.FILES if path.stem == "queues"]
    exprs = {panel["title"]: panel["targets"][0]["expr"] for panel in boards.panels(queues)}
    with Prometheus(scraping()) as blind:
        for title in ("Alerts firing", "Daemons in trouble"):
            assert not blind.query(filled(exprs[title], EVERYTHING)), title


def test_what_is_said_to_be_empty_is_asked() -> None:
    assert set(EMPTY) <= {str(ask) for ask in ASKS}


def series(prometheus: Prometheus, ask: Ask, expr: str) -> list[object]:
    """Those that have a number to draw."""
    if ask.instant:
        return [one for one in prometheus.query(expr) if not math.isnan(one.value)]
    now = time.time()
    found = prometheus.query_range(expr, now - _RANGE, now, 1)
    return [one for one in found if any(not math.isnan(float(value)) for _, value in one["values"])]
