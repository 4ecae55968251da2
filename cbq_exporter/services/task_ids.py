"""The ``task_id`` of callbacks that are kept: it stands in their payloads, which are read within a bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cbq_exporter import item
from cbq_exporter.model import DeadLetter, WaitingRetry
from cbq_exporter.store.kept import KeptSet

MOST_BYTES = 64 * 1024 * 1024  # of payloads, for one list
_AT_ONCE = 4 * 1024 * 1024

Kept = DeadLetter | WaitingRetry


async def read(where: KeptSet[Any], shown: Sequence[Kept]) -> Mapping[str, str]:
    """By the id of the callback; empty where it has none. What has no room in MOST_BYTES is left out."""
    found: dict[str, str] = {}
    for ids in _pages(shown):
        for one, payload in zip(ids, await where.payloads(ids), strict=True):
            found[one] = "" if payload is None else item.task_id_of(payload)
    return found


def _pages(shown: Sequence[Kept]) -> Iterator[list[str]]:
    room = MOST_BYTES
    page: list[str] = []
    size = 0
    for one in shown:
        if one.size > room:
            continue  # a smaller one may still fit in
        room -= one.size
        if page and size + one.size > _AT_ONCE:
            yield page
            page, size = [], 0
        page.append(one.id)
        size += one.size
    if page:
        yield page
