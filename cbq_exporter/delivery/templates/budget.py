"""What one rendering may do: so that no item can make it long or large."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from jinja2.runtime import Context

from cbq_exporter.delivery.fields import JsonArray, JsonObject

MOST_STEPS = 50_000  # of all loops of one rendering together, and calls
_MOST_PASSES = 8  # how often the characters that a body may have can be read or made on the way to it
_LEAST_CHARACTERS = 64 * 1024  # that a body is taken to have

KEY = "budget of this rendering"  # where a rendering's values hold it: no name that a template could say

# Named, because putting kinds together takes longer than asking for them.
_STRINGS = (str, bytes)
_OPENED = (JsonObject, JsonArray)
_MANY = (list, tuple, dict, range)


class Exhausted(Exception):
    """A rendering did more than one may."""


class Budget:
    """What one rendering may still do."""

    __slots__ = ("characters", "steps")

    def __init__(self, max_chars: int) -> None:
        self.steps = MOST_STEPS
        self.characters = _MOST_PASSES * max(max_chars, _LEAST_CHARACTERS)

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise Exhausted(f"its loops and calls take more than {MOST_STEPS:,} steps")

    def take(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise Exhausted("the texts that it reads and makes are too long")

    def spend(self, value: object) -> None:
        """For going through ``value``, or for having made it.

        Raises ValueError for what is no number that JSON has: Python would go on with infinity.
        """
        if isinstance(value, _STRINGS):
            self.take(len(value))
        elif isinstance(value, _OPENED):
            self.take(memoryview(value.raw).nbytes)
            self.step(len(value))
        elif isinstance(value, _MANY):
            self.step(len(value))
            if not isinstance(value, range):
                self._spend_within(value)
        elif isinstance(value, int):
            self.take(value.bit_length() // 3)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is out of range")

    def _spend_within(self, values: Collection[Any]) -> None:
        """For what a list of a template holds, at each place where it stands: ``[a, a]`` goes through ``a`` twice."""
        for value in values.values() if isinstance(values, dict) else values:
            if isinstance(value, _OPENED):
                self.take(memoryview(value.raw).nbytes)
            else:
                self.spend(value)


def budget_of(context: Context) -> Budget:
    budget: Budget = context.parent[KEY]
    return budget


def one_by_one(budget: Budget, values: Iterable[Any], cost: int = 1) -> Iterator[Any]:
    for value in values:
        budget.step(cost)
        yield value
