"""Who may send now, and what is given back so that others can."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.config import DeliveryConfig, PerDestinationConfig, QueueConfig
from cbq_exporter.delivery import url
from cbq_exporter.delivery.destinations import Destinations, Parcel
from cbq_exporter.delivery.exchange import Request
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.model import Claimed


def parcel(number: int, destination: str = "a", *, places: int = 2, rate: str | None = None) -> Parcel:
    claimed = Claimed(f"lease-{number}", "0" * 40, b"{}", 0, 0, 0)
    limits = PerDestinationConfig(concurrency=places, rate=rate)
    queue = QueueConfig(name="q", delivery=DeliveryConfig(per_destination=limits))
    receiver = Receivers(queue, ()).of(url.parse(f"http://{destination}/"))
    return Parcel(number, claimed, receiver, Request("http://a/", b"", [], 1.0, 1.0, 0.0), None)


def test_each_destination_has_its_places_and_its_order() -> None:
    places = Destinations()
    assert [places.offer(parcel(n), 0.0) for n in range(4)] == [True, True, False, False]
    assert places.offer(parcel(9, "b"), 0.0)
    assert places.in_flight() == {"a": 2, "b": 1}
    following = [places.ended("a", 1.0) for _ in range(4)]
    assert [one.number if one else None for one in following] == [2, 3, None, None]
    assert places.in_flight() == {"b": 1}


def test_a_destination_that_keeps_up_keeps_what_waits() -> None:
    places = Destinations(patience=1.0)
    for number in range(50):
        places.offer(parcel(number, places=1), 0.0)
    assert places.excess(0.9) == []


def test_a_slow_destination_gives_back_all_that_it_will_not_begin_soon() -> None:
    places = Destinations(patience=1.0)
    for number in range(10):
        places.offer(parcel(number), 0.0)
    places.offer(parcel(99, "b"), 0.0)
    assert [one.number for one in places.excess(1.5)] == [3, 4, 5, 6, 7, 8, 9]  # it has not ended one
    assert places.waiting == 1
    assert places.excess(1.5) == []


def test_the_appetite_of_a_destination_is_its_free_places_and_what_it_will_end_soon() -> None:
    places = Destinations(patience=1.0)
    receiver = parcel(0).receiver
    assert places.appetite(receiver, 0.0) == (4, 4)  # nothing is known yet: twice its places
    for number in range(10):
        places.offer(parcel(number), 0.0)
    assert places.appetite(receiver, 0.5) == (0, 4)
    for _ in range(10):
        places.ended("a", 1.0)
    assert places.appetite(receiver, 1.0) == (4, 4)
    for number in range(10):
        places.offer(parcel(number), 1.0)
    for tenth in range(9):
        places.ended("a", 1.2 + tenth / 10)  # nine in the first second
    assert places.appetite(receiver, 2.0) == (10, 11)
    assert places.appetite(parcel(0, "c", rate="5/s").receiver, 0.0) == (4, 4)
    assert places.appetite(parcel(0, "d", rate="2/s").receiver, 0.0) == (2, 2)


def test_a_destination_with_a_rate_starts_one_after_the_other_by_the_clock() -> None:
    places = Destinations()
    offered = [places.offer(parcel(number, rate="10/s"), 100.0) for number in range(5)]
    assert offered == [True, False, False, False, False]
    assert places.ended("a", 100.01) is None
    started = []
    now = 100.01
    while (moment := places.next_moment) is not None and places.waiting:
        now = moment
        for one in places.due(now):
            started.append((one.number, round(now, 3)))
            assert places.ended(one.destination, now) is None
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
    following = places.ended("a", 11.0)
    assert following is not None
    assert following.number == 1


def test_idle_destinations_are_forgotten() -> None:
    places = Destinations()
    for number in range(1000):
        assert places.offer(parcel(number, f"host-{number}"), 0.0)
        assert places.ended(f"host-{number}", 0.1) is None
    assert places._all == {}


STEPS = ["offer", "end", "excess", "due", "take", "take a"]


@given(
    st.sampled_from([None, 24, 180, 60_000]),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(STEPS)), max_size=80),
)
def test_every_parcel_is_started_waiting_or_given_back(per_minute: int | None, steps: list[tuple[str, str]]) -> None:
    rate = None if per_minute is None else f"{per_minute}/m"
    places = Destinations(patience=1.0)
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
        elif step == "end" and started[name]:
            started[name].pop(0)
            ended += 1
            following = places.ended(name, float(now))
            if following is not None:
                started[name].append(following)
                begun.append(following.number)
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
    if per_minute is not None:
        assert len(begun) <= 2 * (per_minute / 60 * len(steps) + 2)
