"""``pause`` and ``resume``: of a queue, or of one destination."""

from __future__ import annotations

from cbq_exporter.config.matching import Match
from cbq_exporter.errors import CbqError, PreconditionChanged
from cbq_exporter.phrases import age
from cbq_exporter.services.operations.parts import Order, Parts, by_state
from cbq_exporter.services.operations.requests import Executed, Pause, Plan, Resume
from cbq_exporter.store import pauses
from cbq_exporter.store.pauses import Paused

_GOES_OUT = ": what was put off goes out within seconds"


async def plan_pause(parts: Parts, operation: Pause) -> Plan:
    contents, paused = await parts.inspection.contents(), await parts.pauses.current()
    what = _what(parts, operation)
    state = f"{parts.config.name} holds {by_state(contents.counts)}"
    since = _since(paused, operation.destination, contents.now_ms / 1000)
    if since is not None:
        return Plan(operation, (state, f"{what} is paused already, {since}"), {"pauses": 0}, nothing_to_do=True)
    if operation.destination is None:
        effect = "pause it: daemons take nothing more from it; what is being sent is finished"
    else:
        effect = f"pause {what}: its callbacks are put off, without using up an attempt; others are sent"
    return Plan(
        operation,
        (state, effect, "workers that are not cbq-exporter do not know of pauses"),
        {"pauses": 1},
        {"paused": False, "destination": operation.destination, **contents.counts},
        refusal=_misnamed(parts, operation.destination),
        question=f"Pause {what}?",
    )


async def execute_pause(parts: Parts, operation: Pause, order: Order) -> Executed:
    at = await parts.queue.store_now_ms() / 1000
    begun = await parts.pauses.begin(operation.destination, pauses.Pause(at, str(order.actor), order.reason))
    if begun is None:
        raise CbqError(f"{pauses.MOST} destinations are paused already: resume some, or pause the whole queue")
    if not begun:
        raise PreconditionChanged(f"nothing was changed: somebody else has paused {_what(parts, operation)} meanwhile")
    return Executed({"pauses": 1})


async def plan_resume(parts: Parts, operation: Resume) -> Plan:
    contents, paused = await parts.inspection.contents(), await parts.pauses.current()
    what = _what(parts, operation)
    state = f"{parts.config.name} holds {by_state(contents.counts)}"
    since = _since(paused, operation.destination, contents.now_ms / 1000)
    failing = None
    if operation.destination is not None:
        failing = (await parts.breakers.among([operation.destination])).get(operation.destination)
    if since is None and failing is not None:
        how_long = age(contents.now_ms / 1000 - failing.since)
        effect = f"{what} is left alone because it fails, for {how_long}; send to it again{_GOES_OUT}"
        before = {"paused": False, "circuit": failing.phase, "destination": operation.destination, **contents.counts}
        return Plan(operation, (state, effect), {"pauses": 1}, before, question=f"Send to {what} again?")
    if since is None:
        others = _others(paused)
        by_configuration = _by_configuration(parts, operation.destination)
        line = f"{what} is not paused{' but ' if by_configuration else ''}{by_configuration}{others}"
        return Plan(operation, (state, line), {"pauses": 0}, nothing_to_do=True)
    effect = f"{what} is paused, {since}; resume it"
    if operation.destination is not None:
        by_configuration = _by_configuration(parts, operation.destination)
        effect += f"; it stays paused {by_configuration}" if by_configuration else _GOES_OUT
    return Plan(
        operation,
        (state, effect),
        {"pauses": 1},
        {"paused": True, "destination": operation.destination, **contents.counts},
        question=f"Resume {what}?",
    )


async def execute_resume(parts: Parts, operation: Resume, order: Order) -> Executed:
    ended = await parts.pauses.end(operation.destination)
    if operation.destination is not None:
        # Who wants it sent does not want to wait for a probe either.
        ended |= await parts.breakers.close(operation.destination)
    if not ended:
        raise PreconditionChanged(f"nothing was changed: somebody else has resumed {_what(parts, operation)} meanwhile")
    return Executed({"pauses": 1})


def _what(parts: Parts, operation: Pause | Resume) -> str:
    return parts.config.name if operation.destination is None else operation.destination


def _misnamed(parts: Parts, destination: str | None) -> str | None:
    """Why nothing goes by this name: a host whose callbacks go by another."""
    if destination is None or any(entry.name == destination for entry in parts.destinations):
        return None
    for entry in parts.destinations:
        match = Match.read(entry.match)
        if match.host.fits(destination):
            return f"what goes to {destination} is called {entry.name}: name that" if match.is_of_host else None
    return None


def _by_configuration(parts: Parts, destination: str | None) -> str:
    """For people: whether it is paused by the configuration, which only a reload can end."""
    entry = next((entry for entry in parts.destinations if entry.name == destination), None)
    return "by the configuration, which a reload can end" if entry is not None and entry.paused else ""


def _since(paused: Paused, destination: str | None, now: float) -> str | None:
    """None where it is not paused."""
    pause = paused.queue if destination is None else paused.destinations.get(destination)
    if pause is None:
        return None
    why = f": {pause.reason}" if pause.reason else ""
    return f"for {age(now - pause.at)}, by {pause.by or 'somebody'}{why}"


def _others(paused: Paused) -> str:
    """What else is."""
    names = (["the queue"] if paused.queue else []) + sorted(paused.destinations)
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"; paused are: {', '.join(names[:5])}{more}"
