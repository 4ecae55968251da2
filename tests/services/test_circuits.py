"""The circuits of one queue: what is forgotten when nobody will ever close it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbq_exporter.config import QueueConfig
from cbq_exporter.delivery import url
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.services.circuits import Circuits
from cbq_exporter.store.breakers import Breakers
from tests.support.queues import OURS, DrivenQueue
from tests.support.servers import Server

RECEIVER = Receivers(QueueConfig(name="q"), ()).of(url.parse("http://a.example/"))
NAME = RECEIVER.name


class At:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def driven(server: Server) -> Iterator[DrivenQueue]:
    with DrivenQueue(server) as running:
        running.claim(1)  # takes the send lock
        yield running


def circuits(driven: DrivenQueue, clock: At) -> Circuits:
    breakers = Breakers(driven.connections, driven.keys, lock_value=OURS)
    return Circuits("q", breakers, Instruments(["q"]).queue("q"), clock)


def look(driven: DrivenQueue, one: Circuits, *waiting: str) -> bool:
    """Whether it is still not closed, for us and for whoever asks the store."""

    async def looking() -> None:
        await one.save()
        await one.look(waiting)
        await one.save()

    driven.do(looking())
    assert driven.redis.hlen(driven.keys.breakers) == len(one.unwell)
    return bool(one.unwell)


@pytest.mark.parametrize("probed", [False, True])
def test_one_that_nobody_will_probe_is_forgotten(driven: DrivenQueue, probed: bool) -> None:
    """A destination that was renamed, or whose callbacks are gone: its circuit would be open, and alarm, for ever."""
    clock = At()
    one = circuits(driven, clock)
    one.record(RECEIVER, succeeded=0, failed=100)
    assert look(driven, one, NAME)
    clock.seconds += 60
    if probed:
        assert one.places(RECEIVER) == 3
        one.record(RECEIVER, succeeded=1, failed=0)
    clock.seconds += 550
    assert look(driven, one)
    clock.seconds += one.forgotten_in(NAME) + 1
    assert look(driven, one, NAME)  # something waits for it
    clock.seconds += 2
    assert not look(driven, one)
    assert one.places(RECEIVER) is None


def test_whoever_takes_over_forgets_it_too(driven: DrivenQueue) -> None:
    clock = At()
    one, next_one = circuits(driven, clock), circuits(driven, clock)
    one.record(RECEIVER, succeeded=0, failed=100)
    assert look(driven, one)
    driven.do(next_one.load())
    assert NAME in next_one.unwell
    clock.seconds += 1000
    assert not look(driven, next_one)
