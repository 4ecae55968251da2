"""What is paused, as whoever sends for a queue must know it; and pausing what says that it is gone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from cbq_exporter.clock import Clock
from cbq_exporter.errors import CbqError, PreconditionChanged, StoreError
from cbq_exporter.model import Actor, Trigger
from cbq_exporter.services.operations import Operations, Pause
from cbq_exporter.store.pauses import NOT_PAUSED, Pauses

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds

_ACTOR = Actor(Trigger.SCHEDULE)


class Pausing:
    """Of one queue. Nothing is known before the first ``look``."""

    def __init__(self, queue: str, pauses: Pauses, operations: Operations, clock: Clock) -> None:
        self._queue = queue
        self._pauses = pauses
        self._operations = operations
        self._clock = clock
        self._paused = NOT_PAUSED
        self._gone: dict[str, str] = {}  # destinations that the store is to be told of, and why
        self._looked = float("-inf")  # monotonic
        self.destinations: Collection[str] = frozenset()

    @property
    def of_queue(self) -> bool:
        """Whether the queue as a whole is paused."""
        return self._paused.queue is not None

    def add(self, gone: Mapping[str, str]) -> list[str]:
        """Pause these destinations, for the reasons given, from now on; returns those that were not paused."""
        new = [name for name in gone if name not in self.destinations]
        self._gone.update((name, gone[name]) for name in new)
        self.destinations = {*self.destinations, *new}
        return new

    async def look(self) -> None:
        """Bring what the store knows and what we know together, once a second or when there is news.

        Raises StoreError; what the store was not told it is told the next time.
        """
        now = self._clock.monotonic()
        if not self._gone and now - self._looked < LOOK_EVERY:
            return
        await self.save()
        was_paused = self.of_queue
        self._paused = await self._pauses.current()
        self._looked = now
        self.destinations = {*self._paused.destinations, *self._gone}
        if was_paused != self.of_queue:
            log.info("resumed" if was_paused else "paused by an operator", extra={"queue": self._queue})

    async def save(self) -> None:
        """Tell the store which destinations are gone. Raises StoreError."""
        while self._gone:
            name, why = next(iter(self._gone.items()))
            try:
                plan = await self._operations.plan(Pause(self._queue, name))
                if not plan.nothing_to_do:
                    await self._operations.execute(plan, actor=_ACTOR, reason=why)
                    log.warning("a destination is paused: %s", why, extra={"queue": self._queue, "destination": name})
            except StoreError:
                raise
            except PreconditionChanged:
                pass  # somebody else has paused it
            except CbqError as error:
                log.error(
                    "a destination cannot be paused: %s", error, extra={"queue": self._queue, "destination": name}
                )
            del self._gone[name]
