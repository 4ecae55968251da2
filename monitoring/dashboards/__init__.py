"""The two dashboards, and the page about them, for ``make docs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monitoring.dashboards import grafana, page
from monitoring.dashboards.destination import DESTINATION
from monitoring.dashboards.queues import QUEUES

BOARDS = (QUEUES, DESTINATION)

FILES: Mapping[str, Callable[[], str]] = {
    "grafana/dashboards/queues.json": lambda: grafana.json(QUEUES),
    "grafana/dashboards/destination.json": lambda: grafana.json(DESTINATION),
    page.PATH: lambda: page.markdown(BOARDS),
}
