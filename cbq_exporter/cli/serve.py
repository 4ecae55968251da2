"""``serve``: the daemon."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from cbq_exporter.cli import options


@click.command
@options.config
@options.debug
@click.pass_obj
def serve(run: options.Run, config_path: Path | None) -> int:
    """Run the daemon until it is stopped.

    SIGTERM and Ctrl-C stop it gracefully: sends in flight may finish, what was not sent stays queued. A second
    signal ends it at once, and even that loses nothing.
    """
    from cbq_exporter import config, daemon, logs

    loaded = config.load(config_path)
    log = loaded.config.log
    logs.configure("debug" if run.debug else log.level, log.format)
    gc.set_threshold(*options.USUAL_COLLECTIONS)  # it runs for long: its memory must stay small
    return daemon.run(loaded, debug=run.debug)
