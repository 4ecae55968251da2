"""What the API's requests carry and what it answers. The OpenAPI document is written from these.

Field names are an interface: they only ever grow. Durations are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from cbq_exporter.services.operations import (
    Operation,
    Pause,
    Recover,
    Reset,
    Resume,
    Undo,
    Unlock,
)
from cbq_exporter.web.problems import Code, ProblemError

_LONGEST = 3650 * 86_400.0  # seconds

# What can be said of it in a schema. ``read`` refuses all that Unicode has no sign for.
_ONE_LINE = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"}
Reason = Annotated[
    str,
    Meta(max_length=500, description="Why, on one line: it is kept in the audit.", extra_json_schema=_ONE_LINE),
]
DryRun = Annotated[bool, Meta(description="True changes nothing and answers with what would be changed.")]
Destination = Annotated[
    Annotated[str, Meta(min_length=1, max_length=300, extra_json_schema=_ONE_LINE)] | None,
    Meta(description="One destination, as metrics call it. Null is the whole queue."),
]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every request may say."""

    dry_run: DryRun = False
    reason: Reason = ""


class UnlockBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Release the send lock."""

    force: Annotated[bool, Meta(description="True releases a healthy lock too: its holder is still at work.")] = False


class RecoverBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Move callbacks from processing back to pending."""

    older_than: Annotated[
        Annotated[float, Meta(ge=0, le=_LONGEST)] | None,
        Meta(description="Only what has been seen in processing for this many seconds. Null is everything."),
    ] = None
    only_known_stuck: Annotated[bool, Meta(description="True moves only what is known to be stuck.")] = False


class ResetBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Move everything of the queue into the trash, where it is kept for a time."""

    force: Annotated[bool, Meta(description="True does it while somebody holds the send lock too.")] = False


class UndoBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put back what a reset moved into the trash."""

    trash_id: Annotated[
        Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")] | None,
        Meta(description="Which reset, by the id in its answer. Null is the last."),
    ] = None


class PauseBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send nothing until it is resumed."""

    destination: Destination = None


class ResumeBody(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End a pause."""

    destination: Destination = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, or would be."""

    operation: Annotated[str, Meta(description="As in the path.")]
    queue: Annotated[str, Meta(description="As in the path.")]
    dry_run: Annotated[bool, Meta(description="Whether it was only asked for.")]
    nothing_to_do: Annotated[bool, Meta(description="Whether there was nothing to be done.")]
    summary: Annotated[tuple[str, ...], Meta(description="The plan, in lines for people.")]
    planned: Annotated[Mapping[str, int], Meta(description="What the plan would change, counted.")]
    done: Annotated[Mapping[str, int], Meta(description="What was changed, counted.")]
    undo: Annotated[str | None, Meta(description="The trash_id that undoes this, where it can be undone.")] = None


B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Action:
    """One operation: the body it takes, and what is to be done for a queue's name and such a body."""

    name: str
    body: type[Body]
    operation: Callable[[str, Any], Operation]


def _action(name: str, body: type[B], operation: Callable[[str, B], Operation]) -> Action:
    return Action(name, body, operation)


ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        _action("unlock", UnlockBody, lambda queue, body: Unlock(queue, force=body.force)),
        _action(
            "recover",
            RecoverBody,
            lambda queue, body: Recover(queue, older_than=body.older_than, only_known_stuck=body.only_known_stuck),
        ),
        _action("reset", ResetBody, lambda queue, body: Reset(queue, force=body.force)),
        _action("undo", UndoBody, lambda queue, body: Undo(queue, trash_id=body.trash_id)),
        _action("pause", PauseBody, lambda queue, body: Pause(queue, destination=body.destination)),
        _action("resume", ResumeBody, lambda queue, body: Resume(queue, destination=body.destination)),
    )
}

_PATH = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<field>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)


def read(kind: type[B], content: bytes) -> B:
    """Raises ProblemError, which names the member that is wrong."""
    try:
        body = msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        said = str(error)
        if unknown := _UNKNOWN.match(said):
            known = ", ".join(kind.__struct_fields__)
            raise ProblemError(
                Code.INVALID_BODY, f"there is no such member; known are {known}", field=unknown["field"]
            ) from None
        if placed := _PATH.match(said):
            raise ProblemError(
                Code.INVALID_BODY, f"{placed['field']}: {placed['what']}", field=placed["field"]
            ) from None
        raise ProblemError(Code.INVALID_BODY, f"the body: {said}") from None
    except (ValueError, RecursionError):  # ValueError: not JSON, or not UTF-8
        raise ProblemError(Code.INVALID_BODY, "the body is not JSON in UTF-8") from None
    for name in kind.__struct_fields__:
        value = getattr(body, name)
        if isinstance(value, str) and not value.isprintable():
            raise ProblemError(Code.INVALID_BODY, f"{name}: must be printable, on one line", field=name)
    return body
