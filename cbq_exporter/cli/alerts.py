"""``alerts``: what alerts have caused, what one would cause, and whether they may cause anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cbq_exporter.cli import options, output
from cbq_exporter.cli.kinds import Duration
from cbq_exporter.cli.operating import How, carry_out, changing, desk_of, show_plan
from cbq_exporter.cli.running import look_for_newer, queue_config, run
from cbq_exporter.errors import CbqError, RefusedError
from cbq_exporter.model import AlertOutcome, Mode

if TYPE_CHECKING:
    from cbq_exporter.config import Config, QueueConfig
    from cbq_exporter.services.alert_responder import Received
    from cbq_exporter.services.operations import Operation
    from cbq_exporter.store.alerts import Admitted

_MOST_FILE = 1024 * 1024  # bytes, as the webhook takes them
_ACTING = (AlertOutcome.ACCEPTED, AlertOutcome.DRY_RUN)


@click.group()
def alerts() -> None:
    """See and try what alerts cause, or let them cause nothing for a while.

    Without --queue, pause, resume and list are about all queues.
    """


@alerts.command("pause")
@click.option("--for", "seconds", type=Duration(), metavar="DURATION", help="End by itself after this, such as 2h.")
@changing
def pause(
    config_path: Path | None,
    queue_name: str | None,
    seconds: float | None,
    yes: bool,
    dry_run: bool,
    why: str,
    as_json: bool,
) -> None:
    """Let alerts cause nothing, in all daemons, until it is ended. They are received and counted.

    A queue that is added to the configuration later is not paused by it.
    """
    from cbq_exporter.services.operations import PauseAlerts

    how = How(yes, dry_run, why, as_json)
    run(_change(config_path, queue_name, lambda name: PauseAlerts(name, seconds), how, "paused"))


@alerts.command("resume")
@changing
def resume(config_path: Path | None, queue_name: str | None, yes: bool, dry_run: bool, why: str, as_json: bool) -> None:
    """Let alerts cause their actions again."""
    from cbq_exporter.services.operations import ResumeAlerts

    how = How(yes, dry_run, why, as_json)
    run(_change(config_path, queue_name, ResumeAlerts, how, "resumed"))


@alerts.command("test")
@options.config
@options.output
@options.debug
@click.argument("file", type=click.File("rb"), metavar="ALERT.json")
def test(config_path: Path | None, as_json: bool, file: BinaryIO) -> int:
    """Say what would come of alerts now, and why; nothing is changed.

    ALERT.json is what Alertmanager's webhook posts, or one alert as {"labels": {...}}; - is standard input. Exit code
    0 where an action would follow, 1 where none would.
    """
    content: bytes = file.read(_MOST_FILE + 1)
    if len(content) > _MOST_FILE:
        raise CbqError(f"these alerts are larger than {output.size(_MOST_FILE)}, which the webhook refuses too")
    return run(_try(config_path, content, as_json))


@alerts.command("list")
@options.config
@options.queue
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@options.output
@options.debug
def list_alerts(config_path: Path | None, queue_name: str | None, limit: int, as_json: bool) -> None:
    """Show what alerts have caused, the newest last, and what came of it."""
    run(_list(config_path, queue_name, limit, as_json))


async def _change(
    config_path: Path | None, queue_name: str | None, make: Callable[[str], Operation], how: How, past: str
) -> None:
    """The same to each queue, asked once. Each is a step of its own: what is done is done where the next fails."""
    from cbq_exporter.config import load

    config = load(config_path).config
    queues = _queues(config, queue_name)
    done = []
    async with desk_of(config, queues[0]) as desk:
        plans = [await desk.operations.plan(make(queue.name)) for queue in queues]
        for plan in plans:
            show_plan(plan)
        yes = how.yes or how.dry_run or all(plan.nothing_to_do for plan in plans)
        try:
            which = queues[0].name if len(queues) == 1 else f"{len(queues)} queues"
            output.confirm(f"{'Pause' if past == 'paused' else 'Resume'} actions on alerts of {which}?", yes=yes)
        except RefusedError as error:
            for plan in plans:
                await desk.operations.decline(plan, actor=desk.actor, reason=how.reason, why=str(error))
            raise
        for plan in plans:
            agreed = How(True, how.dry_run, how.reason, how.as_json)
            name = plan.operation.queue
            executed = await carry_out(desk, plan, agreed, lambda _, name=name: f"{name}: {past}")  # type: ignore[misc]
            done.append({"queue": name, "planned": plan.counts, "done": executed.counts})
    if how.as_json:
        output.print_json({"dry_run": how.dry_run, "queues": done})


def _queues(config: Config, queue_name: str | None) -> list[QueueConfig]:
    """The one that is named, or all in which alerts could cause anything."""
    if queue_name is not None:
        return [queue_config(config, queue_name)]
    queues = [queue for queue in config.queues if queue.mode is not Mode.OBSERVE]
    if not queues:
        raise RefusedError("every queue is in mode observe: alerts cause nothing there")
    return queues


async def _try(config_path: Path | None, content: bytes, as_json: bool) -> int:
    from cbq_exporter.config import load
    from cbq_exporter.services import alert_body
    from cbq_exporter.services.alert_responder import AlertResponder

    tried = alert_body.read_one_or_all(content)
    config = load(config_path).config
    async with desk_of(config, config.queues[0]) as desk:
        received = await AlertResponder(config, desk.store, desk.operations).look(tried.alerts)
    if as_json:
        output.print_json([_fields(one) for one in received])
    elif received:
        rows = [[_shown(one.alert.name), one.outcome, one.place or output.UNKNOWN, _shown(one.why)] for one in received]
        click.echo(output.table(["alert", "outcome", "route", "why"], rows, fold="why"))
    else:
        output.say("there is no alert in it")
    return 0 if any(one.outcome in _ACTING for one in received) else 1


def _fields(received: Received) -> dict[str, object]:
    alert = received.alert
    return {
        "alert": alert.name,
        "fingerprint": alert.fingerprint,
        "outcome": received.outcome,
        "route": received.place,
        "why": received.why,
    }


async def _list(config_path: Path | None, queue_name: str | None, limit: int, as_json: bool) -> None:
    from cbq_exporter.config import load
    from cbq_exporter.store.alerts import Alerts
    from cbq_exporter.store.opening import keys_of, open_connections

    config = load(config_path).config
    chosen = config.queues if queue_name is None else (queue_config(config, queue_name),)
    found: list[tuple[str, Admitted]] = []
    async with open_connections(config) as connections:
        for queue in chosen:
            await look_for_newer(connections, keys_of(queue))
            kept = Alerts(connections, keys_of(queue))
            found += [(queue.name, one) for one in await kept.newest(limit)]
            if (paused := await kept.paused()) is not None:
                left = "" if paused.left is None else f", for another {output.age(paused.left)}"
                output.say(f"actions on alerts of {queue.name} are paused by {_shown(paused.by)}{left}")
    found = sorted(found, key=lambda one: one[1].at)[-limit:]
    if as_json:
        output.print_json([{"queue": queue, "at": one.at, "state": one.state, **_kept(one)} for queue, one in found])
    elif found:
        click.echo(output.table(_HEADINGS, [_row(queue, one) for queue, one in found], fold="what came of it"))
    else:
        output.say("alerts have caused nothing")
    sys.stdout.flush()


_HEADINGS = ["time", "alert", "queue", "action", "state", "what came of it"]


def _row(queue: str, admitted: Admitted) -> list[str]:
    intent = admitted.intent
    what = f"{intent.action} {intent.destination}" if intent.destination else str(intent.action)
    state, detail = str(admitted.state), _shown(intent.detail)
    return [output.moment(admitted.at), _shown(intent.alert), queue, _shown(what), state, detail]


def _kept(admitted: Admitted) -> dict[str, object]:
    intent = admitted.intent
    return {
        "alert": intent.alert,
        "fingerprint": intent.fingerprint,
        "started": intent.started,
        "route": intent.place,
        "action": intent.action,
        "destination": intent.destination,
        "dry_run": intent.dry_run,
        "detail": intent.detail,
    }


def _shown(text: str) -> str:
    return output.text(text, 300)
