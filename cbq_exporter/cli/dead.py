"""``dead``: look at the callbacks that were given up, send them again, or delete them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import kept, options, output
from cbq_exporter.cli.kinds import Duration
from cbq_exporter.cli.operating import How, carry_out, changing, open_desk, show_plan
from cbq_exporter.cli.options import F
from cbq_exporter.cli.running import open_queue, run
from cbq_exporter.errors import UsageError
from cbq_exporter.model import DeadLetter, DeadReason

if TYPE_CHECKING:
    from cbq_exporter.services.dead_letters import Selection
    from cbq_exporter.services.operations import PurgeDead, RetryDead


def _conditions(command: F) -> F:
    for option in (
        click.option("--older-than", type=Duration(), metavar="DURATION", help="Died longer ago, such as 12h or 7d."),
        click.option("--destination", metavar="NAME", help="Was for this host or receiver."),
        click.option("--reason", type=click.Choice([str(one) for one in DeadReason]), metavar="REASON", help=_REASONS),
    ):
        command = option(command)
    return command


_REASONS = f"Died for this reason: {', '.join(DeadReason)}."


@click.group()
def dead() -> None:
    """See, retry or purge dead letters: callbacks that were given up."""


@dead.command("list")
@options.config
@options.queue
@_conditions
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many to show.")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="How many to leave out first.")
@kept.with_task_ids
@options.output
@options.debug
def list_letters(
    config_path: Path | None,
    queue_name: str | None,
    reason: str | None,
    destination: str | None,
    older_than: float | None,
    limit: int,
    offset: int,
    with_tasks: bool,
    as_json: bool,
) -> None:
    """List dead letters, the last to die first."""
    from cbq_exporter.services.dead_letters import Selection, newest

    selection = Selection(reason=reason, destination=destination, older_than=older_than)

    async def work() -> None:
        async with open_queue(config_path, queue_name) as (config, queue):
            # One more than is shown tells whether there are more.
            letters = await newest(queue, selection, offset=offset, limit=limit + 1)
            now = await queue.store_now_ms() / 1000
            shown = letters[:limit]
            tasks = await kept.task_ids(queue.dead, shown) if with_tasks else None
        if as_json:
            output.print_json(kept.listed(shown, tasks))
        elif shown:
            click.echo(_table(shown, now, tasks))
        else:
            output.say(f"no dead letters in {config.name}" if offset == 0 else "no more dead letters")
        if len(letters) > limit:
            output.say(f"there are more: --offset {offset + limit} shows the next")

    run(work())


def _table(letters: list[DeadLetter], now: float, tasks: kept.TaskIds | None) -> str:
    rows = [
        [
            output.text(letter.id),
            *kept.task_cell(letter, tasks),
            output.text(letter.reason),
            output.text(letter.destination),
            output.number(letter.attempts),
            output.age(now - letter.died_at),
            output.text(kept.short(letter.failure), 60),
        ]
        for letter in letters
    ]
    headings = ["id", *kept.task_heading(tasks), "reason", "destination", "tries", "died", "failure"]
    return output.table(headings, rows, right=["tries", "died"], fold="destination")


@dead.command()
@click.argument("letter_id", metavar="ID")
@options.config
@options.queue
@click.option("--raw", is_flag=True, help="Write the payload's bytes, and nothing else.")
@options.output
@options.debug
def show(config_path: Path | None, queue_name: str | None, letter_id: str, raw: bool, as_json: bool) -> None:
    """Show one dead letter: why it died, and what it holds."""
    from cbq_exporter.services import dead_letters

    async def work() -> None:
        async with open_queue(config_path, queue_name) as (config, queue):
            letter = await dead_letters.one(queue, letter_id)
        lines = [
            ("id", output.text(letter.id)),
            ("queue", config.name),
            ("reason", output.text(letter.reason)),
            *kept.lines(letter),
            ("died", output.moment(letter.died_at)),
        ]
        kept.show(letter, lines, raw=raw, as_json=as_json)

    run(work())


def _changing(command: F) -> F:
    for option in (
        changing,
        click.option("--all", "everything", is_flag=True, help="All dead letters of the queue."),
        _conditions,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@dead.command()
@_changing
def retry(config_path: Path | None, queue_name: str | None, **given: Any) -> int:
    """Send dead letters again: they go to the tail of pending, with a clean record."""
    from cbq_exporter.services.operations import RetryDead

    return run(_do(config_path, queue_name, RetryDead, "retried", **given))


@dead.command()
@_changing
def purge(config_path: Path | None, queue_name: str | None, **given: Any) -> int:
    """Delete dead letters for good."""
    from cbq_exporter.services.operations import PurgeDead

    return run(_do(config_path, queue_name, PurgeDead, "purged", **given))


def _selection(
    ids: tuple[str, ...], everything: bool, reason: str | None, destination: str | None, older_than: float | None
) -> Selection:
    from cbq_exporter.services.dead_letters import Selection

    filtered = any(condition is not None for condition in (reason, destination, older_than))
    if bool(ids) + filtered + everything != 1:
        raise UsageError("say which letters, in one way: ids, or --reason/--destination/--older-than, or --all")
    return Selection(tuple(dict.fromkeys(ids)), reason, destination, older_than)


async def _do(
    config_path: Path | None,
    queue_name: str | None,
    make: Callable[[str, Selection], RetryDead | PurgeDead],
    past: str,
    *,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
    **which: Any,
) -> int:
    selection = _selection(**which)
    async with open_desk(config_path, queue_name) as desk:
        queue = desk.store.queues[desk.queue.name]
        with output.progress("looking", await queue.dead.count()) as bar:
            plan = await desk.operations.plan(make(desk.queue.name, selection), bar)
        show_plan(plan)
        done = await carry_out(
            desk,
            plan,
            How(yes, dry_run, why, as_json),
            lambda executed: f"{past} {output.count(executed.counts['letters'], 'dead letter')}",
        )
    letters = plan.letters
    assert letters is not None
    if as_json:
        output.print_json(
            {
                "queue": desk.queue.name,
                "planned": letters.count,
                "bytes": letters.size,
                "by_reason": letters.by_reason,
                "missing": letters.missing,
                past: done.counts["letters"],
            }
        )
    return 1 if letters.missing else 0
