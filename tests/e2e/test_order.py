"""Callbacks of one key arrive in their order, by real daemons that are killed meanwhile."""

from __future__ import annotations

import random
import threading
from typing import Any

from tests.e2e.bare_client import item, number_of, push, wait_until_settled
from tests.support.counting_receiver import RESET, CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.servers import Server

KEYS = 10
ORDERED: dict[str, Any] = {
    "batch": {"size": 20},
    "delivery": {"order_by": "task_id", "breaker": {"enabled": False}},
    "retry": {"max_attempts": 1000, "base": "50ms", "cap": "200ms"},
}


class Listener:
    """Knows of each callback at its arrival whether the one before of its key was accepted or is refused for good."""

    def __init__(self, seed: int) -> None:
        self.too_early: list[int] = []
        self.receiver = CountingReceiver(self._answer)
        self._chance = random.Random(seed)

    def _answer(self, body: bytes, nth: int) -> int | tuple[int, float]:
        number = number_of(body)
        before = number - KEYS
        while before >= 0 and _is_refused(before):
            before -= KEYS
        if before >= 0 and not self.receiver.accepted[b'{"n": %d}' % before]:
            self.too_early.append(number)
        if _is_refused(number):
            return 400
        mood = self._chance.random()
        if mood < 0.1:
            return 500
        if mood < 0.15:
            return RESET
        return 200, 0.8 if mood < 0.16 else 0.005  # 0.8: later than the daemon waits


def _is_refused(number: int) -> bool:
    return number % 47 == 13


def _payloads(url: str, first: int, end: int) -> list[bytes]:
    return [item(url, number, task_id=f"task-{number % KEYS}") for number in range(first, end)]


def test_order_is_kept_while_sends_fail_and_daemons_are_killed(server: Server) -> None:
    count, seed = 400, 20261125
    listener = Listener(seed)
    daemons = [Daemon(server.url, queue(SHORT_LIVED, ORDERED)) for _ in range(2)]
    with listener.receiver as receiver:
        payloads = _payloads(receiver.url, 0, count)
        try:
            for one in daemons:
                one.start()
            for part in range(4):
                push(server.client, *payloads[part * count // 4 : (part + 1) * count // 4])
                seen = receiver.requests
                until(lambda seen=seen: receiver.requests > seen + 30, 20)  # type: ignore[misc]
                victim = daemons[part % 2]
                victim.kill()
                victim.launch()
            refused = sum(map(_is_refused, range(count)))
            wait_until_settled(server.client, dead=refused, timeout=60, what=lambda: daemons[0].log()[-3000:])
        finally:
            for one in daemons:
                one.__exit__()
        assert listener.too_early == []
        assert {number_of(body) for body in receiver.accepted} == {n for n in range(count) if not _is_refused(n)}
    assert server.client.zcard("callback_queue:order") == 0


def test_a_key_that_has_to_wait_holds_up_no_other(server: Server) -> None:
    config = queue(ORDERED, {"retry": {"base": "20s", "cap": "20s"}})
    statuses = {0: 503}
    client: Any = server.client
    retry = "callback_queue:retry"
    with (
        CountingReceiver(lambda body, nth: statuses.get(number_of(body), 200)) as receiver,
        Daemon(server.url, config) as daemon,
    ):
        push(server.client, *_payloads(receiver.url, 0, 300))
        until(lambda: receiver.accepted.total() == 270, 20, daemon.log)
        assert not any(number_of(body) % KEYS == 0 for body in receiver.accepted)
        until(lambda: client.zcard(retry) >= 29)  # the first may be under way again
        statuses.clear()
        for member in client.zrange(retry, 0, 0):
            client.zadd(retry, {member: 1}, xx=True)
        push(server.client, *_payloads(receiver.url, 300, 301))  # an arrival, so that it looks
        wait_until_settled(server.client)
        assert daemon.metrics().get("cbq_callbacks_enqueued_total") == 301  # those that had to wait came in too
    waited = [number_of(body) for body in receiver.order if number_of(body) % KEYS == 0]
    assert [number for number in waited if number] == list(range(10, 301, KEYS))


def test_what_is_stopped_goes_on_in_order(server: Server) -> None:
    listener = Listener(7)
    config = queue(ORDERED)
    with listener.receiver as receiver:
        push(server.client, *_payloads(receiver.url, 0, 200))
        for part in range(2):
            with Daemon(server.url, config) as daemon:
                until(lambda part=part: receiver.accepted.total() > part * 50)  # type: ignore[misc]
                assert daemon.stop() == 0
        with Daemon(server.url, config):
            wait_until_settled(server.client, dead=sum(map(_is_refused, range(200))))
        assert listener.too_early == []


def test_what_waits_for_its_turn_keeps_no_circuit_half_open(server: Server) -> None:
    """Of one key only the first can be the probe that closes it: the others are not tried in its place."""
    breaker = {"min_attempts": 2, "window": "10s", "probes": 1, "open_for": "100ms", "longest_open": "300ms"}
    config = queue(SHORT_LIVED, ORDERED, delivery={"order_by": "task_id", "breaker": {"enabled": True, **breaker}})
    down = threading.Event()
    down.set()
    with (
        CountingReceiver(lambda body, nth: 503 if down.is_set() else 200) as receiver,
        Daemon(server.url, config) as daemon,
    ):
        push(server.client, item(receiver.url, 0, task_id="another"))
        until(lambda: daemon.metrics().get("cbq_destination_circuit_state"), what=daemon.log)
        push(server.client, *(item(receiver.url, number, task_id="one") for number in range(1, 13)))
        # The first of them fails as well, is claimed again while the circuit is open, and put off behind the others.
        until(lambda: {number_of(body) for body in list(receiver.order)} == {0, 1}, what=daemon.log)
        down.clear()
        wait_until_settled(server.client, timeout=8, what=lambda: daemon.log()[-3000:])
        accepted = [number_of(body) for body in receiver.order if receiver.accepted[body]]
        assert [number for number in accepted[-13:] if number] == list(range(1, 13))
