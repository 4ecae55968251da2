"""What the demo shows: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cbq_exporter.cli import output
from cbq_exporter.cli.demo.reckoning import Reckoning
from cbq_exporter.cli.demo.story import SCENES, Scene

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_EVERY = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One receiver."""

    name: str
    does: str
    requests: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What is seen at one moment. Lengths are None while the store does not answer; ``pid`` while no daemon runs."""

    elapsed: float
    seconds: float
    scene: Scene
    pid: int | None
    metrics_url: str
    accepted: int
    delivered: int
    pending: int | None
    processing: int | None
    retry: int | None
    dead: int | None
    attempts: int
    retried: int
    recovered: int
    failures: Mapping[str, int] = field(default_factory=dict)
    dead_by_reason: Mapping[str, int] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    per_second: Sequence[int] = ()  # deliveries, the last second last

    @property
    def rate(self) -> float:
        last = self.per_second[-3:]
        return sum(last) / len(last) if last else 0.0


@contextmanager
def shown() -> Iterator[Callable[[Moment], None]]:
    if not sys.stdout.isatty():
        yield _Lines().show
        return
    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda moment: live.update(picture(moment), refresh=True)


class _Lines:
    """Every scene is told, also one that was over before there was time to look."""

    def __init__(self) -> None:
        self._told = 0
        self._next = 0.0

    def show(self, moment: Moment) -> None:
        new = SCENES[self._told : SCENES.index(moment.scene) + 1]
        for scene in new:
            click.echo(f"\n{scene.title}: {scene.caption}")
        self._told += len(new)
        if new or moment.elapsed >= self._next:
            self._next = moment.elapsed + _PLAIN_EVERY
            click.echo(line(moment))


def line(moment: Moment) -> str:
    lengths = (
        f"{name} {output.number(value)}"
        for name, value in (
            ("pending", moment.pending),
            ("processing", moment.processing),
            ("retry", moment.retry),
            ("dead", moment.dead),
        )
    )
    return (
        f"{moment.elapsed:5.1f}s  accepted {moment.accepted:,}  delivered {moment.delivered:,} ({moment.rate:.0f}/s)  "
        + "  ".join(lengths)
        + f"  attempts {moment.attempts:,}  failures {_counts(moment.failures)}"
    )


def picture(moment: Moment) -> RenderableType:
    """Fits into 80 columns and 24 lines."""
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(
        Text("cbq-exporter demo", style="bold"),
        Text(f"{_clock(moment.elapsed)} of {_clock(moment.seconds)}", style="dim"),
    )
    alive = (
        Text(f"daemon {moment.pid} runs, {moment.metrics_url}", style="green")
        if moment.pid is not None
        else Text("no daemon runs", style="bold red")
    )
    dead = moment.pid is None
    scene = Panel(
        Text(moment.scene.caption),
        title=Text(moment.scene.title, style="bold red" if dead else "bold cyan"),
        title_align="left",
        border_style="red" if dead else "cyan",
        height=4,
    )
    return Group(head, alive, scene, _flow(moment), Text(), _receivers(moment), Text(), _outcomes(moment))


def _flow(moment: Moment) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    for _ in range(6):
        table.add_column(justify="right", min_width=8)
    names = ("accepted", "pending", "processing", "retry", "dead", "delivered")
    values = (moment.accepted, moment.pending, moment.processing, moment.retry, moment.dead, moment.delivered)
    styles = ("bold", "bold", "bold", "yellow", "magenta", "bold green")
    table.add_row(*(Text(name, style="dim") for name in names))
    table.add_row(*(Text(output.number(value), style=style) for value, style in zip(values, styles, strict=True)))
    return table


def _receivers(moment: Moment) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("receiver", style="bold")
    table.add_column("what it does", min_width=26)
    for name in ("requests", "delivered", "failed"):
        table.add_column(name, justify="right")
    for row in moment.rows:
        failed = row.requests - row.delivered
        table.add_row(
            row.name,
            row.does,
            output.number(row.requests),
            Text(output.number(row.delivered), style="green"),
            Text(output.number(failed), style="yellow" if failed else "dim"),
        )
    return table


def _outcomes(moment: Moment) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_row("delivered/s", Text.assemble((_bars(moment.per_second), "green"), f" {moment.rate:.0f}"))
    table.add_row(
        "attempts",
        f"{moment.attempts:,}, of which {moment.retried:,} went to retry; {moment.recovered:,} recovered",
    )
    table.add_row("failures", _counts(moment.failures))
    table.add_row("dead letters", _counts(moment.dead_by_reason))
    return table


def _bars(per_second: Sequence[int], width: int = 40) -> str:
    last = per_second[-width:]
    most = max(1, *last) if last else 1
    return "".join(_BARS[round(one / most * (len(_BARS) - 1))] for one in last)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "none"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def summary(result: Reckoning) -> str:
    """The last lines, in which the numbers must be equal."""
    sign = "=" if result.exact else "is not"
    again = f"{result.again:,} delivered twice: the answer died with the killed daemon" if result.again else "none"
    lines = [
        "",
        f"accepted {result.accepted:,} {sign} delivered {result.delivered:,} + dead {result.dead:,}",
        f"dead     {_counts(result.dead_by_reason)}",
        f"again    {again}",
        f"missing  {output.number(result.missing)}",
    ]
    if result.unsettled:
        lines.append(f"waiting  {_counts(result.unsettled)}: time was up before they were settled")
    end = output.paint("Nothing was lost.", "green", bold=True)
    if not result.exact:
        end = output.paint("The numbers must be equal: this is a bug.", "red", bold=True)
    return "\n".join([*lines, "", end])
