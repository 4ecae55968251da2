"""What a dashboard is made of, as data. ``grafana.py`` makes Grafana's objects of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from monitoring.thresholds import Threshold

# Grafana's names of units.
CALLBACKS = "locale"
PER_SECOND = "cps"
SECONDS = "s"
SHARE = "percentunit"
BYTES = "bytes"
NUMBER = "none"

# Where a single one is one too many, and no rule counts it.
ANY = Threshold(0, "times", "There should be none.")


class Draw(Enum):
    """How a panel shows its queries."""

    NUMBER = auto()  # one number, as of now
    LINES = auto()
    BARS = auto()  # stacked: events, of which most moments have none
    STATES = auto()  # one bar for each series, over time, in words
    TABLE = auto()  # as of now, one row for each set of labels, one column for each query


@dataclass(frozen=True, slots=True)
class Query:
    """``legend`` is a template over labels; in a table the title of the column. ``unit`` and ``bad`` are a column's."""

    expr: str
    legend: str = ""
    unit: str = ""
    bad: Threshold | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """What a value of 0 or 1 is called, and its colour."""

    text: str
    colour: str


YES = Word("yes", "green")
NO = Word("no", "red")


@dataclass(frozen=True, slots=True)
class Panel:
    """``wide`` is of 24 columns, ``high`` of 38 px each. ``late`` and ``bad`` colour it: amber, then red.

    ``empty`` is what it says where there is no series. ``words`` are for 0 and 1. ``columns`` are the labels that
    a table shows, with their titles; it is sorted by its first query, and ``link`` is where a row of it leads.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    draw: Draw = Draw.LINES
    wide: int = 8
    high: int = 7
    late: Threshold | None = None
    bad: Threshold | None = None
    empty: str = ""
    words: tuple[Word, Word] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Link:
    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Row:
    """``question`` is what its panels answer."""

    question: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice among the values of one label. ``many``: several of them, all to begin with."""

    name: str
    title: str
    values: str
    many: bool = False


@dataclass(frozen=True, slots=True)
class Events:
    """Marks on every graph, where ``expr`` is above 0. ``text`` is a template over labels."""

    title: str
    expr: str
    text: str
    tags: tuple[str, ...]
    colour: str


@dataclass(frozen=True, slots=True)
class Board:
    """``uid`` is its place in Grafana. ``link`` leads to the other one."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    events: tuple[Events, ...]
    rows: tuple[Row, ...]
    link: Link

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    wide: int = 3,
    late: Threshold | None = None,
    bad: Threshold | None = None,
    empty: str = "",
) -> Panel:
    """One number as of now."""
    return Panel(title, description, unit, (Query(expr),), Draw.NUMBER, wide, 4, late, bad, empty)
