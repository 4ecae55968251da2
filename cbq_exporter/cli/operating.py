"""How every command that changes a queue goes: the state and the plan, the question, the work, what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.options import F
from cbq_exporter.cli.running import configured, queue_config
from cbq_exporter.errors import RefusedError, StoreError

if TYPE_CHECKING:
    from cbq_exporter.config import Config, QueueConfig
    from cbq_exporter.model import Actor
    from cbq_exporter.services.audit import Audit
    from cbq_exporter.services.operations import Executed, Operation, Operations, Plan
    from cbq_exporter.store.opening import Store

Ask = Callable[["Plan"], None]  # raises RefusedError where the answer is no


@dataclass(frozen=True, slots=True)
class Desk:
    """One queue, and what it takes to change it."""

    queue: QueueConfig
    store: Store
    audit: Audit
    operations: Operations
    actor: Actor


@dataclass(frozen=True, slots=True)
class How:
    """What the options that all of these commands share say."""

    yes: bool
    dry_run: bool
    reason: str
    as_json: bool


class _Why(click.Option):
    """``--reason`` is taken for it too, where the command has no option of that name; people are told of one name."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        if not any("--reason" in param.opts for param in ctx.command.params):
            parser.add_option(self, ["--reason"], dest=self.name, action="store")


def changing(command: F) -> F:
    """The options of a command that changes a queue."""
    for option in (
        options.debug,
        options.output,
        click.option("--why", cls=_Why, default="", metavar="TEXT", help="The reason, for the audit."),
        click.option("--dry-run", is_flag=True, help="Only show what would be done."),
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        options.queue,
        options.config,
    ):
        command = option(command)
    return command


@asynccontextmanager
async def open_desk(config_path: Path | None, queue_name: str | None) -> AsyncIterator[Desk]:
    config = configured(config_path)
    async with desk_of(config, queue_config(config, queue_name)) as desk:
        yield desk


@asynccontextmanager
async def desk_of(config: Config, queue: QueueConfig) -> AsyncIterator[Desk]:
    """Its operations know the other queues of the configuration too."""
    from cbq_exporter.services.audit import Audit
    from cbq_exporter.services.operations import Operations
    from cbq_exporter.services.people import person
    from cbq_exporter.store.opening import open_store

    async with open_store(config) as store:
        audit = Audit(store)
        yield Desk(queue, store, audit, Operations(config, store, audit), person())


async def operate(
    config_path: Path | None,
    queue_name: str | None,
    make: Callable[[str], Operation],
    how: How,
    past: Callable[[Executed], str],
    *,
    ask: Ask | None = None,
) -> None:
    """``make`` is given the queue's name; ``past`` says what was done."""
    async with open_desk(config_path, queue_name) as desk:
        plan = await desk.operations.plan(make(desk.queue.name))
        show_plan(plan)
        executed = await carry_out(desk, plan, how, past, ask=ask)
    if how.as_json:
        output.print_json(
            {
                "queue": desk.queue.name,
                "dry_run": how.dry_run,
                "planned": plan.counts,
                "done": executed.counts,
                "undo": executed.undo,
            }
        )


def show_plan(plan: Plan) -> None:
    for line in plan.summary:
        output.say(output.text(line, 1000))


async def carry_out(
    desk: Desk, plan: Plan, how: How, past: Callable[[Executed], str], *, ask: Ask | None = None
) -> Executed:
    """Ask, unless there is nothing to ask about; then do it, and say what was done."""
    operations, actor = desk.operations, desk.actor
    if plan.refusal is None and not plan.nothing_to_do and not how.dry_run:
        try:
            if ask is not None:
                ask(plan)
            else:
                output.confirm(output.text(plan.question, 500), yes=how.yes)
        except RefusedError as error:
            await operations.decline(plan, actor=actor, reason=how.reason, why=str(error))
            raise
    so_far = 0
    with output.progress(plan.question.partition(" ")[0].lower() or "working", sum(plan.counts.values())) as bar:

        def note(done: int) -> None:
            nonlocal so_far
            so_far = done
            bar(done)

        try:
            executed = await operations.execute(
                plan, actor=actor, reason=how.reason, dry_run=how.dry_run, progress=note
            )
        except RefusedError:
            raise
        except BaseException as error:
            if so_far and (isinstance(error, StoreError) or not isinstance(error, Exception)):
                output.say(f"{so_far:,} were done for certain before it ended; run it again for the rest")
            raise
    if how.dry_run:
        output.say("dry run: nothing was changed")
    elif plan.nothing_to_do:
        output.say("there is nothing to do")
    else:
        output.say(past(executed))
    return executed
