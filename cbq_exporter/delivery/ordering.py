"""Of callbacks of one key that were claimed together, one is under way at a time. Pure.

The store sees to it that none is claimed before those that were claimed earlier have ended (claim.lua). Here waits
what one claim brought: few of a key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.model import Claimed


class Turns:
    """Callbacks without a turn pass by."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Parcel]] = {}  # by key, while one of it is under way

    def begin(self, parcels: Sequence[Parcel], put_off: Sequence[Claimed]) -> tuple[list[Parcel], list[Parcel]]:
        """What a claim brought: those that may be sent now, and those that have to come back after one ``put_off``.

        The others wait.
        """
        put_off_at: dict[str, str] = {}
        for claimed in put_off:
            key = key_of(claimed)
            put_off_at[key] = min(claimed.turn, put_off_at.get(key, claimed.turn))
        begun: list[Parcel] = []
        held: list[Parcel] = []
        for parcel in parcels:
            turn = parcel.claimed.turn
            key = key_of(parcel.claimed)
            if key and turn > put_off_at.get(key, turn):
                held.append(parcel)
            elif key in self._waiting:
                self._waiting[key].append(parcel)
            else:
                if key:
                    self._waiting[key] = deque()
                begun.append(parcel)
        return begun, held

    def pass_on(self, claimed: Claimed) -> Parcel | None:
        """It has ended, delivered or given up: the next of its key, which may be sent now."""
        key = key_of(claimed)
        waiting = self._waiting.get(key)
        if waiting is None:
            return None
        if waiting:
            return waiting.popleft()
        del self._waiting[key]
        return None

    def stop(self, claimed: Claimed) -> list[Parcel]:
        """It comes back later: those that waited for it, which have to come back after it."""
        return list(self._waiting.pop(key_of(claimed), ()))

    def take_all(self) -> list[Parcel]:
        """All that wait."""
        taken = list(chain.from_iterable(self._waiting.values()))
        self._waiting.clear()
        return taken


def key_of(claimed: Claimed) -> str:
    """Empty: it has no turn."""
    return claimed.turn.partition(":")[0]
