"""What is too much for one command or one script, in parts that fit: nobody else is served meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeVar

from cbq_exporter.store.connections import Connections

FIRST_PAGE = 2  # payloads: how large they are is not known yet
_FIRST_AT_THE_TAIL = 16  # where the last one is small: what is few is one page, and goes back in its order
_PAGE_BYTES = 1024 * 1024  # of payloads that are read at once, about
_PAGE_ITEMS = 2000

T = TypeVar("T")


def chunks(values: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Runs of at most ``most``."""
    for first in range(0, len(values), most):
        yield values[first : first + most]


def batches(values: Sequence[T], size_of: Callable[[T], int], *, most: int, most_bytes: int) -> Iterator[Sequence[T]]:
    """Runs of at most ``most``, of ``most_bytes`` together; one that is larger stands alone."""
    first = size = 0
    for position, value in enumerate(values):
        size += size_of(value)
        if position > first and (position - first >= most or size > most_bytes):
            yield values[first:position]
            first, size = position, size_of(value)
    if values:
        yield values[first:]


def size_after(size: int, page: Sequence[bytes]) -> int:
    """How many to ask for after ``page``, for which ``size`` were asked: more and more, as far as they are as small as
    these.
    """
    if not page:
        return size
    mean = max(1, sum(map(len, page)) // len(page))
    return max(1, min(_PAGE_BYTES // mean, size * 4))


async def from_the_tail(
    connections: Connections, key: str, most: int | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """The list ``key`` in pages, the last first, each with the place of its first; with ``most``, only so many from
    the head.

    What is taken out meanwhile cannot make the walk miss anything, but it may see something twice.
    """
    end, last = await connections.read_all([("LLEN", key), ("LINDEX", key, -1)])
    if most is not None:
        end = min(end, most)
    size = min(_FIRST_AT_THE_TAIL, size_after(_FIRST_AT_THE_TAIL, [last or b""]))
    while end > 0:
        start = max(0, end - size)
        page = await connections.read("LRANGE", key, start, end - 1)
        yield start, page
        end = start
        size = min(_PAGE_ITEMS, size_after(size, page))
