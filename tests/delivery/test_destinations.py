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


def parcel(number: int, destination: str = "a", *, places: int = 2) -> Parcel:
    claimed = Claimed(f"lease-{number}", "0" * 40, b"{}", 0, 0, 0)
    queue = QueueConfig(name="q", delivery=DeliveryConfig(per_destination=PerDestinationConfig(concurrency=places)))
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


def test_a_slow_destination_gives_back_all_that_it_has_no_places_for() -> None:
    places = Destinations(patience=1.0, longest_delay=60.0)
    for number in range(10):
        places.offer(parcel(number), 0.0)
    places.offer(parcel(99, "b"), 0.0)
    given_back = places.excess(1.5)
    assert [one.number for one, _ in given_back] == [4, 5, 6, 7, 8, 9]
    delays = [delay for _, delay in given_back]
    assert delays == sorted(delays)
    assert delays[0] >= 1.0
    assert delays[-1] <= 60.0
    assert places.waiting == 2
    assert places.excess(1.5) == []


def test_idle_destinations_are_forgotten() -> None:
    places = Destinations()
    for number in range(1000):
        assert places.offer(parcel(number, f"host-{number}"), 0.0)
        assert places.ended(f"host-{number}", 0.1) is None
    assert places._all == {}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["offer", "end", "excess", "take"])), max_size=80))
def test_every_parcel_is_started_waiting_or_given_back(steps: list[tuple[str, str]]) -> None:
    places = Destinations(patience=1.0)
    started: dict[str, list[Any]] = {"a": [], "b": []}
    given_back: list[Parcel] = []
    offered = ended = 0
    for now, (name, step) in enumerate(steps):
        if step == "offer":
            offered += 1
            one = parcel(offered, name)
            if places.offer(one, float(now)):
                started[name].append(one)
        elif step == "end" and started[name]:
            started[name].pop(0)
            ended += 1
            following = places.ended(name, float(now))
            if following is not None:
                started[name].append(following)
        elif step == "excess":
            given_back += [one for one, _ in places.excess(float(now))]
        elif step == "take":
            taken = places.take_waiting()
            assert [one.number for one in taken] == sorted(one.number for one in taken)
            given_back += taken
        assert places.in_flight() == {key: len(value) for key, value in started.items() if value}
        assert all(len(value) <= 2 for value in started.values())
        assert offered == ended + sum(map(len, started.values())) + places.waiting + len(given_back)
