"""``python -m loop [QUEUE ...]``: start everything, break one thing after the other, and tell what happens.

With names of queues only their chapters are told.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cbq_exporter.model import AlertOutcome
from loop import shipped
from loop.chapters import CHAPTERS, INTERVAL, Chapter
from loop.story import Event, Story
from loop.world import World, running

_STYLES = {"fault": "bold red", "prometheus": "yellow", "daemon": "bold green", "people": "magenta", "receiver": "cyan"}
_NEEDED = ("prometheus", "prometheus-alertmanager")  # programs, and Debian's packages of the same names
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Told:
    """A chapter that has been told, and what was wrong with it."""

    chapter: Chapter
    story: Story
    wrong: list[str]


def main(names: Sequence[str]) -> int:
    """The exit code: 1 where something was not healed, or too late; 2 where a program or a queue does not exist."""
    if unknown := set(names) - {chapter.name for chapter in CHAPTERS}:
        there = ", ".join(chapter.name for chapter in CHAPTERS)
        print(f"loop: no such queue: {', '.join(sorted(unknown))}; there are {there}", file=sys.stderr)
        return 2
    if missing := [one for one in _NEEDED if shutil.which(one) is None]:
        print(f"loop: not found. On Debian and Ubuntu: apt install {' '.join(missing)}", file=sys.stderr)
        return 2
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    chapters = [chapter for chapter in CHAPTERS if not names or chapter.name in names]
    console = Console(highlight=False)
    try:
        console.print("Starting a store, a receiver, two daemons, Alertmanager and Prometheus ...", style="dim")
        with running(*(chapter.settings for chapter in chapters)) as world:
            _introduce(console, world)
            told = [_tell(console, world, chapter) for chapter in chapters]
            sent = _sent(world)
    except KeyboardInterrupt as interrupt:
        print("loop: interrupted; everything that it had started is ended", file=sys.stderr)
        return 128 + int(interrupt.args[0])
    console.print()
    console.print(_summary(told))
    console.print(f"\nAlerts that the two daemons were sent: {sent}.")
    for one in told:
        for reason in one.wrong:
            console.print(Text(f"{one.chapter.name}: {reason}", style="bold red"))
    return 1 if any(one.wrong for one in told) else 0


def _interrupt(number: int, _: FrameType | None) -> None:
    """Once: nothing may disturb the end of what was started."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def _introduce(console: Console, world: World) -> None:
    urls = [("daemon", f"{daemon.url}/metrics") for daemon in world.daemons]
    urls += [("prometheus", f"{world.prometheus.url}/alerts"), ("alertmanager", f"{world.alertmanager.url}/#/alerts")]
    for name, url in urls:
        console.print(Text.assemble((f"{name:14}", "dim"), url))
    said = f"The shipped rules, {shipped.FASTER} times faster; scraped and evaluated every {INTERVAL} s."
    console.print(Text(said, style="dim"))


def _tell(console: Console, world: World, chapter: Chapter) -> _Told:
    console.print(Text(f"\n{chapter.title} (queue {chapter.name})", style="bold"))

    def tell(event: Event) -> None:
        who = (f"{event.who:12}", _STYLES[event.who])
        console.print(Text.assemble((f"{event.at:6.1f} s  ", "dim"), who, event.what))

    story = chapter.play(world, tell)
    return _Told(chapter, story, chapter.wrong(story))


def _summary(told: Sequence[_Told]) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("queue", style="bold")
    table.add_column("alert")
    for name in ("fired", "healed", "at most"):
        table.add_column(name, justify="right")
    table.add_column("by")
    for one in told:
        fired = one.story.fired.get(one.chapter.alert or "")
        table.add_row(
            one.chapter.name,
            one.chapter.alert or "-",
            _seconds(fired),
            _seconds(one.story.healed_in),
            _seconds(one.chapter.within),
            ", ".join(filter(None, (one.chapter.trigger, one.chapter.operation))),
        )
    return table


def _sent(world: World) -> str:
    """How many came to what; of each firing both daemons are told."""
    counts = {outcome: world.counted("cbq_alerts_received_total", outcome=outcome) for outcome in AlertOutcome}
    return ", ".join(f"{count:g} {outcome}" for outcome, count in counts.items() if count) or "none"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
