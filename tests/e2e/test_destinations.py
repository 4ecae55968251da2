"""Receivers with settings of their own: their table of statuses, pauses, certificates and times."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter.store.keys import QueueKeys
from tests.e2e.bare_client import PREFIX, item, lengths, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.receiver import Answer, Receiver, never_answer
from tests.support.servers import Server
from tests.web import certificates

KEYS = QueueKeys.of(PREFIX)
DEAD_AT_ONCE = {"retry": {"max_attempts": 1}}


def entry(receiver: Receiver | CountingReceiver, name: str = "partner", **settings: Any) -> dict[str, Any]:
    return {"name": name, "match": f"127.0.0.1:{receiver.port}", **settings}


def command(daemon: Daemon, *words: str) -> str:
    """What the program prints, with the daemon's configuration."""
    run = [sys.executable, "-m", "cbq_exporter", *words, "-c", str(daemon.config_file)]
    return subprocess.run(run, check=True, capture_output=True, text=True, timeout=60, cwd=daemon.folder).stdout


def records(client: Any) -> list[dict[str, Any]]:
    return [json.loads(record) for record in client.hvals(KEYS.records)]


def counted(daemon: Daemon, name: str, **labels: str) -> Callable[[], float]:
    return lambda: daemon.metrics().get(name, **labels) or 0.0


def test_connections_wait_for_more_hosts_than_are_sent_to_at_once(server: Server) -> None:
    hosts, client = 20, server.client
    delivery = {"concurrency": 2, "per_destination": {"concurrency": 2}}
    with Receiver(host="0.0.0.0") as receiver, Daemon(server.url, queue(delivery=delivery)):
        for turn in range(3):
            push(client, *(item(f"http://127.0.9.{one + 1}:{receiver.port}/", f"{turn} {one}") for one in range(hosts)))
            wait_until_settled(client)
        assert len(receiver.requests) == 3 * hosts
        assert receiver.connections == hosts


def test_who_says_that_it_is_gone_is_paused_until_somebody_resumes_it(server: Server) -> None:
    client: Any = server.client
    with (
        CountingReceiver(lambda body, nth: (410, 0.05)) as gone,
        CountingReceiver() as other,
        Daemon(
            server.url, queue(batch={"spread": "5ms"}, lock={"ttl": "1s"}), destinations=[entry(gone, concurrency=2)]
        ) as daemon,
    ):
        push(client, *(item(gone.url if number % 2 else other.url, number) for number in range(100)))
        until(lambda: lengths(client)["retry"] + lengths(client)["dead"] == 50 and other.requests == 50)
        until(lambda: counted(daemon, "cbq_paused_destinations")() == 1)
        # Those that were on their way when the first answer came, and no more.
        assert 1 <= lengths(client)["dead"] == gone.requests <= 4
        assert {record["attempts"] for record in records(client) if record["destination"] == "partner"} <= {0, 1}
        assert counted(daemon, "cbq_operations_total", operation="pause", trigger="schedule", result="done")() == 1
        assert counted(daemon, "cbq_delivery_attempts_total", destination="partner")() == gone.requests
        audited = command(daemon, "audit", "--operation", "pause", "-o", "json").splitlines()
        assert [json.loads(line)["reason"] for line in audited] == ["it answered HTTP 410"] * 2  # begun, and done
        status = json.loads(command(daemon, "status", "-o", "json"))
        assert [one["paused_destinations"] for one in status["queues"]] == [1]
        letters = json.loads(command(daemon, "dead", "list", "--destination", "partner", "-o", "json"))
        assert len(letters) == gone.requests

        # It outlives the daemon, and whoever is resumed gets what has waited.
        sent = gone.requests
        daemon.kill()
        daemon.start()
        daemon.wait_until_ready()
        push(client, item(gone.url, 1001), item(other.url, 1002))
        until(lambda: other.requests == 51)
        assert gone.requests == sent
        gone.behaviour = lambda body, nth: 200
        command(daemon, "resume", "--destination", "Partner", "--yes")

        until(lambda: sum(gone.accepted.values()) == 51 - sent)
        wait_until_settled(client, dead=sent)


