"""``serve``: the daemon."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import click

from cbq_exporter.cli import options
from cbq_exporter.errors import CbqError

# Objects that may be garbage. It runs for long, and its memory must stay small; but about as many are under way, which
# are none, and looking at them again and again took a twelfth of a callback's time.
_COLLECTED_AT = 5000


@click.command
@options.config
@options.debug
@click.pass_obj
def serve(run: options.Run, config_path: Path | None) -> int:
    """Run the daemon until it is stopped.

    SIGTERM and Ctrl-C stop it gracefully: sends in flight may finish, what was not sent stays queued. A second
    signal ends it at once, and even that loses nothing. SIGHUP reads the configuration again.
    """
    if not hasattr(signal, "SIGHUP"):
        raise CbqError("the daemon needs Linux or macOS; on Windows the other commands work, with redis.url set")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon can do what it asks for

    from cbq_exporter import config, daemon

    loaded = config.load(config_path)
    gc.set_threshold(_COLLECTED_AT)
    return daemon.run(loaded, debug=run.debug)
