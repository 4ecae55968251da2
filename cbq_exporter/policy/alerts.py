"""What an alert is to cause. Pure: the same alert and the same routes always give the same answer.

An alert supplies labels, and nothing else: which queue, which action and within which limits is in the configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cbq_exporter.config.models import AlertRouteConfig
from cbq_exporter.model import AlertOutcome, Mode

QUEUE_LABEL = "queue"
DESTINATION_LABEL = "destination"
_SUMMED = "other"  # the destination of metrics that stands for many
_LONGEST_DESTINATION = 300  # characters


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert as Alertmanager sends it. ``started`` is the beginning of its firing, as text."""

    fingerprint: str
    started: str
    firing: bool
    labels: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "")

    @property
    def id(self) -> str:
        """The same for the same firing of the same alert, by whichever Alertmanager it comes."""
        return _digest(self.fingerprint, self.started)


@dataclass(frozen=True, slots=True)
class Leave:
    """It causes nothing. ``place`` is the position of the route that fits, None where none does."""

    outcome: AlertOutcome
    why: str
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """It causes the action of ``route``, which stands at ``place``, if the limits and the store agree."""

    route: AlertRouteConfig
    place: int
    queue: str
    destination: str | None


def decide(alert: Alert, routes: Sequence[AlertRouteConfig], modes: Mapping[str, Mode]) -> Act | Leave:
    """The first route whose match fits decides. ``modes`` by the names of the configured queues."""
    if not alert.firing:
        return Leave(AlertOutcome.RESOLVED, "it is resolved, which never causes anything")
    for place, route in enumerate(routes):
        if route.match.fits(alert.labels):
            return _follow(alert, place, route, modes)
    return Leave(AlertOutcome.UNMATCHED, "no route fits its labels")


def _follow(alert: Alert, place: int, route: AlertRouteConfig, modes: Mapping[str, Mode]) -> Act | Leave:
    queue = alert.labels.get(QUEUE_LABEL, "") if route.queue is None else route.queue
    mode = modes.get(queue)
    if mode is None:
        why = "no configured queue has the name in its label queue" if queue else "it has no label queue"
        return Leave(AlertOutcome.UNKNOWN_QUEUE, why, place)
    if mode is Mode.OBSERVE:
        return Leave(
            AlertOutcome.OBSERVED, f"the mode of queue {queue} is observe: nothing of it is ever changed", place
        )
    if route.scope != "destination":
        return Act(route, place, queue, None)
    destination = alert.labels.get(DESTINATION_LABEL, "").lower()  # as URLs are read
    if not _names_one(destination):
        return Leave(AlertOutcome.INVALID, "its label destination does not name one destination", place)
    return Act(route, place, queue, destination)


def _names_one(destination: str) -> bool:
    return (
        0 < len(destination) <= _LONGEST_DESTINATION
        and destination != _SUMMED
        and destination.isprintable()
        and " " not in destination
    )


def route_key(route: AlertRouteConfig) -> str:
    """What a route's cap is counted under. It stays the same where the route moves or its limits change."""
    return _digest(str(route.match), route.action, route.scope)


def target_key(act: Act) -> str:
    """What a route's cooldown is counted under: with scope destination, each destination has its own."""
    return _digest(route_key(act.route), act.destination or "")


def _digest(*parts: str) -> str:
    """Short: it names things in the store and keeps no secret."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
