"""However many callbacks are given up, the log stays small, and says how many it does not name."""

from __future__ import annotations

import json

from cbq_exporter.services.few_lines import FewLines
from tests.e2e.bare_client import item, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon
from tests.support.servers import Server


class HandClock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    monotonic = now


def test_each_minute_has_its_first_hundred_and_says_what_was_left_out() -> None:
    clock = HandClock()
    lines = FewLines(clock)
    written = [lines.next() for _ in range(250)]
    assert written == [{}] * 99 + [{"more": "left out for up to 60 s"}] + [None] * 150
    clock.at += 59.9
    assert lines.next() is None
    clock.at += 0.1
    assert (lines.next(), lines.next()) == ({"left_out_before": 151}, {})


def test_a_receiver_that_refuses_everything_does_not_fill_the_disk(server: Server) -> None:
    with CountingReceiver(lambda body, nth: 404) as receiver, Daemon(server.url) as daemon:
        push(server.client, *(item(receiver.url, number) for number in range(300)))
        wait_until_settled(server.client, dead=300, timeout=30)
        assert daemon.metrics().get("cbq_callbacks_dead_total") == 300
        told = [one for one in map(json.loads, daemon.log().splitlines()) if one["event"].startswith("given up")]
    assert 100 <= len(told) <= 200  # should a minute end meanwhile
    assert told[99]["more"]
    assert {one["reason"] for one in told} == {"rejected"}
