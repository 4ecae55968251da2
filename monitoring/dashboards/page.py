"""The page about the dashboards: ``docs/dashboards.md``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from monitoring.dashboards.panels import CALLBACKS, NUMBER, PER_SECOND, SECONDS, SHARE, Board, Panel
from monitoring.rules import duration
from monitoring.thresholds import Threshold

PATH = "docs/dashboards.md"

_INTRODUCTION = """\
# Dashboards

Two Grafana dashboards come with the exporter, as files that Grafana reads by itself (`grafana/provisioning`):

- **Callback queues** is for whoever is on call: a row for each question, the urgent ones first.
- **One destination** is reached by a click on a destination in the first one.

`docker compose -f deploy/compose.yaml up` starts everything with them. In a Grafana of your own, mount
`grafana/provisioning` at `/etc/grafana/provisioning` and `grafana/dashboards` at
`/var/lib/grafana/dashboards/cbq-exporter`, or import the two files of `grafana/dashboards` by hand. They ask for the
Prometheus to use, and need Grafana 11 or newer.

Choices at the top: the Prometheus, the job (one job is one Redis), queues, and daemons. Numbers that Redis tells are
the same from every daemon and are shown once (`max by (queue)`); what daemons count themselves is summed over those
that are chosen. Marks on the graphs are alerts that fire, operations, recoveries and released locks. Operations are
those that daemons carried out; what people did on the command line is in `cbq-exporter audit`.

Colours change where the alerting rules do: both take their thresholds from `monitoring/thresholds.py`.
Dashboards are written in `monitoring/dashboards/`; `make docs` makes the files and this page. Changes that are
made in Grafana are lost at its next start.
"""

_WRITTEN = {CALLBACKS: "{:g}", NUMBER: "{:g}", PER_SECOND: "{:g}/s", SHARE: "{:.0%}"}


def markdown(boards: Iterable[Board]) -> str:
    return _INTRODUCTION + "".join("".join(_board(board)) for board in boards)


def _board(board: Board) -> Iterator[str]:
    yield f"\n## {board.title}\n\n{board.description}\n"
    for row in board.rows:
        yield f"\n### {row.question}\n\n| panel | what it says | amber above | red above |\n|---|---|---|---|\n"
        for panel in row.panels:
            late, bad = _limit(panel, panel.late), _limit(panel, panel.bad)
            yield f"| {panel.title} | {panel.description} | {late} | {bad} |\n"


def _limit(panel: Panel, threshold: Threshold | None) -> str:
    if threshold is None:
        return ""
    if panel.unit == SECONDS:
        return duration(threshold.value)
    return _WRITTEN[panel.unit].format(threshold.value)
