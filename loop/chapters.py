"""What is broken, and what must heal it, by when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loop import shipped
from loop.story import Event, Story
from loop.world import World, item
from tests.support.daemons import queue, until
from tests.support.receiver import Receiver

INTERVAL = 1  # seconds between scrapes, and between evaluations
_CALLBACKS = 3  # that a fault holds up
_STALE = 2  # seconds after which a lock without expiry counts as left behind
_STUCK = 2  # seconds after which a callback that somebody claimed counts as stuck
_LOOKS = 0.25  # seconds between the daemon's looks
_RETRIES = 2  # seconds between attempts, at most
_LEFT_ALONE = 2  # seconds that a receiver that fails is left alone, at most
_BUSY = 2.0  # seconds that a busy machine may take on top of every bound
_DOWN_FOR = 20  # callbacks that a receiver misses, at least
_THEIRS = "worker_1764000000_1234"  # as existing workers write into the lock


# Of a lock that somebody else holds, and sooner or later as intervals happen to fall.
_FOLLOW = {"CbqNoLeader"}


@dataclass(frozen=True, slots=True)
class Chapter:
    """One fault in a queue of its own. ``settings`` are those of the queue.

    ``happen`` breaks it, and returns when every callback of it has been delivered. ``alert`` fires, where it is not
    None. ``operation`` is what heals it, as the audit names it, caused by ``trigger``; None where retries do.
    ``within`` is the most seconds from the fault until it is healed; with retries, from the end of the fault.
    """

    title: str
    settings: dict[str, Any]
    happen: Callable[[World, Story], None]
    within: float
    alert: str | None = None
    operation: str | None = None
    trigger: str = "retries"

    @property
    def name(self) -> str:
        """Of the queue."""
        return str(self.settings["name"])

    def play(self, world: World, tell: Callable[[Event], None]) -> Story:
        """From a queue that is well until it is well again."""
        world.client.rpush(f"{self.name}:pending", item(world.receiver.url("/before"), 0))
        until(lambda: not world.unsettled(self.name))
        story = Story(world, self.name, tell)
        self.happen(world, story)
        if self.operation is not None:
            story.healed_in = story.wait_for(lambda: story.acts)[0].at
        story.wait_for_the_end()
        return story

    def wrong(self, story: Story) -> list[str]:
        """How the story that was told differs from what must be; empty where it does not."""
        others = sorted(story.fired.keys() - {self.alert, *_FOLLOW})
        # Of a receiver that is down many rules may speak.
        found = [f"{one} fired" for one in others if self.operation is not None]
        if self.alert is not None and self.alert not in story.fired:
            found.append(f"{self.alert} did not fire")
        done = [(act.operation, act.trigger) for act in story.acts]
        if done != ([(self.operation, self.trigger)] if self.operation else []):
            found.append(f"done was {done}")
        if story.healed_in > self.within + _BUSY:
            found.append(f"healed in {story.healed_in:.1f} s instead of {self.within:g} s")
        return found


def _lock_is_left(world: World, story: Story) -> None:
    """As by a worker that was killed between SETNX and EXPIRE, after another had freed the daemon's lock."""
    url = world.receiver.url(f"/{story.queue}")
    story.say("fault", f"a worker died: its lock never expires, {_CALLBACKS} callbacks wait")
    with world.client.pipeline() as transaction:
        transaction.delete(f"{story.queue}:lock")
        transaction.set(f"{story.queue}:lock", _THEIRS)
        transaction.rpush(f"{story.queue}:pending", *(item(url, number) for number in range(_CALLBACKS)))
        transaction.execute()
    _wait_for_deliveries(world.receiver, story, _CALLBACKS)


def _callbacks_are_left(world: World, story: Story) -> None:
    """As by a worker that was killed with callbacks in its hands."""
    url = world.receiver.url(f"/{story.queue}")
    story.say("fault", f"a worker died: {_CALLBACKS} callbacks stay in processing")
    world.client.rpush(f"{story.queue}:processing", *(item(url, number) for number in range(_CALLBACKS)))
    _wait_for_deliveries(world.receiver, story, _CALLBACKS)


