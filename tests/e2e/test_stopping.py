"""How the daemon stops: what is on its way may finish, the rest goes back in its order, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections import Counter
from functools import partial

import pytest

from tests.e2e.bare_client import PREFIX, item, kept, lengths, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import AT_ONCE, SHORT_LIVED, Daemon, queue, until
from tests.support.receiver import Receiver, held, never_answer
from tests.support.servers import Server

# A few sends at a time, so that most of what is claimed has not been started.
FEW_AT_A_TIME = queue(batch={"size": 20}, delivery={"per_destination": {"concurrency": 4}})
FROM_EITHER = pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])


@FROM_EITHER
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sends_in_flight_finish_and_the_others_go_back_to_the_head(
    server: Server, number: int, own_process: bool
) -> None:
    config = queue(FEW_AT_A_TIME, delivery={"own_process": own_process})
    client = server.client
    with Receiver() as receiver, Daemon(server.url, config, grace="10s") as daemon:
        payloads = [item(receiver.on("/", held), n) for n in range(20)]
        later = [item(receiver.url("/"), n) for n in range(20, 23)]
        push(client, *payloads)
        receiver.wait_for_requests(4)
        push(client, *later)
        until(lambda: lengths(client)["pending"] + lengths(client)["processing"] == 23)

        daemon.send_signal(number)
        daemon.send_signal(signal.SIGTERM)  # as make passes on what its whole group is told
        until(lambda: daemon.not_ready() == ["stopping"])
        assert daemon.is_running  # it waits for the four
        receiver.open_gate()
        assert daemon.wait(10) == 0

        assert len(receiver.requests) == 4
        sent = {number_of(one.body) for one in receiver.requests}
        assert sent == {0, 1, 2, 3}
        assert client.lrange(f"{PREFIX}:pending", 0, -1) == [*payloads[4:], *later]
        assert lengths(client) == {"pending": 19, "processing": 0, "leases": 0, "retry": 0, "dead": 0}
        assert client.get(f"{PREFIX}:lock") is None
        assert client.get(f"{PREFIX}:stats:sent") == b"4"


@FROM_EITHER
def test_sends_that_outlive_the_grace_go_back_too(server: Server, own_process: bool) -> None:
    config = queue(FEW_AT_A_TIME, delivery={"own_process": own_process})
    client = server.client
    with Receiver() as receiver, Daemon(server.url, config, grace="500ms") as daemon:
        payloads = [item(receiver.on("/", never_answer), n) for n in range(20)]
        push(client, *payloads)
        receiver.wait_for_requests(4)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert 0.5 <= time.monotonic() - began < 5
        assert client.lrange(f"{PREFIX}:pending", 0, -1) == payloads
        assert lengths(client) == {"pending": 20, "processing": 0, "leases": 0, "retry": 0, "dead": 0}
        assert client.get(f"{PREFIX}:lock") is None


@FROM_EITHER
def test_a_stop_while_a_backlog_is_drained_leaves_nothing_claimed(server: Server, own_process: bool) -> None:
    """Again and again, because a claim that is on its way when the signal comes is a matter of a millisecond."""
    client = server.client
    config = queue(batch={"size": 10}, delivery={"concurrency": 20, "own_process": own_process})
    with CountingReceiver() as receiver:
        payloads = [item(receiver.url, n) for n in range(20_000)]
        push(client, *payloads)
        for stop in range(6):
            before = receiver.requests
            with Daemon(server.url, config) as daemon:
                until(partial(_has_grown, receiver, before + 50))
                assert daemon.stop() == 0, daemon.log()[-2000:]
            found = lengths(client)
            assert found["pending"] > 0
            assert (found["processing"], found["leases"]) == (0, 0), (stop, found)
            assert client.get(f"{PREFIX}:lock") is None
            left, sent = kept(client), {number_of(body) for body in receiver.accepted}
            assert left == Counter(payload for n, payload in enumerate(payloads) if n not in sent)
            # In their order: none was left behind or overtaken. (Where the machine is so busy that the receiver keeps
            # callbacks waiting for a second, some are put aside, and others pass.)
            waiting = client.lrange(f"{PREFIX}:pending", 0, -1)
            assert found["retry"] or waiting == payloads[-len(waiting) :]
        assert set(receiver.accepted.values()) == {1}


def _has_grown(receiver: CountingReceiver, requests: int) -> bool:
    return receiver.requests > requests


def test_a_claim_that_is_answered_only_after_the_signal_is_put_back(server: Server) -> None:
    """Where the claim comes to the store too late, on a machine without time, it does nothing: tried again then."""
    client = server.client
    # Nothing else calls a script meanwhile: each scheduled task has had its first run, and its next is far off.
    config = queue(
        batch={"max_delay": "500ms"},
        delivery={"lease": "1h"},
        lock={"ttl": "1h", "check_every": "1h", "stale": {"max_ttl": "2h"}},
        recovery={"every": "1h"},
    )
    with Receiver() as receiver:
        for _ in range(5):
            with Daemon(server.url, config) as daemon:
                until(partial(_every_task_has_run, daemon))
                payloads = [item(receiver.url("/"), n) for n in range(5)]  # now: their age counts
                push(client, *payloads)
                client.client_pause(20_000, all=False)  # the reads before the claim are answered, the claim is not
                until(lambda: any(one["cmd"] == "evalsha" and "b" in one["flags"] for one in client.client_list()))
                daemon.send_signal(signal.SIGTERM)
                until(lambda: daemon.not_ready() == ["stopping"])
                client.client_unpause()
                assert daemon.wait(10) == 0
            assert lengths(client) == {"pending": 5, "processing": 0, "leases": 0, "retry": 0, "dead": 0}
            assert client.lrange(f"{PREFIX}:pending", 0, -1) == payloads
            assert not receiver.requests
            if client.exists(f"{PREFIX}:last_send_time"):  # the claim was made
                return
            client.delete(f"{PREFIX}:pending")
    raise AssertionError("no claim was made")


def _every_task_has_run(daemon: Daemon) -> bool:
    metrics = daemon.metrics()
    tasks = ("keep", "check-lock", "recover", "upkeep")
    return all(metrics.get("cbq_task_runs_total", task=f"{task}:callbacks") for task in tasks)


def test_a_second_signal_ends_it_at_once_and_loses_nothing(server: Server) -> None:
    client = server.client
    config = queue(SHORT_LIVED, delivery={"timeout": "3s", "lease": "4s", "per_destination": {"concurrency": 4}})
    with Receiver() as receiver:
        payloads = [item(receiver.on("/", held), n) for n in range(10)]
        with Daemon(server.url, config, grace="30s") as daemon:
            push(client, *payloads)
            receiver.wait_for_requests(4)
            daemon.send_signal(signal.SIGTERM)
            until(lambda: daemon.not_ready() == ["stopping"])
            until(lambda: _is_gone_when_told_again(daemon))
            assert daemon.wait() == 128 + signal.SIGTERM
        assert kept(client) == Counter(payloads)

        receiver.open_gate()
        with Daemon(server.url, config):
            wait_until_settled(client)
        assert {number_of(one.body) for one in receiver.requests} == set(range(10))


def _is_gone_when_told_again(daemon: Daemon) -> bool:
    daemon.send_signal(signal.SIGTERM)
    return not daemon.is_running


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "hung"])
def test_it_ends_while_redis_cannot_be_reached(how: str) -> None:
    config = queue(SHORT_LIVED, AT_ONCE)
    with Server(durable=True) as server, Receiver() as receiver:
        with Daemon(server.url, config, grace="1s") as daemon:
            push(server.client, *(item(receiver.on("/", held), n) for n in range(5)))
            receiver.wait_for_requests(5)
            if how == "gone":
                server.kill()
            else:
                server.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 20
        if how == "gone":
            server.start()
        else:
            server.send_signal(signal.SIGCONT)
        assert sum(kept(server.client).values()) == 5
        receiver.open_gate()
        with Daemon(server.url, config):
            wait_until_settled(server.client)
        assert {number_of(one.body) for one in receiver.requests} == set(range(5))
