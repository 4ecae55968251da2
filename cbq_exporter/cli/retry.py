"""``retry``: look at the callbacks that wait for their next attempt, or have them tried now."""

from __future__ import annotations

from pathlib import Path

import click

from cbq_exporter.cli import kept, options, output
from cbq_exporter.cli.operating import How, changing, operate
from cbq_exporter.cli.running import open_queue, run
from cbq_exporter.errors import UsageError
from cbq_exporter.model import WaitingRetry


@click.group()
def retry() -> None:
    """See what waits in retry for another attempt, or try it now."""


@retry.command("list")
@options.config
@options.queue
@click.option("--destination", metavar="NAME", help="Is for this host or receiver.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many to show.")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="How many to leave out first.")
@kept.with_task_ids
@options.output
@options.debug
def list_waiting(
    config_path: Path | None,
    queue_name: str | None,
    destination: str | None,
    limit: int,
    offset: int,
    with_tasks: bool,
    as_json: bool,
) -> None:
    """List what waits in retry, the soonest due first."""
    from cbq_exporter.services import retries

    async def work() -> None:
        async with open_queue(config_path, queue_name) as (config, queue):
            # One more than is shown tells whether there are more.
            found = await retries.soonest(queue, destination, offset=offset, limit=limit + 1)
            now = await queue.store_now_ms() / 1000
            shown = found[:limit]
            tasks = await kept.task_ids(queue.retries, shown) if with_tasks else None
        if as_json:
            output.print_json(kept.listed(shown, tasks))
        elif shown:
            click.echo(_table(shown, now, tasks))
        else:
            output.say(f"nothing waits in retry in {config.name}" if offset == 0 else "nothing more waits in retry")
        if len(found) > limit:
            output.say(f"there are more: --offset {offset + limit} shows the next")

    run(work())


def _table(waiting: list[WaitingRetry], now: float, tasks: kept.TaskIds | None) -> str:
    rows = [
        [
            output.text(one.id),
            *kept.task_cell(one, tasks),
            output.text(one.destination),
            output.number(one.attempts),
            output.age(one.due_at - now) if one.due_at > now else "now",
            output.text(kept.short(one.failure), 60),
        ]
        for one in waiting
    ]
    headings = ["id", *kept.task_heading(tasks), "destination", "tries", "due in", "failure"]
    return output.table(headings, rows, right=["tries", "due in"], fold="destination")


@retry.command()
@click.argument("retry_id", metavar="ID")
@options.config
@options.queue
@click.option("--raw", is_flag=True, help="Write the payload's bytes, and nothing else.")
@options.output
@options.debug
def show(config_path: Path | None, queue_name: str | None, retry_id: str, raw: bool, as_json: bool) -> None:
    """Show one callback that waits: why, until when, and what it holds."""
    from cbq_exporter.services import retries

    async def work() -> None:
        async with open_queue(config_path, queue_name) as (config, queue):
            one = await retries.one(queue, retry_id)
        about = [
            ("id", output.text(one.id)),
            ("queue", config.name),
            *kept.lines(one),
            ("due", output.moment(one.due_at)),
        ]
        kept.show(one, about, raw=raw, as_json=as_json)

    run(work())


@retry.command()
@click.option("--destination", metavar="NAME", help="Is for this host or receiver.")
@click.option("--all", "everything", is_flag=True, help="All that has failed and waits.")
@changing
def now(
    config_path: Path | None,
    queue_name: str | None,
    destination: str | None,
    everything: bool,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """Make due now what has failed and waits for its next attempt."""
    from cbq_exporter.services.operations import RetryNow

    if (destination is not None) + everything != 1:
        raise UsageError("say what is to be tried now: --destination, or --all")
    run(
        operate(
            config_path,
            queue_name,
            lambda queue: RetryNow(queue, destination),
            How(yes, dry_run, why, as_json),
            lambda executed: f"made {output.count(executed.counts['callbacks'], 'callback')} due",
        )
    )
