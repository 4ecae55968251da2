"""What one destination does, others do not feel; and one that fails is left alone, and nothing of it is lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cbq_exporter.item import url_of
from cbq_exporter.model import Failure, PutOff, Retry, Settlement
from cbq_exporter.store.keys import QueueKeys
from tests.e2e.bare_client import PREFIX, item, lengths, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.queues import DrivenQueue
from tests.support.receiver import Receiver
from tests.support.servers import Server

KEYS = QueueKeys.of(PREFIX)
BREAKER = {"failure_ratio": 0.5, "min_attempts": 5, "open_for": "3s", "longest_open": "6s", "probes": 2}
LEFT_ALONE = queue(
    SHORT_LIVED,
    delivery={"breaker": BREAKER, "per_destination": {"concurrency": 4}},
    retry={"max_attempts": 100},
)


def host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def records(client: Any) -> list[dict[str, Any]]:
    return [json.loads(record) for record in client.hvals(KEYS.records)]


def command(daemon: Daemon, *words: str) -> str:
    """What the program prints, with the daemon's configuration."""
    run = [sys.executable, "-m", "cbq_exporter", *words, "-c", str(daemon.config_file)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60, cwd=daemon.folder)
    return done.stdout + done.stderr


@contextmanager
def black_hole() -> Iterator[str]:
    """The kernel accepts, and nobody ever reads."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(1024)
        yield f"http://127.0.0.1:{hole.getsockname()[1]}/"


def test_who_fails_is_left_alone_by_this_daemon_and_the_next_until_probes_succeed(server: Server) -> None:
    client: Any = server.client
    broken = True
    with CountingReceiver(lambda body, nth: 500 if broken else 200) as receiver:
        name = host_of(receiver.url)
        push(client, *(item(receiver.url, number) for number in range(200)))
        with Daemon(server.url, LEFT_ALONE) as daemon:
            until(lambda: client.hget(KEYS.breakers, name), what=daemon.log)
            phase, until_ms, openings, _ = client.hget(KEYS.breakers, name).decode().split(" ")
            assert (phase, openings) == ("open", "1")
            until(lambda: lengths(client)["retry"] == 200)
            assert daemon.metrics().get("cbq_destination_circuit_state", destination=name) == 2
            assert daemon.metrics().get("cbq_failing_destinations") == 1
            # Those that were under way when it opened, and not one more; who was not sent has used no attempt.
            tried = receiver.requests
            assert 5 <= tried <= 5 + 2 * 4
            until(lambda: sum(record["attempts"] for record in records(client)) == receiver.requests)
            kept = records(client)
            assert sum(record["kind"] == "circuit_open" for record in kept) >= 200 - tried - 4
            daemon.kill()
        with Daemon(server.url, LEFT_ALONE) as daemon:
            until(lambda: receiver.requests > tried, timeout=30)
            seconds, micros = client.time()
            assert seconds * 1000 + micros / 1000 >= int(until_ms)  # the next one knew
            until(lambda: client.hget(KEYS.breakers, name).split(b" ")[2] == b"2")  # a probe failed: longer this time
            assert receiver.requests <= tried + 2
            broken = False
            wait_until_settled(client, timeout=40)
            until(lambda: not client.exists(KEYS.breakers))
            assert set(receiver.accepted.values()) == {1}
            assert len(receiver.accepted) == 200
            assert daemon.metrics().get("cbq_destination_circuit_state", destination=name) == 0
            assert daemon.metrics().get("cbq_callbacks_dead_total") == 0


def test_resume_ends_the_wait_of_who_was_left_alone(server: Server) -> None:
    client: Any = server.client
    broken = True
    patient = queue(LEFT_ALONE, delivery={"breaker": {"open_for": "1h", "longest_open": "1h"}})
    with CountingReceiver(lambda body, nth: 503 if broken else 200) as receiver, Daemon(server.url, patient) as daemon:
        name = host_of(receiver.url)
        push(client, *(item(receiver.url, number) for number in range(100)))
        until(lambda: client.hget(KEYS.breakers, name), what=daemon.log)
        until(lambda: lengths(client)["retry"] == 100)
        assert '"failing_destinations": 1' in command(daemon, "status", "-o", "json")
        broken = False
        said = command(daemon, "resume", "--destination", name, "--yes")
        assert "left alone because it fails" in said
        wait_until_settled(client, timeout=30)
        assert set(receiver.accepted.values()) == {1}
        assert len(receiver.accepted) == 100
        assert not client.exists(KEYS.breakers)


def test_ten_behind_thousands_for_one_that_never_answers_are_sent_within_seconds(server: Server) -> None:
    client: Any = server.client
    count = 5000
    with black_hole() as hole, CountingReceiver() as well:
        push(client, *(item(hole, number) for number in range(count)))
        push(client, *(item(well.url, number) for number in range(10)))
        with Daemon(server.url, queue()) as daemon:
            daemon.wait_until_ready()
            client.config_resetstat()
            until(lambda: well.requests == 10, timeout=20)
            until(lambda: not lengths(client)["pending"])
            # A fresh one goes at once, whatever waits.
            began = time.monotonic()
            push(client, item(well.url, "fresh"))
            until(lambda: well.requests == 11)
            assert time.monotonic() - began < 2.0
            commands = sum(entry["calls"] for entry in client.info("commandstats").values())
            assert commands < 8 * count
            # What waits costs nothing: it does not come round.
            waiting = lengths(client)["retry"]
            assert waiting > count - 200
            client.config_resetstat()
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 2.0)
            assert sum(entry["calls"] for entry in client.info("commandstats").values()) < 200
            assert lengths(client)["retry"] == waiting


def test_healthy_ones_go_on_at_once_behind_sixteen_that_never_answer(server: Server) -> None:
    """With a place for each of 32 callbacks they would take all 256 there are, for a timeout of 15 s."""
    client: Any = server.client
    with ExitStack() as stack:
        holes = [stack.enter_context(black_hole()) for _ in range(16)]
        first, well = stack.enter_context(CountingReceiver()), stack.enter_context(CountingReceiver())
        daemon = stack.enter_context(Daemon(server.url, queue()))
        push(client, item(first.url, 0))
        until(lambda: first.requests == 1)
        push(client, *(item(hole, number) for number in range(50) for hole in holes))
        push(client, *(item(well.url, number) for number in range(200)))
        began = time.monotonic()
        until(lambda: well.requests == 200, what=daemon.log)
        assert time.monotonic() - began < 5.0
        in_flight = [daemon.metrics().get("cbq_destination_in_flight", destination=host_of(hole)) for hole in holes]
        assert in_flight == [4.0] * 16


def test_what_a_slow_one_could_not_take_follows_in_its_order_as_it_goes_out(server: Server) -> None:
    client: Any = server.client
    with CountingReceiver(lambda body, nth: (200, 0.25)) as slow:
        push(client, *(item(slow.url, number) for number in range(150)))
        delivery = {"concurrency": 8, "per_destination": {"concurrency": 8}}
        with Daemon(server.url, queue(delivery=delivery, batch={"size": 25})) as daemon:
            wait_until_settled(client, timeout=30)
            assert set(slow.accepted.values()) == {1}
            order = [json.loads(body)["n"] for body in slow.order]
            assert len(order) == 150
            most_held = 8 + 4 * 25
            assert max(abs(number - place) for place, number in enumerate(order)) <= most_held
            assert (daemon.metrics().get("cbq_destination_throttled_total") or 0) > 0


def test_who_sends_next_finds_what_was_put_off_and_does_not_wait_for_its_time(server: Server) -> None:
    client: Any = server.client
    delivery = {"concurrency": 2, "breaker": {"enabled": False}}
    settings = queue(SHORT_LIVED, delivery=delivery, batch={"size": 20})
    slow = True
    with CountingReceiver(lambda body, nth: (200, 10.0) if slow else 200) as receiver:
        push(client, *(item(receiver.url, number) for number in range(100)))
        with Daemon(server.url, settings) as daemon:
            until(lambda: lengths(client)["retry"] > 50, what=daemon.log)
            daemon.kill()
        slow = False
        with Daemon(server.url, settings) as daemon:
            wait_until_settled(client, timeout=30, what=daemon.log)
            assert len(receiver.accepted) == 100


def put_aside(server: Server) -> None:
    """What is pending, by a daemon that goes away."""
    put_off = Retry(600.0, Failure(PutOff.THROTTLED.value), attempt_used=False)
    with DrivenQueue(server) as before:
        while claimed := before.claim(500).items:
            urls = [url_of(one.payload) for one in claimed]
            left = [Settlement(one, put_off, url, host_of(url)) for one, url in zip(claimed, urls, strict=True)]
            while left:
                del left[: len(before.do(before.queue.settle(left)))]
        before.do(before.queue.free_lock())


def scripts(client: Any) -> int:
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


def test_what_waits_for_hundreds_of_destinations_costs_few_scripts(server: Server) -> None:
    """Put aside by a daemon that is gone, so that it has to be found; and by this one, which remembers it."""
    client: Any = server.client
    many, each = 300, 8
    broken = False
    settings = queue(
        delivery={
            "breaker": {"failure_ratio": 0.5, "min_attempts": 2, "open_for": "1s", "longest_open": "1s"},
            "per_destination": {"concurrency": 2},
        },
        retry={"base": "2s", "cap": "2s", "max_attempts": 100},
    )
    with CountingReceiver(lambda body, nth: 500 if broken else 200, host="0.0.0.0") as receiver:
        urls = [f"http://127.1.{number // 250}.{number % 250 + 1}:{receiver.port}/" for number in range(many)]
        push(client, *(item(url, f"{place} {turn}") for turn in range(each) for place, url in enumerate(urls)))
        put_aside(server)
        client.config_resetstat()
        with Daemon(server.url, settings) as daemon:
            wait_until_settled(client, timeout=60, what=daemon.log)
            assert scripts(client) < many * each / 8  # more than one for each, if each destination is looked for alone
            broken = True
            push(
                client,
                *(item(url, f"{place} {turn}") for turn in range(each, 2 * each) for place, url in enumerate(urls)),
            )
            until(lambda: lengths(client)["retry"] == many * each, timeout=60, what=daemon.log)
            broken = False
            client.config_resetstat()
            wait_until_settled(client, timeout=60, what=daemon.log)
            # Each circuit is written, too, and on a busy machine probed more often.
            assert scripts(client) < many * each
        assert len(receiver.accepted) == 2 * many * each
        assert set(receiver.accepted.values()) == {1}


def test_a_rate_is_kept_and_others_do_not_wait_for_it(server: Server) -> None:
    client: Any = server.client
    with Receiver() as paced, CountingReceiver() as other:
        for number in range(120):
            push(client, item(paced.url("/"), number), item(other.url, number))
        entry = {"name": "paced", "match": f"127.0.0.1:{paced.port}", "rate": "40/s"}
        with Daemon(server.url, queue(), destinations=[entry]):
            until(lambda: other.requests == 120)
            assert len(paced.requests) < 60
            until(lambda: len(paced.requests) == 120, timeout=20)
            times = [seen.at for seen in paced.requests]
            assert 119 / 40 - 0.1 <= times[-1] - times[0] < 2 * 119 / 40
            for first in range(80):  # in no second more than its rate and a small burst
                assert sum(times[first] <= at < times[first] + 1.0 for at in times) <= 40 * 1.1 + 2