def test_a_table_of_statuses_says_what_becomes_of_a_callback(server: Server) -> None:
    client: Any = server.client
    table = {"409": "delivered", "404": "retry", "5xx": "dead", "504": "retry", "302": "delivered"}
    with (
        Receiver() as receiver,
        Receiver() as other,
        Daemon(
            server.url,
            queue(retry={"statuses": {"400": "delivered", "410": "dead"}}),
            destinations=[entry(receiver, retry={"statuses": table})],
        ) as daemon,
    ):
        answers = {"409": [409], "302": [302], "404": [404, 200], "504": [504, 200], "500": [500], "410": [410]}
        for path, statuses in answers.items():
            left = list(statuses)
            receiver.on(f"/{path}", lambda seen, left=left: Answer(left.pop(0)))
        other.on("/400", Answer(400))
        push(client, *(item(receiver.url(f"/{path}"), path) for path in answers), item(other.url("/400"), "400"))
        wait_until_settled(client, dead=2)
        assert counted(daemon, "cbq_callbacks_delivered_total")() == 5
        assert counted(daemon, "cbq_delivery_failures_total", destination="partner", kind="http_4xx")() == 2
        letters = json.loads(command(daemon, "dead", "list", "-o", "json"))
        assert sorted(letter["failure"]["status"] for letter in letters) == [410, 500]
        assert counted(daemon, "cbq_paused_destinations")() == 0


def test_configured_receivers_have_series_from_the_start_and_others_as_many_as_configured(server: Server) -> None:
    with Receiver(host="0.0.0.0") as receiver:
        daemon = Daemon(server.url, queue(), queue(name="seen", prefix="seen", mode="observe"))
        daemon.configure(
            metrics={"destination_series_limit": 2}, destinations=[{"name": "partner", "match": "hooks.example.com"}]
        )
        with daemon:
            daemon.wait_until_ready()
            first = daemon.metrics()
            known = {"queue": "callbacks", "destination": "partner"}
            assert first.get("cbq_delivery_attempts_total", **known) == 0
            assert first.get("cbq_delivery_failures_total", **known, kind="timeout") == 0
            assert first.get("cbq_destination_circuit_state", **known) == 0
            assert first.get("cbq_delivery_attempts_total", queue="seen") is None  # nothing is sent there
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                push(server.client, item(f"http://{host}:{receiver.port}/", host))
                wait_until_settled(server.client)
            attempts = {
                name: daemon.metrics().get("cbq_delivery_attempts_total", destination=name)
                for name in ("partner", f"127.0.0.1:{receiver.port}", f"127.0.0.2:{receiver.port}", "other")
            }
            assert list(attempts.values()) == [0, 1, None, 2]


def test_a_reload_ends_a_pause_in_the_configuration_and_changes_what_is_sent(server: Server) -> None:
    client: Any = server.client
    with (
        Receiver() as receiver,
        Daemon(server.url, queue(), destinations=[entry(receiver, paused=True)]) as daemon,
    ):
        push(client, *(item(receiver.url("/a"), n) for n in range(100)))
        until(lambda: lengths(client)["retry"] == 100)
        waiting = records(client)[0]
        assert (waiting["attempts"], waiting["destination"]) == (0, "partner")
        assert "its destination is paused" in str(waiting)
        assert not receiver.requests
        changed = {"headers": {"X-Partner": "1"}, "body": "item"}
        daemon.configure(destinations=[entry(receiver, "friend", request=changed)])
        daemon.send_signal(signal.SIGHUP)
        until(lambda: '"event": "reloaded' in daemon.log(), what=daemon.log)
        push(client, item(receiver.url("/a"), 100))
        wait_until_settled(client)  # what waits under the name that is no more, too
        assert Counter(json.loads(seen.body)["data"]["n"] for seen in receiver.requests) == Counter(range(101))
        assert {seen.headers["x-partner"] for seen in receiver.requests} == {"1"}
        assert counted(daemon, "cbq_delivery_attempts_total", destination="friend")() == 101


