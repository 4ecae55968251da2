"""What was put off comes back in its order, all of it, and costs a few scripts however many destinations there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.config import QueueConfig
from cbq_exporter.delivery import url
from cbq_exporter.delivery.receivers import Receivers
from cbq_exporter.errors import StoreUnavailable
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Claimed, Delivered, PutOff
from cbq_exporter.services import backlogs as module
from cbq_exporter.services.backlogs import Backlogs
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.kept import Retries
from tests.support.fault_proxy import Action, Fault, FaultProxy
from tests.support.queues import DrivenQueue
from tests.support.servers import Server

RECEIVERS = Receivers(QueueConfig(name="q"), ())
INSTRUMENTS = Instruments(["q"]).queue("q")


def host(number: int) -> str:
    return f"d{number}.example"


class Daemon:
    """As much of one as puts off and lets go, the latter by ``retries``.

    ``waiting`` are the numbers of what is put off, in order, by destination.
    """

    def __init__(self, driven: DrivenQueue, retries: Retries | None = None) -> None:
        self.q = driven
        self.held_for: Callable[[], float] | None = None  # then in no order
        self.backlogs = Backlogs(retries or driven.queue.retries, INSTRUMENTS, SYSTEM_CLOCK, 10)
        self.waiting: dict[int, list[int]] = {}
        self._count = 0

    def push(self, *destinations: int) -> None:
        payloads = []
        for destination in destinations:
            payloads.append(json.dumps({"url": f"http://{host(destination)}/", "of": destination, "n": self._count}))
            self._count += 1
        self.q.redis.rpush(self.q.keys.pending, *payloads)

    def put_off_all(self) -> None:
        """What is in pending."""
        while claimed := self.q.claim(500, from_pending=500).items:
            self.put_off(claimed)

    def put_off(self, claimed: tuple[Claimed, ...] | list[Claimed]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "HELD_FOR", 600.0 + (self.held_for() if self.held_for else self._count))
            self._count += len(claimed)
            those = []
            for one in claimed:
                read = json.loads(one.payload)
                target = url.parse(read["url"])
                those.append((one, target.url, RECEIVERS.of(target)))
                self.waiting.setdefault(read["of"], []).append(read["n"])
            settlements = self.backlogs.put_off(those, PutOff.THROTTLED)
        left = list(settlements)
        while left:
            del left[: len(self.q.do(self.q.queue.settle(left)))]
        self.backlogs.stored(settlements)

    def let_go(self, wanted: dict[int, int] | int) -> list[Claimed]:
        """One turn; returns what came of it: of each destination the first that wait, and no more than is wanted."""

        def want(name: str) -> int:
            return wanted if isinstance(wanted, int) else wanted.get(int(name.partition(".")[0][1:]), 0)

        self.q.do(self.backlogs.search())
        brought = self.q.do(self.backlogs.bring_forward(want))
        came = list(self.q.claim(500, from_pending=0).items)
        assert len(came) == brought
        got: dict[int, list[int]] = {}
        for one in came:
            read = json.loads(one.payload)
            got.setdefault(read["of"], []).append(read["n"])
            self.backlogs.came(host(read["of"]))
        for destination, numbers in got.items():
            assert self.held_for or numbers == self.waiting[destination][: len(numbers)]
            assert len(numbers) <= want(host(destination))
            for number in numbers:
                self.waiting[destination].remove(number)
        return came

    def deliver_all(self, turns: int) -> None:
        for _ in range(turns):
            came = self.let_go(8)
            if came:
                self.q.settle(Delivered(), *came)
            elif not self.backlogs:
                return
        raise AssertionError(f"after {turns} turns {sum(map(len, self.waiting.values()))} wait")

    def scripts(self) -> int:
        stats = self.q.redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


@pytest.fixture
def daemon(each_server: Server) -> Iterator[Daemon]:
    with DrivenQueue(each_server) as driven:
        yield Daemon(driven)


@pytest.mark.parametrize("taken_over", [False, True])
def test_thousands_of_destinations_cost_a_script_for_many(daemon: Daemon, taken_over: bool) -> None:
    many, each = 2000, 3
    daemon.push(*(number for _ in range(each) for number in range(many)))
    daemon.put_off_all()
    if taken_over:
        daemon.backlogs.begin()
    daemon.q.redis.config_resetstat()
    turns = 0
    while any(daemon.waiting.values()):
        daemon.let_go(each)
        turns += 1
        assert turns < 50
    commands: dict[str, Any] = daemon.q.redis.info("commandstats")
    # A turn takes the lock, claims and hastens; each hastens so many as may come at once.
    assert daemon.scripts() <= 3 * turns + 6
    assert turns < 2 * many * each / 500
    assert commands["cmdstat_zadd"]["calls"] <= 3 * turns
    assert commands.get("cmdstat_hmget", {"calls": 0})["calls"] <= (many * each // 500 + 2 if taken_over else 0)


@pytest.mark.parametrize(("action", "carried_out"), [(Action.DROP_REPLY, [0, 1]), (Action.CUT, [])])
def test_what_the_store_did_not_answer_is_found_again(
    each_server: Server, action: Action, carried_out: list[int]
) -> None:
    with FaultProxy(each_server.socket) as proxy, DrivenQueue(each_server) as driven:
        connections = Connections(proxy.url, shown_as="test")
        daemon = Daemon(driven, Retries(connections, driven.keys))
        daemon.push(0, 1, 0, 1, 0)
        daemon.put_off_all()
        driven.do(driven.queue.retries.hasten(["none"]))  # a server that has not the script yet refuses it, unharmed
        proxy.plan(Fault(action, containing=b"EVALSHA"))
        with pytest.raises(StoreUnavailable):
            daemon.let_go(1)
        assert proxy.struck == 1
        came = driven.claim(10, from_pending=0).items
        assert [json.loads(one.payload)["n"] for one in came] == carried_out
        for number in carried_out:
            daemon.waiting[number].remove(number)
        daemon.deliver_all(10)
        assert not any(daemon.waiting.values())
        driven.do(connections.close())


def test_who_goes_another_way_is_not_missed(daemon: Daemon) -> None:
    """Made due by a person, deleted by somebody, and due by itself."""
    daemon.push(*([0] * 6), 1)
    daemon.put_off_all()
    ids = daemon.q.do(daemon.q.queue.retries.ids(offset=0, count=9))
    daemon.q.redis.zrem(daemon.q.keys.retry, ids[1])
    daemon.q.do(daemon.q.queue.retries.hasten([ids[0], ids[3]]))
    daemon.q.settle(Delivered(), *daemon.q.claim(9).items)
    for gone in (0, 1, 3):
        daemon.waiting[0].remove(gone)
    daemon.deliver_all(10)
    assert not any(daemon.waiting.values())


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few callbacks reach them."""
    bounds: dict[str, float] = {"_MOST_REMEMBERED": 6, "_MOST_OF_ONE": 4, "_LEAST_OF_ONE": 1, "_LEAST_COMING": 5}
    turns: dict[str, float] = {"_PAGE": 3, "_PAGES": 1, "_ASKED": 2, "_COMING_FOR": 0.0}
    for name, value in {**bounds, **turns}.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small_bounds")
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_course_all_come_and_in_their_order(server: Server, data: st.DataObject) -> None:
    server.client.flushall()
    numbers = st.integers(0, 4)
    with DrivenQueue(server) as driven:
        daemon = Daemon(driven)
        if data.draw(st.booleans()):  # due times are not quite in the order of storing
            seconds = cycle(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8)))
            daemon.held_for = lambda: next(seconds)
        for _ in range(data.draw(st.integers(3, 25))):
            what = data.draw(st.sampled_from(("push", "push", "let go", "let go", "search", "take over")))
            if what == "push":
                daemon.push(*data.draw(st.lists(numbers, min_size=1, max_size=6)))
                daemon.put_off_all()
            elif what == "let go":
                came = daemon.let_go(data.draw(st.dictionaries(numbers, st.integers(0, 4))))
                kept = min(data.draw(st.integers(0, 8)), len(came))  # a draw must not depend on the time of day
                driven.settle(Delivered(), *came[kept:])
                if kept:
                    daemon.put_off(came[:kept])
            elif what == "search":
                driven.do(daemon.backlogs.search())
            else:
                daemon.backlogs.begin()
        daemon.deliver_all(200)
        assert not any(daemon.waiting.values())
        assert daemon.backlogs.coming == 0
        assert not any(driven.everywhere)
