"""How commands write: data on standard output, everything else on standard error.

Tables are made by hand: they are a few lines, and importing a library for them would take longer than the
command itself.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from cbq_exporter.cli import interrupts
from cbq_exporter.errors import RefusedError, UsageError
from cbq_exporter.logs import printable
from cbq_exporter.phrases import age as age
from cbq_exporter.phrases import count as count
from cbq_exporter.phrases import size as size

UNKNOWN = "-"
ABORTED = "aborted: nothing was changed"
_WIDE = 200  # columns, where no terminal sets a limit
_LAST_MOMENT = 250e9  # epoch seconds; beyond it dates end
_NARROWEST = 12  # columns that a folded cell keeps
_BEYOND_ASCII = re.compile(r"[^\x20-\x7e\n]+")


def say(line: str) -> None:
    """A message for people."""
    click.echo(line, err=True)


def print_json(value: Any) -> None:
    """Dataclasses and enumerations are written as what they hold."""
    import msgspec

    click.echo(_shown(msgspec.json.format(msgspec.json.encode(value), indent=2)))


def print_json_line(value: Any) -> None:
    """The same on one line."""
    import msgspec

    click.echo(_shown(msgspec.json.encode(value)))


def write_payload(payload: bytes, instead: str) -> None:
    """Byte for byte. A terminal would carry out what others wrote for it: there only what is plain text is written,
    and otherwise UsageError says to take ``instead``.
    """
    if sys.stdout.isatty() and not _is_plain(payload):
        raise UsageError(f"it is no plain text, and a terminal would obey what looks like commands to it: {instead}")
    sys.stdout.buffer.write(payload)


def _is_plain(payload: bytes) -> bool:
    try:
        return all(line.isprintable() for line in re.split(r"\r?\n|\t", payload.decode()))
    except UnicodeDecodeError:
        return False


def _shown(encoded: bytes) -> str:
    """JSON leaves as they are DEL, the controls after it, which begin commands to terminals too, and the signs that
    turn the direction of writing: here they are escaped, which is the same to whoever reads JSON.
    """
    return _BEYOND_ASCII.sub(lambda found: "".join(map(_escaped, found[0])), encoded.decode())


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def coloured(stream: TextIO | None = None) -> bool:
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str | None = None, *, bold: bool = False) -> str:
    """``text`` in a colour, where standard output shows colours."""
    return click.style(text, fg=colour, bold=bold or None) if coloured() else text


def columns() -> int:
    """How wide standard output is."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return _WIDE
    import shutil

    return shutil.get_terminal_size().columns


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    fold: str | None = None,
    width: int | None = None,
) -> str:
    """Aligned columns under their headings. The column ``fold`` goes over several lines where there is no room.

    A row may have colours in its cells, but not in a folded one.
    """
    widths = [max(len(click.unstyle(row[i])) for row in [headings, *rows]) for i in range(len(headings))]
    if fold is not None:
        i = headings.index(fold)
        others = sum(widths) - widths[i] + 2 * (len(widths) - 1)
        widths[i] = min(widths[i], max(_NARROWEST, (width or columns()) - others))
    lines = [paint(_line(headings, headings, widths, right), bold=True)]
    for row in rows:
        cells = [
            (textwrap.wrap(cell, widths[i]) or [""]) if headings[i] == fold else [cell] for i, cell in enumerate(row)
        ]
        for number in range(max(map(len, cells))):
            part = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append(_line(headings, part, widths, right))
    return "\n".join(lines)


def _line(headings: Sequence[str], cells: Sequence[str], widths: Sequence[int], right: Sequence[str]) -> str:
    parts = []
    for heading, cell, width in zip(headings, cells, widths, strict=True):
        space = " " * (width - len(click.unstyle(cell)))
        parts.append(space + cell if heading in right else cell + space)
    return "  ".join(parts).rstrip()


def number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def moment(at: float) -> str:
    """A time of epoch seconds in local time."""
    from datetime import UTC, datetime

    return UNKNOWN if not 0 < at < _LAST_MOMENT else f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def text(value: str, most: int = 200) -> str:
    """What came from outside, safe to show in one line."""
    return printable(value, most) if value else UNKNOWN


def confirm(question: str, *, yes: bool) -> None:
    """Ask before a change; raises RefusedError where the answer is not yes, or where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("nothing was changed: there is no terminal to ask on; add --yes, or --dry-run to only look")
    with asking():
        if not click.confirm(question, err=True):
            raise RefusedError(ABORTED)


def ask(question: str, default: str) -> str:
    """A line from the terminal; raises RefusedError where nobody can answer, or does not want to."""
    if not sys.stdin.isatty():
        raise RefusedError("there is no terminal to ask on; say it with options", unless="yes")
    with asking():
        answer: str = click.prompt(question, err=True, default=default)
    return answer.strip()


@contextmanager
def asking() -> Iterator[None]:
    """A question is on the terminal: Ctrl-C and the end of input are a no to it."""
    try:
        if interrupts.seen():  # and was swallowed on the way here
            raise KeyboardInterrupt
        yield
    except (click.Abort, KeyboardInterrupt):
        say("")
        raise RefusedError(ABORTED) from None


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error, nothing elsewhere; call what it gives with how many are done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
