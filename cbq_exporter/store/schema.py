"""The layout of a queue's own keys, as a number in the store: an older version leaves alone what a newer one wrote.

The number goes up when an older version would misread what the newer one writes; a key more is no reason. The first
daemon that may write to a queue notes it. A version that finds a smaller number brings the queue up to date before it
notes its own. One that runs already looks again and again: in a rolling upgrade the newer one starts beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cbq_exporter.errors import StoreMisuse
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys

SCHEMA = 1
RUN_THE_NEWER = "run the newer version"

T = TypeVar("T")


class Schema:
    """That of one queue. Raises StoreUnavailable, and StoreMisuse where a newer version has written to the queue."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._key = keys.schema
        self._noted = False
        self._why_not: str | None = None  # it may not be changed any more

    async def check(self) -> None:
        """Only looks."""
        self._refuse(trouble(self._key, await self._connections.read("GET", self._key)))

    async def note(self) -> None:
        """Before each change. The store is asked the first time; from then on by ``look_again``."""
        if not self._noted:
            await self.look_again()
        self._refuse(self._why_not)

    async def look_again(self) -> None:
        found = await self._connections.run_named("schema", [self._key], [SCHEMA])
        self._why_not = trouble(self._key, found)
        self._refuse(self._why_not)
        self._noted = True

    def before(
        self, action: Callable[[], Awaitable[T]], *, or_else: Callable[[], Awaitable[object]] | None = None
    ) -> Callable[[], Awaitable[T]]:
        """``action``, which changes something, preceded by ``note``; ``or_else`` comes first where that refuses."""

        async def run() -> T:
            try:
                await self.note()
            except StoreMisuse:
                if or_else is not None:
                    await or_else()
                raise
            return await action()

        return run

    def _refuse(self, why: str | None) -> None:
        if why is not None:
            raise StoreMisuse(f"{why}; {RUN_THE_NEWER}", kind="schema")


def trouble(key: str, found: bytes | None) -> str | None:
    """One sentence where what ``key`` holds is not the number of a layout that this version knows."""
    number = b"0" if found is None else bytes(found)
    if number.isdigit() and int(number[:18]) <= SCHEMA:
        return None
    shown = number[:20].decode("ascii", "backslashreplace")
    return f"a newer cbq-exporter has written to this queue: {key} is {shown}, and this version knows up to {SCHEMA}"
