"""The end of the demo: is every accepted callback delivered or dead?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.model import DeadLetter
from cbq_exporter.store.queue import Queue

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Reckoning:
    """Counts of callbacks. ``again`` are deliveries of what had been delivered before: at least once is the promise."""

    accepted: int
    delivered: int
    dead: int
    missing: int
    again: int
    dead_by_reason: Mapping[str, int]
    unsettled: Mapping[str, int]

    @property
    def exact(self) -> bool:
        return self.missing == 0 and self.accepted == self.delivered + self.dead


def reckon(
    accepted: Mapping[bytes, int],
    delivered: Mapping[int, int],
    dead: Sequence[DeadLetter],
    unsettled: Mapping[str, int] | None = None,
) -> Reckoning:
    """``accepted``: the id of each payload; ``delivered``: how often each id was; ``dead``: with their payloads;
    ``unsettled``: how many were still on their way when time was up, by state.
    """
    ids = {accepted[one.payload]: one.reason for one in dead if one.payload is not None and one.payload in accepted}
    only_dead = {number: reason for number, reason in ids.items() if number not in delivered}
    return Reckoning(
        accepted=len(accepted),
        delivered=len(delivered),
        dead=len(only_dead),
        missing=len(set(accepted.values()) - set(delivered) - set(only_dead)),
        again=sum(times - 1 for times in delivered.values()),
        dead_by_reason=dict(Counter(only_dead.values()).most_common()),
        unsettled={state: number for state, number in (unsettled or {}).items() if number},
    )


async def all_dead(queue: Queue) -> list[DeadLetter]:
    return [letter async for page in queue.dead.pages(_PAGE, with_payload=True) for letter in page]
