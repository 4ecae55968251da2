"""``reset``: move everything of a queue to the trash."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import output
from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.running import configured, queue_config, run
from cbq_exporter.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from cbq_exporter.services.operations import Executed, Plan


@click.command
@click.option("--force", is_flag=True, help="Also while a worker that is not cbq-exporter holds the send lock.")
@changing
def reset(
    config_path: Path | None, queue_name: str | None, force: bool, yes: bool, dry_run: bool, why: str, as_json: bool
) -> None:
    """Move everything of a queue to the trash: callbacks in every state, dead letters, statistics and the lock.

    It asks for the queue's name; --yes takes it from --queue, which must be given then. What was moved is kept for
    a time, and undo puts it back.
    """
    from cbq_exporter.services.operations import Reset

    if yes and queue_name is None:
        name = queue_config(configured(config_path), None).name
        raise UsageError(f"reset --yes needs the queue's name: --queue {name}")

    def ask(plan: Plan) -> None:
        if not yes:
            _ask_for_name(plan.operation.queue)

    def past(executed: Executed) -> str:
        moved = output.count(sum(executed.counts.values()), "callback")
        assert executed.undo is not None
        return f"moved {moved} to the trash; the way back: {_way_back(executed.undo, config_path, queue_name)}"

    how = How(yes, dry_run, why, as_json)
    run(operate(config_path, queue_name, lambda name: Reset(name, force), how, past, ask=ask))


def _ask_for_name(name: str) -> None:
    if not sys.stdin.isatty():
        raise RefusedError(
            f"nothing was changed: there is no terminal to ask on; add --yes --queue {name}, or --dry-run to only look"
        )
    with output.asking():
        typed = click.prompt("Type the queue's name to reset it", err=True, default="", show_default=False)
    if typed != name:
        raise RefusedError(output.ABORTED)


def _way_back(reset_id: str, config_path: Path | None, queue_name: str | None) -> str:
    """The command, with the options that led to this queue: so it can be copied."""
    options = ["-c", str(config_path)] if config_path is not None else []
    options += ["-q", queue_name] if queue_name is not None else []
    return shlex.join(["cbq-exporter", "undo", *options, "--trash", reset_id])
