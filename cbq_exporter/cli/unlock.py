"""``unlock``: free the send lock."""

from __future__ import annotations

from pathlib import Path

import click

from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.running import run


@click.command
@click.option("--force", is_flag=True, help="Also a lock that would expire by itself.")
@changing
def unlock(
    config_path: Path | None, queue_name: str | None, force: bool, yes: bool, dry_run: bool, why: str, as_json: bool
) -> None:
    """Free the send lock of a queue, when its holder is gone.

    A lock that will expire by itself is refused without --force. It is freed only if it still is what was shown.
    """
    from cbq_exporter.services.operations import Unlock

    how = How(yes, dry_run, why, as_json)
    run(operate(config_path, queue_name, lambda name: Unlock(name, force), how, lambda _: "the lock is free"))
