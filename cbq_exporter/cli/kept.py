"""How one callback is shown that waits in retry or is dead: the same for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cbq_exporter.cli import output
from cbq_exporter.cli.options import F
from cbq_exporter.errors import CbqError
from cbq_exporter.model import DeadLetter, Failure, WaitingRetry

if TYPE_CHECKING:
    from cbq_exporter.store.kept import KeptSet

_VIEW = 2000  # characters of a payload that are shown

Kept = DeadLetter | WaitingRetry
TaskIds = Mapping[str, str]  # by the id of the callback


def with_task_ids(command: F) -> F:
    return click.option(
        "--task-ids",
        "with_tasks",
        is_flag=True,
        help="Show the task_id of each too. Reads payloads, up to a bound.",
    )(command)


async def task_ids(where: KeptSet[Any], shown: Sequence[Kept]) -> TaskIds:
    """Says so where not all of them were read."""
    from cbq_exporter.services import task_ids

    found = await task_ids.read(where, shown)
    if len(found) < len(shown):
        left = len(shown) - len(found)
        output.say(
            f"the task_id of {left:,} is not known: more than {output.size(task_ids.MOST_BYTES)} of payloads are not "
            "read; a smaller --limit leads to it, or show with its id"
        )
    return found


def listed(shown: Sequence[Kept], tasks: TaskIds | None) -> list[dict[str, object]]:
    """For JSON; ``task_id`` is null where there is none, and no field where it was not asked for."""
    if tasks is None:
        return [as_fields(one) for one in shown]
    return [{**as_fields(one), "task_id": tasks.get(one.id) or None} for one in shown]


def task_cell(one: Kept, tasks: TaskIds | None) -> list[str]:
    return [] if tasks is None else [output.text(tasks.get(one.id, ""), 60)]


def task_heading(tasks: TaskIds | None) -> list[str]:
    return [] if tasks is None else ["task_id"]


def short(failure: Failure) -> str:
    return f"{failure.kind} {failure.status}" if failure.status else failure.kind


def lines(kept: Kept) -> list[tuple[str, str]]:
    """What both have: names and values."""
    return [
        ("url", output.text(kept.url, 8192)),
        ("destination", output.text(kept.destination)),
        ("tries", output.number(kept.attempts)),
        ("first claimed", output.moment(kept.first_at)),
    ]


def show(kept: Kept, about: Sequence[tuple[str, str]], *, raw: bool, as_json: bool) -> None:
    """Print one: ``about`` first, then how it failed and its payload."""
    if raw:
        if kept.payload is None:
            raise CbqError(f"the payload of {kept.id} is gone")
        output.write_payload(kept.payload, "write it into a file, or leave out --raw")
    elif as_json:
        output.print_json(as_fields(kept))
    else:
        click.echo(_record(kept, about))


def _record(kept: Kept, about: Sequence[tuple[str, str]]) -> str:
    failure = kept.failure
    named = [
        *about,
        ("failure", output.text(": ".join(filter(None, [short(failure), failure.detail])), 2000)),
        ("answer", output.text(failure.sample, 2000)),
        ("payload", output.count(kept.size, "byte")),
    ]
    width = max(len(name) for name, _ in named)
    shown = [f"{output.paint(name.ljust(width), bold=True)}  {value}" for name, value in named]
    if kept.payload is None:
        shown.append("the payload is gone")
    else:
        shown += ["", _view(kept.payload)]
    return "\n".join(shown)


def _view(payload: bytes) -> str:
    view = output.text(payload[: 4 * _VIEW].decode("utf-8", "backslashreplace")[:_VIEW], _VIEW)
    if len(payload) <= _VIEW:
        return view
    return f"{view}…\n(the beginning of {len(payload):,} bytes; --raw writes all of them)"


def as_fields(kept: Kept) -> dict[str, object]:
    """For JSON: a payload that is no text goes as Base64."""
    import base64

    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(kept)
    payload = kept.payload
    del fields["payload"]
    if payload is not None:
        try:
            fields["payload"] = payload.decode("utf-8")
        except UnicodeDecodeError:
            fields["payload_base64"] = base64.b64encode(payload).decode("ascii")
    return fields
