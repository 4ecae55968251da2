"""Of callbacks of one key that were claimed together, one is under way at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.config import QueueConfig
from cbq_exporter.delivery import url
from cbq_exporter.delivery.destinations import Parcel
from cbq_exporter.delivery.ordering import Turns
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.model import Claimed

RECEIVER = Receivers(QueueConfig(name="q"), ()).of(url.parse("http://a.example/"))


def claimed(number: int, key: str) -> Claimed:
    turn = f"{key}:{number:06d}" if key else ""
    return Claimed(f"lease-{number}", "0" * 40, b"{}", 0, 0, 0, turn)


def parcel(number: int, key: str = "a") -> Parcel:
    return Parcel(number, claimed(number, key), RECEIVER, "http://a.example/", b"", [], 0.0)


def test_the_next_of_a_key_goes_when_the_one_before_has_ended() -> None:
    turns = Turns()
    one, two, other, free, also_free = parcel(1), parcel(2), parcel(3, "b"), parcel(4, ""), parcel(5, "")
    assert turns.begin([one, two, other, free, also_free], []) == ([one, other, free, also_free], [])
    assert turns.pass_on(free.claimed) is None
    assert turns.pass_on(one.claimed) is two
    assert turns.pass_on(two.claimed) is None
    assert turns.begin([parcel(6)], [])[0]


def test_those_behind_one_that_comes_back_come_back_too() -> None:
    turns = Turns()
    parcels = [parcel(n) for n in range(4)]
    turns.begin(parcels, [])
    turns.pass_on(parcels[0].claimed)
    assert turns.stop(parcels[1].claimed) == parcels[2:]
    assert turns.stop(parcels[1].claimed) == []


def test_those_behind_one_that_was_put_off_before_it_was_sent_are_held_back() -> None:
    turns = Turns()
    parcels = [parcel(1), parcel(3), parcel(4), parcel(5, "b"), parcel(6, "")]
    begun, held = turns.begin(parcels, [claimed(2, "a"), claimed(7, "b"), claimed(0, "")])
    assert [one.number for one in begun] == [1, 5, 6]
    assert [one.number for one in held] == [3, 4]


@given(st.data())
def test_in_any_course_each_comes_out_once_and_one_of_a_key_is_under_way(data: st.DataObject) -> None:
    turns = Turns()
    under_way: list[Parcel] = []
    came_out: list[Parcel] = []
    begun: dict[str, list[int]] = {"a": [], "b": []}
    entered: list[int] = []
    number = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if not under_way or data.draw(st.booleans()):
            keys = data.draw(st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=5))
            some = [parcel(number + n, key) for n, key in enumerate(keys)]
            number += len(some)
            busy = {one.claimed.turn[:1] for one in under_way} - {""}
            some = [one for one in some if one.claimed.turn[:1] not in busy]  # the store sees to that
            entered += [one.number for one in some]
            now, held = turns.begin(some, [])
            assert not held
        else:
            one = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            came_out.append(one)
            if data.draw(st.booleans()):
                after = turns.pass_on(one.claimed)
                now = [] if after is None else [after]
            else:
                now = []
                came_out += turns.stop(one.claimed)
        under_way += now
        for one in now:
            if one.claimed.turn:
                begun[one.claimed.turn[:1]].append(one.number)
        keys_under_way = [one.claimed.turn[:1] for one in under_way if one.claimed.turn]
        assert len(keys_under_way) == len(set(keys_under_way))
    assert sorted(one.number for one in [*came_out, *under_way, *turns.take_all()]) == sorted(entered)
    for key in "ab":
        assert all(earlier < later for earlier, later in pairwise(begun[key]))