def _receiver_is_down(world: World, story: Story) -> None:
    """It comes back on the same port once the alert has fired; callbacks keep coming all the time."""
    with Receiver() as receiver:
        url = receiver.url(f"/{story.queue}")
    story.say("fault", "the receiver is down: nobody listens on its port")
    ended = threading.Event()
    pushed = 0

    def produce() -> None:
        nonlocal pushed
        while not ended.wait(0.1):
            world.client.rpush(f"{story.queue}:pending", item(url, pushed))
            pushed += 1

    producer = threading.Thread(target=produce, name="producer")
    producer.start()
    try:
        story.wait_for(lambda: "CbqFailureRatioHigh" in story.fired and pushed >= _DOWN_FOR)
        missed = pushed
        with Receiver(port=receiver.port) as receiver:
            story.say("fault", f"the receiver is back; {missed} callbacks wait in retry")
            back = story.now
            _wait_for_deliveries(receiver, story, missed)
            story.healed_in = story.now - back
            story.wait_for_the_end()
            ended.set()
            producer.join()
            _wait_for_deliveries(receiver, story, pushed)
    finally:
        ended.set()
        producer.join()


def _wait_for_deliveries(receiver: Receiver, story: Story, count: int) -> None:
    """Of different callbacks."""

    def delivered() -> set[bytes]:
        return {request.body for request in receiver.requests if request.path == f"/{story.queue}"}

    story.wait_for(lambda: len(delivered()) >= count)
    story.say("receiver", f"has {count} callbacks")


_WAITS = shipped.waits()
_LOOKING: dict[str, Any] = {
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"every": f"{_LOOKS}s", "stuck_after": f"{_STUCK}s"},
    "lock": {"check_every": f"{_LOOKS}s", "stale": {"no_ttl_after": f"{_STALE}s"}},
}
_NOT_BY_ITSELF: dict[str, Any] = {"recovery": {"auto": False}, "lock": {"stale": {"auto": False}}}
# Attempts go on often enough for the share that fails to be known, and soon enough after the receiver is back.
_LEAVES_ALONE: dict[str, Any] = {
    "retry": {"base": "500ms", "cap": f"{_RETRIES}s", "max_attempts": 100},
    "delivery": {"breaker": {"open_for": "500ms", "longest_open": f"{_LEFT_ALONE}s"}},
}

CHAPTERS = (
    Chapter(
        "A lock is left behind, and the daemon heals by itself",
        queue(_LOOKING, name="orders"),
        _lock_is_left,
        trigger="schedule",
        operation="unlock",
        within=_STALE + 2 * _LOOKS,
    ),
    Chapter(
        "A lock is left behind, and lock.stale.auto is false",
        queue(_LOOKING, _NOT_BY_ITSELF, name="invoices"),
        _lock_is_left,
        alert="CbqLockWithoutExpiry",
        trigger="alert",
        operation="unlock",
        within=2 * INTERVAL + _WAITS["CbqLockWithoutExpiry"],
    ),
    Chapter(
        "Callbacks are stuck, and recovery.auto is false",
        queue(_LOOKING, _NOT_BY_ITSELF, name="refunds"),
        _callbacks_are_left,
        alert="CbqStuckItems",
        trigger="alert",
        operation="recover",
        # The first look, and the age that makes it stuck, come before anything can be seen.
        within=_LOOKS + _STUCK + 2 * INTERVAL + _WAITS["CbqStuckItems"],
    ),
    Chapter(
        "A receiver is down, and comes back",
        queue(_LOOKING, _LEAVES_ALONE, name="receipts"),
        _receiver_is_down,
        within=_LEFT_ALONE + _RETRIES + 1,  # and a second to send all that waits
        alert="CbqFailureRatioHigh",
    ),
)
