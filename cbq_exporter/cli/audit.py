"""``audit``: who did what to a queue, why, and what came of it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.kinds import Duration
from cbq_exporter.cli.operating import Desk, open_desk
from cbq_exporter.cli.running import look_for_newer, run
from cbq_exporter.model import AuditEntry, OperationName

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_SHOWN = 10_000
_SECONDS = ("older_than", "seconds")  # of an operation, as it was asked for


@click.command
@options.config
@options.queue
@click.option(
    "--operation",
    type=click.Choice([str(one) for one in OperationName]),
    metavar="OPERATION",
    help=f"Only this operation: {', '.join(OperationName)}.",
)
@click.option("--actor", metavar="TEXT", help="Only of actors that contain this, such as cli or alice@.")
@click.option("--since", type=Duration(), metavar="DURATION", help="Only of the last while, such as 2h or 7d.")
@click.option("--limit", type=click.IntRange(1, _MOST_SHOWN), default=50, show_default=True, help="How many at most.")
@click.option("-f", "--follow", is_flag=True, help="Then show each new entry, until Ctrl-C.")
@options.output
@options.debug
def audit(
    config_path: Path | None,
    queue_name: str | None,
    operation: str | None,
    actor: str | None,
    since: float | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show who did what to a queue, the newest last. With -o json: one entry a line."""

    async def work() -> None:
        async with open_desk(config_path, queue_name) as desk:
            await look_for_newer(desk.store.connections, desk.store.queues[desk.queue.name].keys)
            last = await _list(desk, operation, actor, since, limit, as_json)
            if follow:
                await _follow(desk, last, operation, actor, as_json)

    if not follow:
        run(work())
        return
    with suppress(KeyboardInterrupt):
        run(work())


async def _list(
    desk: Desk, operation: str | None, actor: str | None, since: float | None, limit: int, as_json: bool
) -> str:
    """Returns the id of the newest entry of all, shown or not."""
    from cbq_exporter.store.audit import BEGINNING

    name = desk.queue.name
    newest = await desk.audit.entries(name, count=1)
    after = None
    if since is not None:
        after = await desk.store.queues[name].store_now_ms() / 1000 - since
    found = await desk.audit.entries(name, count=limit, operation=operation, actor=actor, since=after)
    if as_json:
        for entry in found:
            output.print_json_line(entry)
    elif found:
        click.echo(_table(found))
    else:
        output.say(f"no entries in the audit of {name}")
    sys.stdout.flush()
    return newest[-1].id if newest else BEGINNING


async def _follow(desk: Desk, last: str, operation: str | None, actor: str | None, as_json: bool) -> None:
    from cbq_exporter.services.audit import fits

    async for entry in desk.audit.follow(desk.queue.name, last):
        if not fits(entry, operation, actor):
            continue
        if as_json:
            output.print_json_line(entry)
        else:
            click.echo("  ".join(cell for cell in _row(entry) if cell != output.UNKNOWN))
        sys.stdout.flush()


def _table(entries: list[AuditEntry]) -> str:
    return output.table(["time", "who", "operation", "result", "what"], [_row(one) for one in entries], fold="what")


def _row(entry: AuditEntry) -> list[str]:
    what = [entry.reason, _phrase(entry.before), _phrase(entry.after)]
    return [
        output.moment(entry.at),
        output.text(str(entry.actor)),
        output.text(entry.operation),
        str(entry.result),
        output.text("; ".join(filter(None, what)), 500),
    ]


def _phrase(fields: Mapping[str, Any]) -> str:
    """What is worth a place in a table; -o json has all of it."""
    told = {name: value for name, value in fields.items() if value and not name.endswith("_at")}
    return ", ".join(name if value is True else f"{name} {_plain(name, value)}" for name, value in told.items())


def _plain(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    if name in _SECONDS and isinstance(value, int | float):
        from cbq_exporter.config.kinds import write_duration

        return write_duration(value)
    return str(value)
