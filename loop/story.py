"""What happens in one queue after something broke, as it comes: alerts, the audit, and what people are told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from loop.world import Told, World
from tests.support.daemons import until

T = TypeVar("T")

_LOOKS_EVERY = 0.2  # seconds
_PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Event:
    """``at`` is seconds since the fault."""

    at: float
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class Act:
    """What was done about it, and who caused it: schedule or alert, and its name. ``at`` as in Event."""

    at: float
    trigger: str
    actor: str
    operation: str


class Story:
    """Begin it at the moment of the fault. ``tell`` is called with each event, about in their order."""

    def __init__(self, world: World, queue: str, tell: Callable[[Event], None]) -> None:
        self.queue = queue
        self.fired: dict[str, float] = {}  # by alert; at as in Event
        self.healed_in = math.inf  # seconds, of which the chapter says since when
        self.acts: list[Act] = []
        self._world = world
        self._tell = tell
        self._began = time.time()
        self._states: dict[tuple[str, str], str] = {}  # of alerts, by name and severity
        self._audited = len(world.audited(queue))
        self._told = 0  # of _news()

    @property
    def now(self) -> float:
        """Seconds since the fault."""
        return time.time() - self._began

    def say(self, who: str, what: str, at: float | None = None) -> None:
        self._tell(Event(self.now if at is None else at, who, what))

    def wait_for(self, condition: Callable[[], T]) -> T:
        """Go on telling until it is true, and return it; TimeoutError where it takes too long."""
        looked = 0.0

        def look() -> T:
            nonlocal looked
            if time.monotonic() - looked >= _LOOKS_EVERY:
                self._look()
                looked = time.monotonic()
            return condition()

        value = until(look, _PATIENCE, what=lambda: f"{self.queue}: {self._states}, {self.acts}")
        self._look()  # what made it true is told too
        return value

    def wait_for_the_end(self) -> None:
        """Until no alert about the queue is left, and people who were told of one know that it has ended."""
        self.wait_for(lambda: not self._states and "firing" not in self._last_told().values())

    def _last_told(self) -> dict[tuple[str, str], str]:
        """By alert and severity; of one that ended within ``group_wait`` nobody is told."""
        return {(one.alert, one.severity): one.status for one in self._news()}

    def _news(self) -> list[Told]:
        return [one for one in self._world.told() if one.queue == self.queue and one.at > self._began]

    def _look(self) -> None:
        events = [*self._look_at_audit(), *self._look_at_prometheus(), *self._look_at_people()]
        for event in sorted(events, key=lambda one: one.at):
            self._tell(event)

    def _look_at_audit(self) -> list[Event]:
        entries = self._world.audited(self.queue)
        new, self._audited = entries[self._audited :], len(entries)
        events = []
        for one in new:
            at = float(one["at"]) - self._began
            if one["result"] == "done":
                self.acts.append(Act(at, one["trigger"], one["actor"], one["operation"]))
            by = ":".join(filter(None, (one["trigger"], one["actor"])))
            events.append(Event(at, "daemon", f"{one['operation']} by {by}: {one['result']}"))
        return events

    def _look_at_prometheus(self) -> list[Event]:
        found = [one for one in self._world.prometheus.alerts() if one["labels"].get("queue") == self.queue]
        states = {(one["labels"]["alertname"], one["labels"]["severity"]): one["state"] for one in found}
        events = []
        for alert in sorted(states.keys() | self._states.keys()):
            before, state = self._states.get(alert), states.get(alert)
            if before == state:
                continue
            if state == "firing":
                self.fired.setdefault(alert[0], self.now)
            events.append(Event(self.now, "prometheus", f"{alert[0]} ({alert[1]}) {_WORDS[state]}"))
        self._states = states
        return events

    def _look_at_people(self) -> list[Event]:
        news = self._news()
        new, self._told = news[self._told :], len(news)
        return [Event(one.at - self._began, "people", f"{one.alert} ({one.severity}) {one.status}") for one in new]


_WORDS = {"pending": "holds", "firing": "fires", None: "has ended"}