def test_what_waits_under_several_former_names_comes_back_at_once(server: Server) -> None:
    """A destination that was renamed twice: for each that goes, one of either name is to be made due."""
    client = server.client
    each = 400
    with (
        CountingReceiver() as receiver,
        Daemon(server.url, queue(), destinations=[{"name": "one", "match": "127.0.0.1:*", "paused": True}]) as daemon,
    ):
        for number, name in enumerate(("one", "two", "three")):
            daemon.configure(destinations=[{"name": name, "match": "127.0.0.1:*", "paused": name != "three"}])
            daemon.send_signal(signal.SIGHUP)
            until(lambda: daemon.log().count('"event": "reloaded') == number + 1, what=daemon.log)  # noqa: B023
            push(client, *(item(receiver.url, n) for n in range(number * each, (number + 1) * each)))
            if name != "three":
                until(lambda: lengths(client)["retry"] == (number + 1) * each)  # noqa: B023
        wait_until_settled(client, timeout=15)
        assert set(receiver.arrived.values()) == {1}
        assert len(receiver.arrived) == 3 * each


@pytest.mark.parametrize("own_process", [False, True], ids=["thread", "process"])
def test_each_destination_has_its_certificates_and_its_time(server: Server, tmp_path: Path, own_process: bool) -> None:
    client: Any = server.client
    authority = certificates.authority(tmp_path)
    ours = certificates.client(tmp_path, authority, "ours", "DNS:a")
    theirs = certificates.server(tmp_path, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    tls = {"ca_file": str(authority.certificate), "cert_file": str(ours.certificate), "key_file": str(ours.key)}
    with Receiver(tls=context) as receiver, Receiver() as slow:
        slow.default = never_answer
        destinations = [entry(receiver, tls=tls), entry(slow, "slow", timeout="200ms")]
        settings = queue(DEAD_AT_ONCE, delivery={"own_process": own_process, "timeout": "20s"})
        with Daemon(server.url, settings, destinations=destinations) as daemon:
            push(client, item(receiver.url(), 1), item(slow.url(), 2))
            push(client, item(receiver.url(host="localhost"), 3))  # another name, so another destination
            wait_until_settled(client, dead=2)
            assert [(number_of(seen.body), seen.certificate) for seen in receiver.requests] == [(1, "ours")]
            assert counted(daemon, "cbq_delivery_failures_total", destination="slow", kind="timeout")() == 1
            assert counted(daemon, "cbq_delivery_failures_total", kind="tls")() == 1


def test_a_callback_has_one_webhook_id_whoever_sends_it_and_however_often(server: Server) -> None:
    """Attempts, a recovery after a daemon died in the middle, another daemon, and a dead letter that is sent again."""
    client: Any = server.client
    settings = queue(SHORT_LIVED, delivery={"timeout": "10s", "lease": "11s"}, retry={"max_attempts": 3})
    with Receiver() as receiver:
        answers: list[Any] = [Answer(503), Answer(503, delay=60)]
        receiver.default = lambda seen: answers.pop(0) if answers else Answer(400)
        push(client, item(receiver.url(), 1), item(receiver.url(), 2))
        with Daemon(server.url, settings) as first, Daemon(server.url, settings) as second:
            receiver.wait_for_requests(3)
            leader = first if counted(first, "cbq_dispatch_leader")() else second
            leader.kill()
            for name in client.zrange(KEYS.leases, 0, -1):  # time passes
                client.zadd(KEYS.leases, {name: 1}, xx=True)
            wait_until_settled(client, dead=2)
            survivor = second if leader is first else first
            command(survivor, "dead", "retry", "--all", "--yes")
            wait_until_settled(client, dead=2)
        ids = {
            number: {s.headers["webhook-id"] for s in receiver.requests if number_of(s.body) == number}
            for number in (1, 2)
        }
        sent = Counter(number_of(seen.body) for seen in receiver.requests)
        assert min(sent.values()) >= 2
        assert sum(sent.values()) >= 6
        assert {len(found) for found in ids.values()} == {1}
        assert ids[1] != ids[2]
