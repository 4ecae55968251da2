"""What is paused: the queue as a whole, or single destinations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys

MOST = 1000  # pauses of one queue
_QUEUE = ""  # the field of the queue as a whole


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when (epoch seconds, by the store) and by whom."""

    at: float
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Paused:
    """What is paused now. ``queue`` is None where the queue is not."""

    queue: Pause | None
    destinations: Mapping[str, Pause]


NOT_PAUSED = Paused(None, {})


class Pauses:
    """Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys) -> None:
        self._connections = connections
        self._key = keys.paused

    async def current(self) -> Paused:
        answer = await self._connections.read("HGETALL", self._key)
        if not answer:
            return NOT_PAUSED
        notes = {
            name.decode("utf-8", "replace"): _read(text) for name, text in zip(answer[::2], answer[1::2], strict=True)
        }
        queue = notes.pop(_QUEUE, None)
        return Paused(queue, notes)

    async def begin(self, destination: str | None, pause: Pause) -> bool | None:
        """False where it is paused already, None where there are too many pauses."""
        arguments = [destination or _QUEUE, msgspec.json.encode(pause), MOST]
        code = await self._connections.run_named("pause", [self._key], arguments)
        return None if code < 0 else bool(code)

    async def end(self, destination: str | None) -> bool:
        """False where it was not paused."""
        return bool(await self._connections.run_named("resume", [self._key], [destination or _QUEUE]))


def _read(text: bytes) -> Pause:
    try:
        return msgspec.json.decode(text, type=Pause)
    except msgspec.DecodeError:
        return Pause(0.0, "")
