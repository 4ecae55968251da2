"""The command. All that is heavy is imported when it runs."""

from __future__ import annotations

import click

from cbq_exporter.cli import options
from cbq_exporter.cli.running import run


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=5, max=3600),
    default=60.0,
    show_default=True,
    metavar="N",
    help="How long it takes; draining at the end comes on top.",
)
@options.debug
def demo(seconds: float) -> int:
    """Show in one minute what the product does.

    A daemon with a store of its own, four receivers of which some fail, a producer, and a kill -9 half-way. All of
    it is real, and private to the demo. Exit code 1 if any callback is missing at the end.
    """
    from cbq_exporter.cli.demo.course import follow

    return run(follow(seconds))
