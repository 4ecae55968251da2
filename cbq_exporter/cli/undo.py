"""``undo``: put back what a reset has moved to the trash."""

from __future__ import annotations

from pathlib import Path

import click

from cbq_exporter.cli import output
from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.running import run


@click.command
@click.option("--trash", "trash_id", metavar="ID", help="Which reset; without it the last.")
@changing
def undo(
    config_path: Path | None,
    queue_name: str | None,
    trash_id: str | None,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """Put back what a reset has moved to the trash, in its order and in front of what arrived since.

    It can be interrupted and run again: nothing is lost, and nothing is put back twice.
    """
    from cbq_exporter.services.operations import Undo

    how = How(yes, dry_run, why, as_json)
    run(
        operate(
            config_path,
            queue_name,
            lambda name: Undo(name, trash_id),
            how,
            lambda done: f"put {output.count(done.counts['callbacks'], 'callback')} back",
        )
    )
