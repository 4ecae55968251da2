"""``recover``: put back to pending what is left in processing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import output
from cbq_exporter.cli.kinds import Duration
from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.running import run
from cbq_exporter.errors import UsageError

if TYPE_CHECKING:
    from cbq_exporter.services.operations import Executed


@click.command
@click.option("--all", "everything", is_flag=True, help="All that no live lease of a daemon holds. The default.")
@click.option(
    "--older-than", type=Duration(), metavar="DURATION", help="Only what was first seen longer ago, such as 10m."
)
@changing
def recover(
    config_path: Path | None,
    queue_name: str | None,
    everything: bool,
    older_than: float | None,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """Put callbacks that are left in processing back to the head of pending.

    What a daemon holds a live lease of stays. What workers that are not cbq-exporter are sending is sent again.
    """
    from cbq_exporter.services.operations import Recover

    if everything and older_than is not None:
        raise UsageError("say --all or --older-than, not both")
    how = How(yes, dry_run, why, as_json)
    run(operate(config_path, queue_name, lambda name: Recover(name, older_than), how, _past))


def _past(executed: Executed) -> str:
    said = f"recovered {output.count(executed.counts['callbacks'], 'callback')}"
    dead = executed.counts["dead"]
    return f"{said}; {output.count(dead, 'callback')} went to the dead letters" if dead else said
