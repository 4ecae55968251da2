"""The page of all keys, written from what ``keys`` says of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from cbq_exporter.store.keys import QueueKeys

PATH = "docs/keys.md"

_PREFIX = "callback_queue"
_CONTRACT = 7  # so many belong to the contract with existing software

_HEAD = """\
# Keys in Redis

Every key of a queue whose prefix is `callback_queue`. What producers and other workers need of them is in
[wire-format.md](wire-format.md). The keys of the daemon may change from one version to the next: read them through
`cbq-exporter status`, `/metrics` or the API.
"""


@dataclass(frozen=True, slots=True)
class Described:
    """``kind`` is the Redis type, and what else is to be known of it before the meaning."""

    name: str
    kind: str
    meaning: str


def described() -> list[Described]:
    """Those of the contract first, in the order of ``QueueKeys``."""
    return [*_of_fields(), *_of_methods()]


def markdown() -> str:
    rows = [f"| `{key.name}` | {key.kind} | {_cell(key.meaning)} |" for key in described()]
    head = "| key | type | what it holds |\n|---|---|---|\n"
    parts = (
        _HEAD,
        "## Shared with existing software\n",
        head + "\n".join(rows[:_CONTRACT]) + "\n",
        "## The daemon's own\n",
        head + "\n".join(rows[_CONTRACT:]) + "\n",
        f"Beside these, `{_PREFIX}:trash:<id>:<part>` is each of them as a reset has moved it away; it expires.\n",
    )
    return "\n".join(parts)


def _of_fields() -> Iterator[Described]:
    """By the comment behind each."""
    source = inspect.getsource(QueueKeys)
    names = QueueKeys.of(_PREFIX)
    for field in fields(QueueKeys):
        comment = re.search(rf"^    {field.name}: str  # ([^:]+): (.+)$", source, re.MULTILINE)
        assert comment is not None, f"{field.name} has no comment"
        yield Described(getattr(names, field.name), comment[1], comment[2])


def _of_methods() -> Iterator[Described]:
    """Keys with a part of their own, by the docstring."""
    names = QueueKeys.of(_PREFIX)
    for method_name, method in vars(QueueKeys).items():
        if not method_name.endswith("_of") or method_name == "trash_of":
            continue
        (parameter,) = list(inspect.signature(method).parameters)[1:]
        kind, meaning = inspect.getdoc(method).split(": ", 1)  # type: ignore[union-attr]
        placeholder = f"<{parameter.replace('_', ' ')}>"
        yield Described(getattr(names, method_name)(placeholder), kind, " ".join(meaning.split()))


def _cell(text: str) -> str:
    return text.rstrip(".").replace("|", "\\|").replace("<", "&lt;")
