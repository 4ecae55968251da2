"""Who may send now, and what is given back so that others can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.config import DeliveryConfig, PerDestinationConfig, QueueConfig
from cbq_exporter.delivery import url
from cbq_exporter.delivery.destinations import Destinations, Parcel
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.model import Claimed


def parcel(number: int, destination: str = "a", *, places: int = 2, rate: str | None = None) -> Parcel:
    claimed = Claimed(f"lease-{number}", "0" * 40, b"{}", 0, 0, 0)
    limits = PerDestinationConfig(concurrency=places, rate=rate)
    queue = QueueConfig(name="q", delivery=DeliveryConfig(per_destination=limits))
    receiver = Receivers(queue, ()).of(url.parse(f"http://{destination}/"))
    return Parcel(number, claimed, receiver, "http://a/", b"", [], 0.0)


def numbers(parcels: Sequence[Parcel]) -> list[int]:
    return [one.number for one in parcels]


def known(destinations: Destinations, *names: str, places: int = 2) -> None:
    """Each of them has answered once."""
    for name in names:
        assert destinations.offer(parcel(0, name, places=places), 0.0)
        assert not destinations.ended(name, 0.0, answered=True)


def test_each_destination_has_its_places_and_its_order() -> None:
    places = Destinations()
    assert [places.offer(parcel(n), 0.0) for n in range(4)] == [True, True, False, False]
    assert places.offer(parcel(9, "b"), 0.0)
    assert places.in_flight() == {"a": 2, "b": 1}
    assert [numbers(places.ended("a", 1.0, answered=True)) for _ in range(4)] == [[2], [3], [], []]
    assert places.in_flight() == {"b": 1}


def test_a_destination_that_keeps_up_keeps_what_waits() -> None:
    places = Destinations(patience=1.0)
    for number in range(50):
        places.offer(parcel(number, places=1), 0.0)
    assert places.excess(0.9) == []


def test_a_slow_destination_gives_back_all_that_it_will_not_begin_soon() -> None:
    places = Destinations(patience=1.0)
    known(places, "a")
    for number in range(10):
        places.offer(parcel(number), 0.0)
    places.offer(parcel(99, "b"), 0.0)
    assert [one.number for one in places.excess(1.5)] == [3, 4, 5, 6, 7, 8, 9]  # it has not ended one
    assert places.waiting == 1
    assert places.excess(1.5) == []


def test_the_appetite_of_a_destination_is_its_free_places_and_what_it_will_end_soon() -> None:
    places = Destinations(patience=1.0)
    receiver = parcel(0).receiver
    assert places.appetite(receiver, 0.0)[:2] == (2, 2)  # it has not answered yet
    known(places, "a", "c", "d")
    assert places.appetite(receiver, 0.0)[:2] == (4, 4)  # how fast it is is not known yet: twice its places
    for number in range(10):
        places.offer(parcel(number), 0.0)
    assert places.appetite(receiver, 0.5)[:2] == (0, 4)
    for _ in range(10):
        places.ended("a", 1.0, answered=True)
    assert places.appetite(receiver, 1.0)[:2] == (4, 4)
    for number in range(10):
        places.offer(parcel(number), 1.0)
    for tenth in range(9):
        places.ended("a", 1.2 + tenth / 10, answered=True)  # nine in the first second
    assert places.appetite(receiver, 2.0)[:2] == (10, 11)
    assert places.appetite(parcel(0, "c", rate="5/s").receiver, 0.0)[:2] == (4, 4)
    assert places.appetite(parcel(0, "d", rate="2/s").receiver, 0.0)[:2] == (2, 2)


def test_of_a_fast_destination_more_are_handed_over_until_it_falls_silent() -> None:
    places = Destinations()
    known(places, "a")
    for number in range(3000):
        places.offer(parcel(number), 0.0)
    begun = 2
    for _ in range(1100):  # a thousand in half a second
        begun += len(places.ended("a", 0.5, answered=True)) - 1
    assert begun == 4  # as many again as it has places
    assert places.in_flight() == {"a": 2}
    begun += sum(len(places.ended("a", 0.6, answered=False)) - 1 for _ in range(4))
    assert begun == 2


def test_a_destination_with_a_rate_starts_one_after_the_other_by_the_clock() -> None:
    places = Destinations()
    offered = [places.offer(parcel(number, rate="10/s"), 100.0) for number in range(5)]
    assert offered == [True, False, False, False, False]
    assert not places.ended("a", 100.01, answered=True)
    started = []
    now = 100.01
    while (moment := places.next_moment) is not None and places.waiting:
        now = moment
        for one in places.due(now):
            started.append((one.number, round(now, 3)))
            assert not places.ended(one.destination, now, answered=True)
    assert started == [(1, 100.075), (2, 100.175), (3, 100.275), (4, 100.375)]
    # What it has sent counts for a while, so it is remembered; then it is forgotten like any other.
    assert places.due(now + 1.0) == []
    assert (places._all, places.next_moment) == ({}, None)


def test_a_rate_waits_for_a_place_too() -> None:
    places = Destinations()
    for number in range(4):
        places.offer(parcel(number, places=1, rate="1000/s"), 0.0)
    assert places.due(10.0) == []
    assert places.next_moment is None  # only the end of the one under way makes a place
    assert numbers(places.ended("a", 11.0, answered=True)) == [1]


def test_idle_destinations_are_forgotten() -> None:
    places = Destinations()
    for number in range(1000):
        assert places.offer(parcel(number, f"host-{number}"), 0.0)
        assert not places.ended(f"host-{number}", 0.1, answered=True)
    assert places._all == {}


def test_who_has_not_answered_begins_with_few_places_and_each_answer_adds_one() -> None:
    places = Destinations()
    assert sum(places.offer(parcel(number, places=32), 0.0) for number in range(100)) == 4
    under_way = 4
    for rounds, expected in enumerate((8, 16, 32, 32)):
        under_way += sum(len(places.ended("a", float(rounds), answered=True)) - 1 for _ in range(under_way))
        assert under_way == places.in_flight()["a"] == min(expected, under_way + places.waiting)
    # Idle for a while it is still known; after that it begins anew, and so does one that is silent.
    places.take_waiting()
    for _ in range(under_way):
        places.ended("a", 10.0, answered=True)
    assert sum(places.offer(parcel(number, places=32), 100.0) for number in range(100)) == 32
    for _ in range(32):
        places.ended("a", 115.0, answered=False)
    assert places.in_flight() == {"a": 4}
    places.take_waiting()
    for _ in range(4):
        places.ended("a", 130.0, answered=True)
    assert sum(places.offer(parcel(number, places=32), 431.0) for number in range(100)) == 4


def test_those_that_do_not_answer_leave_places_to_those_that_do() -> None:
    places = Destinations(places=16)
    known(places, "well", places=8)
    began = [places.offer(parcel(number, f"hole-{number % 8}", places=8), 1.0) for number in range(64)]
    assert began == [True] * 12 + [False] * 52
    assert all(places.offer(parcel(number, "well", places=8), 1.0) for number in range(100, 104))
    places.ended("well", 1.01, answered=True)
    # What waits for them is in the way of others, so none of it stays, and no more is asked for.
    assert len(places.excess(1.04)) == 0
    assert len(places.excess(1.06)) == 52
    assert places.waiting == 0
    left, _, crowded = places.appetite(parcel(0, "hole-0", places=8).receiver, 1.06)
    assert (left, crowded) == (0, True)
    # A place that one leaves goes to another.
    assert not places.offer(parcel(200, "hole-9", places=8), 1.1)
    assert numbers(places.ended("hole-0", 16.0, answered=False)) == [200]
    # One that answers is one of those that do: what it has under way does not count any more.
    assert not places.offer(parcel(201, "hole-9", places=8), 16.0)
    assert numbers(places.ended("hole-1", 16.1, answered=True)) == [201]


def test_nobody_is_given_back_early_where_nobody_answers() -> None:
    places = Destinations(patience=1.0)
    for number in range(10):
        places.offer(parcel(number), 0.0)
    assert places.excess(0.9) == []  # it may be we who are slow
    assert len(places.excess(1.1)) == 8


def test_who_only_waits_for_a_place_is_not_taken_for_silent() -> None:
    """Of thousands that are all well, most have never been asked."""
    places = Destinations(places=4, patience=1.0)
    for number in range(10):
        places.offer(parcel(number, f"new-{number}"), 0.0)  # three of them begin
    assert not places.ended("new-0", 0.05, answered=True)[1:]
    assert places.excess(0.5) == []
    assert len(places.excess(1.1)) == 6


STEPS = ["offer", "end", "time out", "excess", "due", "take", "take a"]


@given(
    st.sampled_from([None, 24, 180, 60_000]),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(STEPS)), max_size=80),
)
def test_every_parcel_is_started_waiting_or_given_back(per_minute: int | None, steps: list[tuple[str, str]]) -> None:
    rate = None if per_minute is None else f"{per_minute}/m"
    places = Destinations(places=3, patience=1.0)
    started: dict[str, list[Any]] = {"a": [], "b": []}
    begun: list[int] = []
    given_back: list[Parcel] = []
    offered = ended = 0
    for now, (name, step) in enumerate(steps):
        if step == "offer":
            offered += 1
            one = parcel(offered, name, rate=rate)
            if places.offer(one, float(now)):
                started[name].append(one)
                begun.append(one.number)
        elif step in ("end", "time out") and started[name]:
            started[name].pop(0)
            ended += 1
            for one in places.ended(name, float(now), answered=step == "end"):
                started[one.destination].append(one)
                begun.append(one.number)
        elif step == "due":
            for one in places.due(float(now)):
                started[one.destination].append(one)
                begun.append(one.number)
        elif step == "excess":
            given_back += places.excess(float(now))
        elif step.startswith("take"):
            taken = places.take_waiting(None if step == "take" else "a")
            assert [one.number for one in taken] == sorted(one.number for one in taken)
            given_back += taken
        assert places.in_flight() == {key: len(value) for key, value in started.items() if value}
        assert all(len(value) <= 2 for value in started.values())
        assert offered == ended + sum(map(len, started.values())) + places.waiting + len(given_back)
        assert len(places._moments) <= 2
        assert places._unheard == sum(one.in_flight for one in places._all.values() if not one.heard)
    if per_minute is not None:
        assert len(begun) <= 2 * (per_minute / 60 * len(steps) + 2)
