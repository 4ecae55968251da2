"""What can be said of the committed dashboards without a Prometheus: that they can be read, and lead somewhere."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from cbq_exporter.metrics.catalogue import CATALOGUE
from monitoring import dashboards, thresholds
from monitoring.rules import ALERTS
from monitoring.thresholds import Threshold
from tests import generated
from tests.grafana import boards

BOARDS = {board["uid"]: board for board in map(boards.load, boards.FILES)}
PANELS = [
    pytest.param(panel, id=f"{uid} {panel['title']}") for uid, one in BOARDS.items() for panel in boards.panels(one)
]
ASKS = [pytest.param(ask, id=str(ask)) for one in BOARDS.values() for ask in boards.asks(one)]
UNITS = {"locale", "none", "cps", "s", "percentunit", "bytes"}

# A column of 24 is 80 px of 1920, and a letter of a title 8 px; the sign with the description takes 24.
LETTERS_PER_COLUMN, LETTERS_OF_SIGN = 10, 3

METRICS = {one.full_name: set(one.labels) for one in CATALOGUE}
FROM_PROMETHEUS = {"job", "instance", "le"}


def variables(board: dict[str, Any]) -> set[str]:
    return {one["name"] for one in board["templating"]["list"]}


@pytest.mark.parametrize("name", dashboards.FILES)
def test_the_files_are_what_the_code_makes(name: str) -> None:
    assert (generated.ROOT / name).read_text(encoding="utf-8") == dashboards.FILES[name](), "run `make docs`"


def test_they_are_where_alerts_look_for_them() -> None:
    assert set(BOARDS) == {"cbq-queues", "cbq-destination"}
    for alert in ALERTS:
        url = urlsplit(alert.dashboard_url)
        board = BOARDS[url.path.removeprefix("/d/")]
        assert {name.removeprefix("var-") for name, _ in parse_qsl(url.query)} <= variables(board), alert.name


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_they_can_be_provisioned_beside_any_prometheus(board: dict[str, Any]) -> None:
    assert not {"__inputs", "__requires", "id"} & set(board)
    kinds = {one["name"]: one for one in board["templating"]["list"]}
    assert kinds["datasource"]["type"] == "datasource"
    for owner in [*boards.panels(board), *board["annotations"]["list"]]:
        assert owner["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for name in ("queue", "instance"):
        assert (kinds[name]["multi"], kinds[name]["includeAll"], kinds[name]["allValue"]) == (True, True, ".*")


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_nothing_lies_on_another_and_no_place_is_wasted(board: dict[str, Any]) -> None:
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for place in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(place, panel["title"]) == panel["title"]
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height
    tops = [panel["gridPos"]["y"] for panel in board["panels"] if panel["type"] == "row"]
    assert all(below > above for above, below in pairwise(tops))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_each_row_asks_a_question(board: dict[str, Any]) -> None:
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows
    assert all(title.endswith("?") for title in rows)
    assert board["panels"][0]["type"] == "row"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert 0 < len(panel["title"]) <= panel["gridPos"]["w"] * LETTERS_PER_COLUMN - LETTERS_OF_SIGN
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    for target in panel["targets"]:
        # A table and a single number need no legend; the name of the metric and all labels would be the default.
        assert target.get("instant") or len(target["legendFormat"]) <= 40


@pytest.mark.parametrize("panel", PANELS)
def test_colours_change_where_alerts_fire(panel: dict[str, Any]) -> None:
    known = {one.value or 1 for one in vars(thresholds).values() if isinstance(one, Threshold)}
    shown = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    for override in panel["fieldConfig"]["overrides"]:
        shown += [one["value"]["steps"] for one in override["properties"] if one["id"] == "thresholds"]
    for steps in shown:
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert set(values[1:]) <= known
        assert values[1:] == sorted(values[1:])


@pytest.mark.parametrize("ask", ASKS)
def test_a_query_names_what_the_daemon_exposes(ask: boards.Ask) -> None:
    names = set(re.findall(r"\bcbq_\w+", ask.expr))
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert metrics <= set(METRICS)
    known = FROM_PROMETHEUS.union(*(METRICS[name] for name in metrics))
    if not names or "ALERTS{" in ask.expr:  # what Prometheus adds: up, ALERTS, and the metrics of every process
        known |= {"alertname", "alertstate", "severity", "queue"}
    for inside in re.findall(r"\{([^}]*)\}", ask.expr):
        assert set(re.findall(r"(\w+)(?==~|!=|=)", inside)) <= known
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", ask.expr):
        assert set(re.findall(r"\w+", grouped)) <= known
    assert not re.search(r"\[\d+s\]", ask.expr), "seconds that do not follow the scrapes"


@pytest.mark.parametrize("panel", PANELS)
def test_a_legend_names_labels_that_are_left(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", target["expr"]))))
        assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= grouped


@pytest.mark.parametrize("ask", ASKS)
def test_what_redis_says_is_not_multiplied_by_replicas(ask: boards.Ask) -> None:
    truth = "queue_length|queue_oldest|processing_oldest|retry_o|stuck|untracked|queue_paused|paused_dest|lock_held"
    truth += "|lock_without|lock_ttl|lock_first|lock_stale|last_send|redis_memory"
    assert not re.search(rf"sum( by \([^)]*\))? \((timestamp\()?cbq_({truth})", ask.expr)


def test_links_lead_to_the_other_dashboard_and_set_its_variables() -> None:
    for uid, board in BOARDS.items():
        urls = [link["url"] for link in board["links"]]
        for panel in boards.panels(board):
            for override in panel["fieldConfig"]["overrides"]:
                urls += [link["url"] for one in override["properties"] if one["id"] == "links" for link in one["value"]]
        assert urls, uid
        for url in map(urlsplit, urls):
            other = BOARDS[url.path.removeprefix("/d/")]
            assert other is not board
            set_here = re.findall(r"var-(\w+)=", url.query)
            assert set(set_here) <= variables(other)
    drill_down = [panel for panel in boards.panels(BOARDS["cbq-queues"]) if panel["type"] == "table"]
    assert "var-destination=${__data.fields.Destination:percentencode}" in str(drill_down)
