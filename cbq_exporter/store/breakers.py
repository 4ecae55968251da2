"""Which destinations of a queue have a circuit that is not closed: for who sends after us, and for people."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.paging import chunks
from cbq_exporter.store.times import epoch_ms, ms

MOST = 10_000  # circuits of one queue
_PAGE = 500  # of them, in one command: nobody else is served meanwhile


@dataclass(frozen=True, slots=True)
class Breaker:
    """``phase`` is a word of ``policy.breaker.Phase``; seconds, by the store: open for ``left`` more, and not closed
    since ``since`` (epoch). ``openings``: so many times in a row.
    """

    phase: str
    left: float
    openings: int
    since: float


class Breakers:
    """Raises StoreUnavailable (a change may or may not have happened) or StoreMisuse."""

    def __init__(self, connections: Connections, keys: QueueKeys, *, lock_value: str = "") -> None:
        self._connections = connections
        self._keys = keys
        self._lock_value = lock_value

    async def current(self) -> Mapping[str, Breaker]:
        """By destination, about MOST of them. Those that are closed are not among them."""
        found: dict[str, Breaker] = {}
        cursor = 0
        while True:
            page = ("HSCAN", self._keys.breakers, cursor, "COUNT", _PAGE)
            time, (next_cursor, fields) = await self._connections.read_all([("TIME",), page])
            found.update(_known(fields[::2], fields[1::2], epoch_ms(time)))
            cursor = int(next_cursor)
            if cursor == 0 or len(found) >= MOST:
                return found

    async def among(self, destinations: Collection[str]) -> Mapping[str, Breaker]:
        """Those of ``destinations`` whose circuit is not closed."""
        names = [name.encode("utf-8", "replace") for name in destinations]
        pages = list(chunks(names, _PAGE))
        time, *answers = await self._connections.read_all(
            [("TIME",), *(("HMGET", self._keys.breakers, *page) for page in pages)]
        )
        found: dict[str, Breaker] = {}
        for page, texts in zip(pages, answers, strict=True):
            found.update(_known(page, texts, epoch_ms(time)))
        return found

    async def keep(self, destination: str, phase: str, left: float, openings: int) -> bool:
        """Until ``left`` seconds from now it is what it is. False where it is not for us to say: the send lock is
        somebody else's; or where there are too many.
        """
        arguments = [self._lock_value, destination, phase, ms(left), openings, MOST]
        keys = [self._keys.lock, self._keys.breakers]
        return bool(await self._connections.run_named("breaker_keep", keys, arguments) == 1)

    async def close(self, destination: str) -> bool:
        """False where it was closed."""
        return bool(await self._connections.run_named("breaker_close", [self._keys.breakers], [destination]))


def _known(names: Sequence[bytes], texts: Sequence[bytes | None], now_ms: float) -> Iterator[tuple[str, Breaker]]:
    for name, text in zip(names, texts, strict=True):
        breaker = None if text is None else _read(text, now_ms)
        if breaker is not None:
            yield name.decode("utf-8", "replace"), breaker


def _read(text: bytes, now_ms: float) -> Breaker | None:
    """None where it was not written by us."""
    phase, *numbers = text.decode("ascii", "replace").split(" ")
    try:
        until_ms, openings, since_ms = map(int, numbers)
    except ValueError:
        return None
    return Breaker(phase, max(0.0, (until_ms - now_ms) / 1000), openings, since_ms / 1000)
