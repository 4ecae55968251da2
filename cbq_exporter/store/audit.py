"""The audit of one queue: a stream that is only added to, bounded by count and by age."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from cbq_exporter.model import Actor, AuditEntry, Result, Trigger
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.times import ms

MOST_ENTRIES = 10_000  # about: whole nodes of the stream go
_MOST_TEXT = 1000  # characters of a name or a reason
_PAGE = 500  # entries
_WAIT = 5.0  # seconds, for the next entry

BEGINNING = "0-0"  # the id before all others


class AuditLog:
    """Raises StoreUnavailable (an entry may or may not have been written) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._key = keys.audit

    async def add(
        self,
        actor: Actor,
        operation: str,
        queue: str,
        reason: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        result: Result,
    ) -> str:
        """Returns the entry's id."""
        fields: list[str | bytes] = [
            *("trigger", actor.trigger.value, "actor", _cut(actor.name)),
            *("operation", operation, "queue", queue, "reason", _cut(reason)),
            *("before", msgspec.json.encode(before), "after", msgspec.json.encode(after), "result", result.value),
        ]
        answer: bytes = await self._connections.run_named("audit_add", [self._key], [MOST_ENTRIES, *fields])
        return answer.decode()

    async def newest_first(self, since: float | None = None) -> AsyncIterator[AuditEntry]:
        """All entries, read in pages. ``since`` is epoch seconds, by the store's clock."""
        oldest = "-" if since is None else f"{max(0, int(since * 1000))}"
        newest = "+"
        while True:
            page = await self._connections.read("XREVRANGE", self._key, newest, oldest, "COUNT", _PAGE)
            for entry_id, fields in page:
                yield _entry(entry_id, fields)
            if len(page) < _PAGE:
                return
            newest = f"({page[-1][0].decode()}"

    async def after(self, entry_id: str) -> list[AuditEntry]:
        """What follows ``entry_id``, up to a page; waits a few seconds where there is nothing yet."""
        answer = await self._connections.wait(
            _WAIT, "XREAD", "COUNT", _PAGE, "BLOCK", int(_WAIT * 1000), "STREAMS", self._key, entry_id
        )
        return [_entry(found_id, fields) for _, page in answer or () for found_id, fields in page]

    async def trim(self, max_age: float) -> int:
        """Delete entries older than ``max_age`` seconds, as far as that is cheap; returns how many."""
        return int(await self._connections.run_named("audit_trim", [self._key], [ms(max_age)]))


def _entry(entry_id: bytes, fields: list[bytes]) -> AuditEntry:
    """Also of one that somebody else has written: what it does not say is empty."""
    said = {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in zip(fields[::2], fields[1::2], strict=True)
    }
    trigger, result = said.get("trigger", ""), said.get("result", "")
    return AuditEntry(
        id=entry_id.decode(),
        at=int(entry_id.partition(b"-")[0]) / 1000,
        actor=Actor(Trigger(trigger) if trigger in _TRIGGERS else Trigger.CLI, said.get("actor", "")),
        operation=said.get("operation", ""),
        queue=said.get("queue", ""),
        reason=said.get("reason", ""),
        before=_mapping(said.get("before")),
        after=_mapping(said.get("after")),
        result=Result(result) if result in _RESULTS else Result.FAILED,
    )


_TRIGGERS = frozenset(trigger.value for trigger in Trigger)
_RESULTS = frozenset(result.value for result in Result)


def _mapping(text: str | None) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _cut(text: str) -> str:
    """At most so much, and only what UTF-8 can hold."""
    return text[:_MOST_TEXT].encode("utf-8", "replace").decode()
