"""The committed dashboards, read as Grafana reads them: panels with their queries, variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = tuple(sorted((ROOT / "grafana" / "dashboards").glob("*.json")))


@dataclass(frozen=True, slots=True)
class Ask:
    """One query of a panel or of an annotation. ``instant``: as of now; otherwise over the time shown."""

    board: str
    place: str
    expr: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.board} / {self.place}"


def load(path: Path) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return board


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the headings of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def asks(board: dict[str, Any]) -> Iterator[Ask]:
    rows = {panel["id"]: panel["title"] for panel in board["panels"] if panel["type"] == "row"}
    for panel in panels(board):
        row = rows[max(number for number in rows if number < panel["id"])]
        for target in panel["targets"]:
            place = f"{row} / {panel['title']} / {target['refId']}"
            yield Ask(board["title"], place, target["expr"], target.get("instant", False))
    for annotation in board["annotations"]["list"]:
        yield Ask(board["title"], f"annotation {annotation['name']}", annotation["expr"], False)


def variables(board: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The name of each that is asked of Prometheus, and the selector and the label that it takes its values from."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            parts = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert parts, variable["query"]
            yield variable["name"], parts[1], parts[2]


def filled(expr: str, values: Mapping[str, str]) -> str:
    """``expr`` with ``$name`` replaced, the longest names first."""
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(f"${name}", values[name])
    return expr
