"""``pause`` and ``resume``: of a queue, or of one destination."""

from __future__ import annotations

from pathlib import Path

import click

from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.options import F
from cbq_exporter.cli.running import run


def _destination(command: F) -> F:
    return click.option(
        "--destination",
        metavar="NAME",
        help="Only what goes to this host or receiver, as metrics and dead list name it.",
    )(command)


@click.command
@_destination
@changing
def pause(
    config_path: Path | None,
    queue_name: str | None,
    destination: str | None,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """Send nothing more: of a queue, or to one destination. Callbacks wait, and none is lost.

    Daemons see it within a second, and it outlives them.
    """
    from cbq_exporter.services.operations import Pause

    how = How(yes, dry_run, why, as_json)
    run(operate(config_path, queue_name, lambda name: Pause(name, _named(destination)), how, lambda _: "paused"))


@click.command
@_destination
@changing
def resume(
    config_path: Path | None,
    queue_name: str | None,
    destination: str | None,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """End a pause of a queue, or of one destination."""
    from cbq_exporter.services.operations import Resume

    how = How(yes, dry_run, why, as_json)
    run(operate(config_path, queue_name, lambda name: Resume(name, _named(destination)), how, lambda _: "resumed"))


def _named(destination: str | None) -> str | None:
    """As URLs are read: the case of a host means nothing."""
    return destination.lower() if destination else None
