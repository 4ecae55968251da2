"""Where something stands in a configuration, and how places and values are shown without giving a secret away."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

Place = tuple[str | int, ...]  # keys and positions from the top, such as ("queues", 0, "name")

_LONGEST = 60  # characters of a value or of a key
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,60}")
_HARMLESS = re.compile(r"[A-Za-z0-9_. -]{1,60}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at ``place``. ``others`` are the places of the values that it is compared with."""

    place: Place
    found: str
    allowed: str
    others: tuple[Place, ...] = ()


def shown(place: Place) -> str:
    """The path that an operator reads, such as ``queues[0].delivery.timeout``.

    A key that is no plain word may be a value in the wrong place, even a password: it is not shown.
    """
    path = ""
    for position, part in enumerate(place):
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            path += f".{part}" if path else part
        elif _HARMLESS.fullmatch(part) and not is_secret(place[:position]):
            path += f'["{part}"]'
        else:
            path += '["***"]'
    return path or "top level"


def shown_value(value: object, place: Place) -> str:
    """What was found, for people: bounded, on one line, and never a secret."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if not place:
        return "a single value"  # all of a file that is none of ours: it may hold a secret and be meant for another key
    if is_secret(place) or (isinstance(value, str) and "://" in value):
        return "***"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_secret(place: Place) -> bool:
    """Whether values here are not for every reader: the Redis URL, headers, which carry tokens, and what is named
    secrets, where one may have been written by mistake."""
    return place[:1] == ("redis",) or "headers" in place or "secrets" in place


def is_within(place: Place, faulty: Collection[Place]) -> bool:
    """Whether ``place`` is one of the ``faulty`` or beneath one; ``faulty`` should be a set."""
    return any(place[:length] in faulty for length in range(len(place) + 1))
