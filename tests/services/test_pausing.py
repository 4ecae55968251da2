"""What the dispatcher knows of pauses: at once what it has learnt itself, and from the store within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from cbq_exporter.errors import StoreError
from cbq_exporter.model import Actor, Mode, Trigger
from cbq_exporter.services.operations import Pause, Resume
from cbq_exporter.services.pausing import LOOK_EVERY, Pausing
from cbq_exporter.store.pauses import Pauses
from tests.services.operating import QUEUE, Operating
from tests.support.servers import Server

GONE = {"partner": "it answered HTTP 410"}


class HandClock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    monotonic = now


class World:
    def __init__(self, desk: Operating) -> None:
        self.desk = desk
        self.clock = HandClock()
        self.pausing = Pausing(QUEUE, Pauses(desk.store.connections, desk.keys), desk.operations, self.clock)

    def look(self, later: float = 0.0) -> set[str]:
        self.clock.at += later
        self.desk.do(self.pausing.look())
        return set(self.pausing.destinations)


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    with Operating(server, Mode.DISPATCH) as desk:
        yield World(desk)


def test_a_destination_that_is_gone_is_paused_at_once_and_then_in_the_store(world: World) -> None:
    desk, pausing = world.desk, world.pausing
    assert world.look() == set()
    assert pausing.add(GONE) == ["partner"]
    assert set(pausing.destinations) == {"partner"}
    assert not desk.redis.exists(desk.keys.paused)
    assert world.look() == {"partner"}  # at once, where there is news
    assert desk.redis.hkeys(desk.keys.paused) == [b"partner"]
    assert [(one.operation, str(one.actor), str(one.result), one.reason) for one in desk.entries] == [
        ("pause", "schedule", result, GONE["partner"]) for result in ("started", "done")
    ]
    assert pausing.add(GONE) == []
    assert world.look(LOOK_EVERY) == {"partner"}
    assert desk.counted == [("pause", "schedule", "done")]


def test_what_is_learnt_while_the_store_is_asked_is_not_forgotten(world: World) -> None:
    async def learn() -> None:
        await asyncio.sleep(0)  # the look has begun
        assert world.pausing.add(GONE) == ["partner"]

    async def both() -> None:
        await asyncio.gather(world.pausing.look(), learn())

    world.desk.do(both())
    assert set(world.pausing.destinations) == {"partner"}
    assert world.look() == {"partner"}
    assert world.desk.redis.hkeys(world.desk.keys.paused) == [b"partner"]


def test_what_a_person_ends_has_ended_and_may_begin_again(world: World) -> None:
    world.pausing.add(GONE)
    world.look()
    world.desk.carry_out(Resume(QUEUE, "partner"))
    assert world.look(LOOK_EVERY / 2) == {"partner"}
    assert world.look(LOOK_EVERY / 2) == set()
    assert world.pausing.add(GONE) == ["partner"]
    assert world.look() == {"partner"}


def test_who_is_paused_already_is_left_as_it_is(world: World) -> None:
    alice = Actor(Trigger.CLI, "alice@host")
    world.desk.carry_out(Pause(QUEUE, "partner"), reason="on holiday")
    world.pausing.add(GONE)  # before it was looked
    assert world.look() == {"partner"}
    note = world.desk.redis.hget(world.desk.keys.paused, "partner")
    assert (str(alice).encode() in note, b"on holiday" in note) == (True, True)


def test_what_the_store_could_not_be_told_is_paused_here_and_told_later() -> None:
    with Server() as server, Operating(server, Mode.DISPATCH) as desk:
        world = World(desk)
        world.look()
        world.pausing.add(GONE)
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreError):
                world.look()
            assert set(world.pausing.destinations) == {"partner"}
        server.start()
        assert world.look() == {"partner"}
        client: Any = server.client
        assert client.hkeys(desk.keys.paused) == [b"partner"]


def test_where_too_many_are_paused_sending_goes_on(world: World) -> None:
    desk = world.desk
    desk.redis.hset(desk.keys.paused, mapping={f"host{number}": "{}" for number in range(1000)})
    world.pausing.add(GONE)
    assert len(world.look()) == 1000
    assert world.pausing.add(GONE) == ["partner"]
