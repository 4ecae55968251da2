"""The layout of a queue's own keys, as a number in the store: an older version leaves alone what a newer one wrote.

The number goes up when an older version would misread what the newer one writes; a key more is no reason. The first
daemon that may write to a queue notes it. A version that finds a smaller number brings the queue up to date before it
notes its own. One that runs already looks again and again: in a rolling upgrade the newer one starts beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.errors import StoreMisuse
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys

SCHEMA = 1
LOOK_EVERY = 5.0  # seconds
RUN_THE_NEWER = "run the newer version"

T = TypeVar("T")


class Schema:
    """That of one queue. Raises StoreUnavailable, and StoreMisuse where a newer version has written to the queue."""

    def __init__(self, connections: Connections, keys: QueueKeys, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._connections = connections
        self._key = keys.schema
        self._clock = clock
        self._good_until = float("-inf")  # monotonic

    async def check(self) -> None:
        """Only looks."""
        self._refuse(await self._connections.read("GET", self._key))

    async def note(self) -> None:
        """Before each change; the store is asked every LOOK_EVERY seconds."""
        now = self._clock.monotonic()
        if now >= self._good_until:
            self._refuse(await self._connections.run_named("schema", [self._key], [SCHEMA]))
            self._good_until = now + LOOK_EVERY

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

    def _refuse(self, found: bytes | None) -> None:
        why = trouble(self._key, found)
        if why is not None:
            raise StoreMisuse(f"{why}; {RUN_THE_NEWER}", kind="schema")


def trouble(key: str, found: bytes | None) -> str | None:
    """One sentence where what ``key`` holds is not the number of a layout that this version knows."""
    number = b"0" if found is None else bytes(found)
    if number.isdigit() and int(number[:18]) <= SCHEMA:
        return None
    shown = number[:20].decode("ascii", "backslashreplace")
    return f"a newer cbq-exporter has written to this queue: {key} is {shown}, and this version knows up to {SCHEMA}"
