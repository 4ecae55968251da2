"""``check-config``: whether a configuration can be used, and what the daemon would make of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cbq_exporter.config.loading import Loaded


@click.command("check-config")
@options.config
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, for editors; check nothing.")
@options.output
@options.debug
def check_config(config_path: Path | None, schema: bool, as_json: bool) -> int:
    """Check a configuration, and list everything that is wrong with it. The web config, templates, secrets and tokens
    that it names are checked too."""
    if schema:
        from cbq_exporter.config.schema import schema as schema_of_file

        click.echo(schema_of_file(), nl=False)
        return 0
    from cbq_exporter.config import load

    try:
        loaded = load(config_path)
        warnings = _warnings(loaded)
    except ConfigError as error:
        if not as_json:
            raise
        output.print_json({"ok": False, "problems": error.problems})
        return error.exit_code
    config = loaded.config
    source = "the built-in defaults" if loaded.source is None else str(loaded.source)
    if as_json:
        output.print_json(
            {
                "ok": True,
                "file": None if loaded.source is None else str(loaded.source),
                "redis": config.redis.redacted_url,
                "queues": [{"name": one.name, "mode": one.mode, "prefix": one.prefix} for one in config.queues],
                "warnings": warnings,
            }
        )
        return 0
    click.echo(f"{source}: ok")
    store = f"embedded, in {config.data_dir}" if config.redis.url is None else config.redis.redacted_url
    click.echo(f"store: {store}\n")
    rows = [[one.name, str(one.mode), one.prefix] for one in config.queues]
    click.echo(output.table(["queue", "mode", "prefix"], rows))
    for warning in warnings:
        output.say(f"warning: {warning}")
    return 0


def _warnings(loaded: Loaded) -> list[str]:
    """Of the configuration and of what it names. Raises ConfigError with what is wrong in all the files and variables
    that it names, not only in the first.
    """
    from cbq_exporter.config import warnings
    from cbq_exporter.config.container import inside
    from cbq_exporter.config.exposure import exposed
    from cbq_exporter.config.files import Files
    from cbq_exporter.delivery.proxying import proxy_of
    from cbq_exporter.delivery.receivers import Receivers
    from cbq_exporter.model import Mode
    from cbq_exporter.web.auth import check_tokens
    from cbq_exporter.web.tls import check_web_config

    config = loaded.config
    told = list(warnings(config))
    problems: dict[Problem, None] = {}  # those of destinations come with each queue

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))

    for queue in config.queues:
        with noted():
            proxy_of(queue, Files())
        if queue.mode is Mode.DISPATCH:
            with noted():
                Receivers(queue, config.destinations)
    with noted():
        told += check_web_config(config)
    if problems:
        raise ConfigError(tuple(problems)).read_from(loaded.source or "defaults")
    told += check_tokens(config)
    if not inside(os.environ):  # where all that there is belongs to one user
        told += exposed(config, None if os.environ.get("CBQ_REDIS_URL") else loaded.source)
    return told
