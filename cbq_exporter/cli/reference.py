"""The page of all commands, written from what ``--help`` says of each."""

from __future__ import annotations

from collections.abc import Iterator

import click

from cbq_exporter.cli.main import app

PATH = "docs/cli.md"
COLUMNS = 80

_HEAD = """\
# Commands

Every command has `--help`, which is what stands here. Data goes to standard output, messages go to standard error.
What changes something shows the state and the plan first, and then asks; without a terminal it needs `--yes`.

| exit code | what it means |
|---|---|
| 0 | it went well |
| 1 | it failed |
| 2 | the command line is wrong |
| 3 | a safety rule refused, or you said no |
| 4 | Redis cannot be reached, or cannot be used |
| 5 | what was planned no longer matched what was there |
| 130, 141 | it was interrupted; whoever read its output went away |
"""


def contexts() -> Iterator[click.Context]:
    """One for each command and group, in the order of the program's own list."""
    return _within(app.make_context("cbq-exporter", [], resilient_parsing=True, terminal_width=COLUMNS))


def markdown() -> str:
    sections = [f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n" for context in contexts()]
    return "\n".join([_HEAD, *sections])


def _within(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _within(command.make_context(name, [], parent=context, resilient_parsing=True))
