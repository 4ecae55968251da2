"""Every error the program raises on purpose.

    CbqError                    exit code 1
    ├── ConfigError             1   the configuration is wrong; carries every problem found
    │   └── NeedsRestart        1   it is right, but something in it cannot change while the daemon runs
    ├── UsageError              2   the command line is wrong
    ├── InvalidCallback         1   what a producer wants to enqueue is no callback; a ValueError too
    ├── RefusedError            3   a safety rule or the operator said no
    ├── StoreError              4   Redis cannot do its work now
    │   ├── StoreUnavailable    4   unreachable, loading, read-only, out of memory: try again later
    │   ├── StoreMisuse         4   a key of ours holds a foreign type, or a permission is missing
    │   ├── EnqueueError        4   of what a producer gave, not all is in the queue for certain
    │   └── EmbeddedStoreError  4   the embedded server cannot be started or is somebody else's
    └── PreconditionChanged     5   what was planned no longer matches what is there

Each message is one line: what, where, what to do. Driver errors are translated once, in
``store.connections``, with the cause chained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

CONFIGURATION = "configuration"  # the ``file`` of a problem while nobody has said which one was read


class CbqError(Exception):
    """Base of everything below; ``str(error)`` is the line an operator reads."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again without its constructor, whose keywords pickle does not know.

        An error that a pool of processes can send but not receive breaks the pool, or has its caller wait for ever.
        """
        return _without_constructor, (type(self), self.args), self.__dict__


def _without_constructor(kind: type[CbqError], args: tuple[Any, ...]) -> CbqError:
    return kind.__new__(kind, *args)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where it is, what was found, what is allowed."""

    file: str
    path: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.file}: {self.path}: found {self.found}; {self.allowed}"


class ConfigError(CbqError):
    """The configuration cannot be used; ``problems`` lists all that is wrong at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def read_from(self, file: object) -> ConfigError:
        """The same, with ``file`` for the problems that could not tell where their setting was read from."""
        return ConfigError(
            tuple(replace(one, file=str(file)) if one.file == CONFIGURATION else one for one in self.problems)
        )


class NeedsRestart(ConfigError):
    """A reload would change ``paths``, which only count from a start on."""

    def __init__(self, file: str, paths: tuple[str, ...]) -> None:
        self.paths = paths
        super().__init__(
            tuple(Problem(file, path, "another value than at the start", "restart to change it") for path in paths)
        )


class UsageError(CbqError):
    """The command line does not say what is needed."""

    exit_code = 2


class InvalidCallback(CbqError, ValueError):
    """No receiver could be sent this: nothing was enqueued, and trying again will not help."""


class RefusedError(CbqError):
    """A safety rule refused, or the operator answered no.

    ``unless`` names what would override the rule, such as ``force``. How that is given differs between the command
    line and the API: each says it in its own way.
    """

    exit_code = 3

    def __init__(self, message: str, *, unless: str | None = None) -> None:
        self.unless = unless
        super().__init__(message)


class StoreError(CbqError):
    """Redis cannot do what was asked. ``kind`` is a word of a closed set, for metrics."""

    exit_code = 4

    def __init__(self, message: str, *, kind: str) -> None:
        self.kind = kind
        super().__init__(message)


class StoreUnavailable(StoreError):
    """Redis cannot be used for now: trying again later is right.

    A mutation that ended with this may or may not have been carried out, where it is ``unanswered``.
    """

    @property
    def unanswered(self) -> bool:
        """Whether the server may have done what was asked for: it did not refuse it, no answer came."""
        return self.kind in ("connect", "timeout")


class StoreMisuse(StoreError):
    """Trying again will not help: a foreign type at one of our keys, or a missing permission."""


class EnqueueError(StoreError):
    """Of what a producer gave, not all is in the queue for certain.

    The first ``enqueued`` callbacks are in it. Those ``in_doubt`` were sent, and no answer came: pushing the same bytes
    again may have them delivered twice, both times under the same webhook-id. Those ``not_enqueued`` are not in it:
    pushing them again is safe.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        enqueued: int = 0,
        in_doubt: tuple[bytes, ...] = (),
        not_enqueued: tuple[bytes, ...] = (),
    ) -> None:
        self.enqueued = enqueued
        self.in_doubt = in_doubt
        self.not_enqueued = not_enqueued
        counts = ((enqueued, "enqueued"), (len(in_doubt), "in doubt"), (len(not_enqueued), "not enqueued"))
        super().__init__(f"{message} ({', '.join(f'{n:,} {what}' for n, what in counts if n)})", kind=kind)


class EmbeddedStoreError(StoreError):
    """The embedded server cannot be started, or its ``data_dir`` belongs to another daemon."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="embedded")


class PreconditionChanged(CbqError):
    """What was planned no longer matches what is there; look again and decide anew."""

    exit_code = 5
