"""The options that several commands share. Imports nothing heavy: ``--help`` must be quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Run:
    """What is known about this run of the program before its command starts; the object of click's context."""

    debug: bool = False


def _note_debug(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.ensure_object(Run).debug = True


def debug(command: F) -> F:
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_debug,
        help="Show the traceback of an error, and log details.",
    )(command)


def config(command: F) -> F:
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(readable=False, path_type=Path),  # whether it can be read is told by who reads it
        metavar="FILE",
        help="The configuration. Without it: $CBQ_CONFIG, ./config.yaml, or the defaults.",
    )(command)


def _queues_named(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """For completion: the queues of the configuration that this command line names, if it can be read."""
    from cbq_exporter.config import load
    from cbq_exporter.errors import ConfigError

    try:
        config = load(context.params.get("config_path")).config
    except ConfigError:
        return []
    return [one.name for one in config.queues if one.name.startswith(begun)]


def queue(command: F) -> F:
    return click.option(
        "-q",
        "--queue",
        "queue_name",
        metavar="NAME",
        shell_complete=_queues_named,
        help="The queue. May be left out where only one is configured.",
    )(command)


def output(command: F) -> F:
    return click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=lambda _context, _option, value: value == "json",
        help="How to print.",
    )(command)
