"""The words of operations: what is asked for, what it would do, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cbq_exporter.model import LockLook, OperationName
from cbq_exporter.services.dead_letters import Plan as LettersPlan
from cbq_exporter.services.dead_letters import Selection
from cbq_exporter.services.retries import Plan as RetriesPlan
from cbq_exporter.store.trash import Trashed

Progress = Callable[[int], None]  # told how many are done


@dataclass(frozen=True, slots=True)
class Unlock:
    """Free the send lock. ``force``: also one that would expire by itself."""

    queue: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Recover:
    """Put back to pending what no live lease holds.

    ``older_than`` in seconds since it was claimed or first seen; ``only_known_stuck``: what the recoverer
    would take, by its configuration.
    """

    queue: str
    older_than: float | None = None
    only_known_stuck: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """Move everything of the queue to the trash. ``force``: also while somebody holds the lock."""

    queue: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Undo:
    """Put the result of a reset back; without ``trash_id`` that of the newest one."""

    queue: str
    trash_id: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Send nothing more: of the whole queue, or to one destination."""

    queue: str
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Send again."""

    queue: str
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class RetryDead:
    """Send dead letters again."""

    queue: str
    selection: Selection


@dataclass(frozen=True, slots=True)
class PurgeDead:
    """Delete dead letters for good."""

    queue: str
    selection: Selection


@dataclass(frozen=True, slots=True)
class RetryNow:
    """Let what has failed and waits for its next attempt wait no longer: of the whole queue, or for one destination."""

    queue: str
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class PauseAlerts:
    """Let alerts cause nothing. ``seconds`` is for how long; None: until it is ended."""

    queue: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ResumeAlerts:
    """Let alerts cause their actions again."""

    queue: str


Operation = (
    Unlock | Recover | Reset | Undo | Pause | Resume | RetryDead | PurgeDead | RetryNow | PauseAlerts | ResumeAlerts
)

_NAMES: Mapping[type[Operation], OperationName] = {
    Unlock: OperationName.UNLOCK,
    Recover: OperationName.RECOVER,
    Reset: OperationName.RESET,
    Undo: OperationName.UNDO,
    Pause: OperationName.PAUSE,
    Resume: OperationName.RESUME,
    RetryDead: OperationName.RETRY_DEAD,
    PurgeDead: OperationName.PURGE_DEAD,
    RetryNow: OperationName.RETRY_NOW,
    PauseAlerts: OperationName.PAUSE_ALERTS,
    ResumeAlerts: OperationName.RESUME_ALERTS,
}


def name_of(operation: Operation) -> OperationName:
    return _NAMES[type(operation)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operation would do now.

    ``summary`` are lines for people: the state first, then what would be done. ``before`` goes into the audit.
    ``refusal`` says why it will not be done, ``unless`` what would override that; ``question`` is what to ask a person.
    The rest is what was looked at, to
    be compared when it is executed.
    """

    operation: Operation
    summary: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    unless: str | None = None
    nothing_to_do: bool = False
    question: str = ""
    lock: LockLook | None = None
    trashed: Trashed | None = None
    letters: LettersPlan | None = None
    retries: RetriesPlan | None = None


@dataclass(frozen=True, slots=True)
class Executed:
    """What was done, counted. ``undo`` is the id to give to undo, where there is a way back."""

    counts: Mapping[str, int]
    undo: str | None = None
