"""``dead``: look at the callbacks that were given up, send them again, or delete them."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.options import F
from cbq_exporter.cli.running import open_queue, run
from cbq_exporter.errors import CbqError, StoreError, UsageError
from cbq_exporter.model import DeadLetter, DeadReason, Failure

if TYPE_CHECKING:
    from cbq_exporter.services.dead_letters import Plan, Selection
    from cbq_exporter.store.queue import Queue

_VIEW = 2000  # characters of a payload that are shown
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Duration(click.ParamType[float]):
    """Such as 30s, 15m, 12h or 7d; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.match(value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 30s, 15m, 12h or 7d", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


def _conditions(command: F) -> F:
    for option in (
        click.option("--older-than", type=_Duration(), metavar="DURATION", help="Died longer ago, such as 12h or 7d."),
        click.option("--destination", metavar="HOST", help="Was for this host."),
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
        if as_json:
            output.print_json([_as_fields(letter) for letter in shown])
        elif shown:
            click.echo(_table(shown, now))
        else:
            output.say(f"no dead letters in {config.name}" if offset == 0 else "no more dead letters")
        if len(letters) > limit:
            output.say(f"there are more: --offset {offset + limit} shows the next")

    run(work())


def _table(letters: list[DeadLetter], now: float) -> str:
    rows = [
        [
            letter.id,
            letter.reason,
            output.text(letter.destination),
            output.number(letter.attempts),
            output.age(now - letter.died_at),
            output.text(_short(letter.failure), 60),
        ]
        for letter in letters
    ]
    return output.table(
        ["id", "reason", "destination", "tries", "died", "failure"], rows, right=["tries", "died"], fold="destination"
    )


def _short(failure: Failure) -> str:
    return f"{failure.kind} {failure.status}" if failure.status else failure.kind


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
        if raw:
            if letter.payload is None:
                raise CbqError(f"the payload of {letter_id} is gone")
            sys.stdout.buffer.write(letter.payload)
        elif as_json:
            output.print_json(_as_fields(letter))
        else:
            click.echo(_record(config.name, letter))

    run(work())


def _record(queue: str, letter: DeadLetter) -> str:
    failure = letter.failure
    lines = [
        ("id", letter.id),
        ("queue", queue),
        ("reason", letter.reason),
        ("url", output.text(letter.url, 8192)),
        ("destination", output.text(letter.destination)),
        ("tries", output.number(letter.attempts)),
        ("first claimed", output.moment(letter.first_at)),
        ("died", output.moment(letter.died_at)),
        ("failure", output.text(": ".join(filter(None, [_short(failure), failure.detail])), 2000)),
        ("answer", output.text(failure.sample, 2000)),
        ("payload", output.count(letter.size, "byte")),
    ]
    width = max(len(name) for name, _ in lines)
    shown = [f"{output.paint(name.ljust(width), bold=True)}  {value}" for name, value in lines]
    if letter.payload is None:
        shown.append("the payload is gone")
    else:
        shown += ["", _view(letter.payload)]
    return "\n".join(shown)


def _view(payload: bytes) -> str:
    view = output.text(payload[: 4 * _VIEW].decode("utf-8", "backslashreplace")[:_VIEW], _VIEW)
    if len(payload) <= _VIEW:
        return view
    return f"{view}…\n(the beginning of {len(payload):,} bytes; --raw writes all of them)"


def _as_fields(letter: DeadLetter) -> dict[str, object]:
    """For JSON: a payload that is no text goes as Base64."""
    import base64

    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(letter)
    payload = letter.payload
    del fields["payload"]
    if payload is not None:
        try:
            fields["payload"] = payload.decode("utf-8")
        except UnicodeDecodeError:
            fields["payload_base64"] = base64.b64encode(payload).decode("ascii")
    return fields


def _changing(command: F) -> F:
    for option in (
        options.debug,
        options.output,
        click.option("--dry-run", is_flag=True, help="Only show what would be done."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--all", "everything", is_flag=True, help="All dead letters of the queue."),
        _conditions,
        options.queue,
        options.config,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to letters, and how it is spoken of."""

    verb: str
    past: str
    consequence: str
    action: Callable[[Queue], Callable[[Sequence[str]], Awaitable[int]]]


_RETRY = _Change(
    "retry", "retried", "they go to the tail of pending, with a clean record", lambda queue: queue.dead_retry
)
_PURGE = _Change("purge", "purged", "they are deleted for good: there is no way back", lambda queue: queue.dead_purge)


@dead.command()
@_changing
def retry(
    config_path: Path | None, queue_name: str | None, yes: bool, dry_run: bool, as_json: bool, **which: Any
) -> int:
    """Send dead letters again: they go to the tail of pending, with a clean record."""
    return run(_do(_RETRY, config_path, queue_name, _selection(**which), yes=yes, dry_run=dry_run, as_json=as_json))


@dead.command()
@_changing
def purge(
    config_path: Path | None, queue_name: str | None, yes: bool, dry_run: bool, as_json: bool, **which: Any
) -> int:
    """Delete dead letters for good."""
    return run(_do(_PURGE, config_path, queue_name, _selection(**which), yes=yes, dry_run=dry_run, as_json=as_json))


def _selection(
    ids: tuple[str, ...], everything: bool, reason: str | None, destination: str | None, older_than: float | None
) -> Selection:
    from cbq_exporter.services.dead_letters import Selection

    filtered = any(condition is not None for condition in (reason, destination, older_than))
    if bool(ids) + filtered + everything != 1:
        raise UsageError("say which letters, in one way: ids, or --reason/--destination/--older-than, or --all")
    return Selection(tuple(dict.fromkeys(ids)), reason, destination, older_than)


async def _do(
    change: _Change,
    config_path: Path | None,
    queue_name: str | None,
    selection: Selection,
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    from cbq_exporter.services import dead_letters

    async with open_queue(config_path, queue_name) as (config, queue):
        with output.progress("looking", await queue.dead_count()) as show:
            plan = await dead_letters.plan(queue, selection, show)
        for missing in plan.missing:
            output.say(f"no dead letter has the id {output.text(missing)}")
        changed = 0
        if plan.count:
            output.say(_planned(plan, change.verb, config.name))
            output.say(change.consequence)
            if not dry_run:
                output.confirm(f"{change.verb.capitalize()} {output.count(plan.count, 'dead letter')}?", yes=yes)
                changed = await _execute(change, queue, plan)
    output.say("dry run: nothing was changed" if dry_run else f"{change.past} {output.count(changed, 'dead letter')}")
    if as_json:
        output.print_json(
            {
                "queue": config.name,
                "planned": plan.count,
                "bytes": plan.size,
                "by_reason": plan.by_reason,
                "missing": plan.missing,
                change.past: changed,
            }
        )
    return 1 if plan.missing else 0


async def _execute(change: _Change, queue: Queue, plan: Plan) -> int:
    import asyncio

    from cbq_exporter.services import dead_letters

    so_far = 0
    with output.progress(change.verb, plan.count) as show:

        def note(done: int) -> None:
            nonlocal so_far
            so_far = done
            show(done)

        try:
            return await dead_letters.execute(queue, plan, change.action(queue), note)
        except (KeyboardInterrupt, asyncio.CancelledError, StoreError):
            output.say(f"{change.past} {output.count(so_far, 'dead letter')} for certain before it ended")
            raise


def _planned(plan: Plan, verb: str, queue: str) -> str:
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in plan.by_reason.items())
    return f"{verb} {output.count(plan.count, 'dead letter')} of {queue} ({output.size(plan.size)}): {reasons}"
