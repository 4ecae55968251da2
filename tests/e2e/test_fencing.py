"""Two daemons on one queue: one sends, and one that was paused or has lost its lock does no harm when it comes back."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from cbq_exporter.store.schema import SCHEMA
from tests.e2e.bare_client import PREFIX, item, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.fault_proxy import Action, Fault, FaultProxy
from tests.support.receiver import Answer, Receiver
from tests.support.servers import Server


def _leads(daemon: Daemon) -> float:
    return daemon.metrics().get("cbq_dispatch_leader", queue="callbacks") or 0.0


def _fenced(daemon: Daemon, operation: str) -> float:
    return daemon.metrics().get("cbq_fenced_total", operation=operation) or 0.0


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_a_paused_daemon_settles_nothing_and_sends_nothing_that_was_given_to_another(
    server: Server, own_process: bool
) -> None:
    client = server.client
    few = {"own_process": own_process, "per_destination": {"concurrency": 4}, "timeout": "1s", "lease": "2s"}
    config = queue(SHORT_LIVED, delivery=few)
    with Receiver() as receiver, Daemon(server.url, config) as first:
        # The first four are answered only once the first daemon stands still: it reads the answers when it goes on.
        receiver.default = Answer(delay=0.4)
        push(client, *(item(receiver.url("/"), n) for n in range(12)))
        receiver.wait_for_requests(4)
        first.pause()
        receiver.default = Answer()
        of_the_first = {one.peer for one in receiver.requests}

        with Daemon(server.url, config) as second:
            wait_until_settled(client)  # all twelve, by the second
            before = receiver.requests
            by_the_second = [number_of(one.body) for one in before if one.peer not in of_the_first]
            assert sorted(by_the_second) == list(range(12))
            push(client, *(item(receiver.url("/"), n) for n in range(12, 20)))
            wait_until_settled(client)

            first.resume()
            until(lambda: _fenced(first, "settle") >= 4)
            until(lambda: _fenced(first, "settle") + _fenced(first, "extend") >= 4 + 8)
            assert (_leads(first), _leads(second)) == (0, 1)
            assert first.metrics().get("cbq_callbacks_delivered_total") == 0
            assert second.metrics().get("cbq_callbacks_delivered_total") == 20
            # Nothing went out that the first had claimed and not begun.
            assert Counter(number_of(one.body) for one in receiver.requests) == Counter(
                {**dict.fromkeys(range(4), 2), **dict.fromkeys(range(4, 20), 1)}
            )
            assert client.get(f"{PREFIX}:stats:sent") == b"20"
            assert not first.not_ready()  # a standby is ready


def test_one_of_two_dispatches_and_the_other_takes_over_within_the_locks_ttl(server: Server) -> None:
    client = server.client
    config = queue(SHORT_LIVED, lock={"ttl": "2s"})
    with (
        CountingReceiver() as receiver,
        Daemon(server.url, config) as first,
        Daemon(server.url, config) as second,
    ):
        first.wait_until_ready()
        second.wait_until_ready()
        for number in range(30):
            push(client, item(receiver.url, number))
            assert _leads(first) + _leads(second) == 1
        wait_until_settled(client)
        leader, standby = (first, second) if _leads(first) else (second, first)
        assert standby.metrics().get("cbq_delivery_attempts_total") is None
        assert set(receiver.accepted.values()) == {1}

        leader.kill()
        killed = time.monotonic()
        push(client, item(receiver.url, 30))
        until(lambda: len(receiver.accepted) == 31)
        assert time.monotonic() - killed < 2 + 1.5  # the TTL, and a look each second at most
        assert _leads(standby) == 1


def test_a_leader_that_is_stopped_hands_over_at_once(server: Server) -> None:
    client = server.client
    config = queue(lock={"ttl": "30s"})
    with CountingReceiver() as receiver, Daemon(server.url, config) as first:
        until(lambda: _leads(first))
        with Daemon(server.url, config) as second:
            assert first.stop() == 0
            push(client, item(receiver.url, 1))
            wait_until_settled(client)  # long before the TTL
            assert _leads(second) == 1


def test_a_leader_that_does_not_reach_redis_any_more_knows_when_its_lock_is_over(server: Server) -> None:
    config = queue(SHORT_LIVED, lock={"ttl": "6s"})
    with FaultProxy(server.socket) as way, CountingReceiver() as receiver, Daemon(way.url, config) as first:
        until(lambda: _leads(first))
        with Daemon(server.url, config) as second:
            second.wait_until_ready()
            way.plan(Fault(Action.BLACK_HOLE, times=1_000_000))
            until(lambda: _leads(second))
            push(server.client, item(receiver.url, 1))
            wait_until_settled(server.client)
            first.wait_until_not_ready("not answer in time")
            until(lambda: not first.metrics(1.0).get("cbq_dispatch_leader", queue="callbacks"))
            assert "the send lock is over" in first.log()
            way.heal()
            first.wait_until_ready()
            assert (_leads(first), _leads(second)) == (0, 1)


def test_a_leader_gives_way_to_a_newer_version_that_begins_to_write(server: Server) -> None:
    client = server.client
    with CountingReceiver() as receiver, Daemon(server.url, queue(SHORT_LIVED)) as daemon:
        until(lambda: _leads(daemon))
        client.set(f"{PREFIX}:schema", SCHEMA + 1)
        daemon.wait_until_not_ready("a newer cbq-exporter has written")
        until(lambda: not client.exists(f"{PREFIX}:lock"))
        assert _leads(daemon) == 0
        push(client, item(receiver.url, 1))
        client.delete(f"{PREFIX}:schema")  # somebody went back
        wait_until_settled(client)
        assert receiver.requests == 1
        assert client.get(f"{PREFIX}:schema") == str(SCHEMA).encode()


def test_an_existing_tool_that_deletes_our_lock_does_not_make_two_senders_of_one_callback(server: Server) -> None:
    client = server.client
    config = queue(batch={"size": 10}, delivery={"concurrency": 20, "per_destination": {"concurrency": 8}})
    total = 4000
    with CountingReceiver(lambda body, nth: (200, 0.002)) as receiver, Daemon(server.url, config) as first:
        until(lambda: _leads(first))
        with Daemon(server.url, config) as second:
            second.wait_until_ready()
            push(client, *(item(receiver.url, n) for n in range(total)))
            until(lambda: receiver.requests > 100)
            # In the middle of its work, with callbacks claimed and sends on their way, the lock goes to the other.
            first.pause()
            client.delete(f"{PREFIX}:lock")
            until(lambda: _leads(second))
            first.resume()
            until(lambda: _fenced(first, "claim"))
            assert client.llen(f"{PREFIX}:pending") > 0
            # And between claims, again and again: whoever takes it back.
            deleted = 0
            while client.llen(f"{PREFIX}:pending"):
                deleted += client.delete(f"{PREFIX}:lock")
                time.sleep(0.005)
            assert deleted > 10
            wait_until_settled(client)
            assert len(receiver.accepted) == total
            assert set(receiver.arrived.values()) == {1}  # one sender each
            sent = [daemon.metrics().get("cbq_callbacks_delivered_total") or 0 for daemon in (first, second)]
            assert sum(sent) == total
            assert min(sent) > 0
            until(lambda: _leads(first) + _leads(second) == 1)


def test_a_lock_of_the_existing_software_is_respected(server: Server) -> None:
    client = server.client
    client.set(f"{PREFIX}:lock", "worker_1764000000_1234", ex=30)
    with CountingReceiver() as receiver, Daemon(server.url, queue()) as daemon:
        push(client, item(receiver.url, 1))
        with pytest.raises(TimeoutError):
            until(lambda: receiver.requests, timeout=1.5)
        assert _leads(daemon) == 0
        client.delete(f"{PREFIX}:lock")
        wait_until_settled(client)
        assert receiver.requests == 1
        assert _leads(daemon) == 1


def test_what_an_existing_tool_takes_away_from_us_is_counted_as_that(server: Server) -> None:
    client = server.client
    answers = (200, 404, 503)
    with (
        CountingReceiver(lambda body, nth: (answers[number_of(body)], 1.5)) as receiver,
        Daemon(server.url, queue()) as daemon,
    ):
        until(lambda: _leads(daemon))
        push(client, *(item(receiver.url, number) for number in range(3)))
        until(lambda: receiver.requests == 3)
        # Somebody else has the lock now, so that nothing is claimed; and all of processing goes back.
        client.set(f"{PREFIX}:lock", "worker_1764000000_1234", ex=60)
        while (taken := client.lpop(f"{PREFIX}:processing")) is not None:
            client.rpush(f"{PREFIX}:pending", taken)  # type: ignore[arg-type]
        until(lambda: client.zcard(f"{PREFIX}:leases") == 0)
        until(lambda: daemon.metrics().get("cbq_callbacks_taken_away_total") == 3)
        metrics = daemon.metrics()
        assert client.llen(f"{PREFIX}:pending") == 3
        assert metrics.get("cbq_callbacks_delivered_total") == 1  # it was, and will be again
        assert metrics.get("cbq_callbacks_dead_total") == 0
        assert metrics.get("cbq_callbacks_retried_total") == 0
        assert metrics.get("cbq_fenced_total", operation="settle") == 0
        assert "given up" not in daemon.log()
