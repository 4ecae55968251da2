"""Alerts on real daemons: what a dead worker left is recovered because an alert says so, once, whatever is killed."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.bare_client import PREFIX, item, push, wait_until_settled
from tests.support.acl import documented_user
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import Daemon, queue, until
from tests.support.foreign_worker import ForeignWorker
from tests.support.prometheus import Alertmanager
from tests.support.servers import Server

TOKEN = "t0ken-of-alertmanager"
PENDING, PROCESSING = f"{PREFIX}:pending", f"{PREFIX}:processing"

# Looked at all the time, and acted on only where an alert says so.
LOOKS_ONLY: dict[str, Any] = {
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"auto": False, "every": "3s", "stuck_after": "1s"},  # what was seen outlives a restart
    "lock": {"ttl": "1s", "check_every": "200ms"},
}
ROUTES = [{"match": ['alertname=~"CbqStuck.*"', "severity!=info"], "action": "recover", "cooldown": "0s"}]


def daemon_of(server: Server, folder: Path, **settings: Any) -> Daemon:
    """It can be started again where it was ended."""
    folder.mkdir(exist_ok=True)
    (folder / "tokens").write_text(f"alertmanager {TOKEN}\n")
    daemon = Daemon(server.url, queue(LOOKS_ONLY, **settings), folder=folder)
    daemon.configure(alerts={"auth": {"bearer_token_file": str(folder / "tokens")}, "routes": ROUTES})
    return daemon


def stuck(firing: int = 1, **changes: Any) -> dict[str, Any]:
    """As Alertmanager posts it; ``firing`` tells one firing of the alert from the next."""
    alert = {
        "status": "firing",
        "labels": {"alertname": "CbqStuckCallbacks", "queue": "callbacks", "severity": "warning"},
        "startsAt": f"2026-11-25T02:00:{firing:02}Z",
        "fingerprint": "a1b2c3d4e5f60718",
        **changes,
    }
    return {"version": "4", "truncatedAlerts": 0, "alerts": [alert]}


def post(daemon: Daemon, body: dict[str, Any]) -> tuple[int, list[str]]:
    """Status, and the outcome of each alert."""
    address = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/api/v1/alerts", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, [one["outcome"] for one in json.loads(answer.read()).get("alerts", ())]
    finally:
        connection.close()


def audited(server: Server) -> list[tuple[str, str]]:
    """Who recovered, and how it ended."""
    client: Any = server.client
    entries = [fields for _, fields in client.xrange(f"{PREFIX}:audit")]
    return [
        (f"{one[b'trigger'].decode()}:{one[b'actor'].decode()}", one[b"result"].decode())
        for one in entries
        if one[b"operation"] == b"recover"
    ]


ONCE = [("alert:a1b2c3d4e5f60718", "started"), ("alert:a1b2c3d4e5f60718", "done")]


def are_stuck(server: Server, daemon: Daemon, *payloads: bytes) -> None:
    """Until the daemon says so."""
    server.client.rpush(PROCESSING, *payloads)
    until(lambda: daemon.metrics().get("cbq_stuck_callbacks") == len(payloads))


def test_what_a_dead_worker_left_is_recovered_when_an_alert_says_so_and_only_once(
    server: Server, tmp_path: Path
) -> None:
    payloads = [item("http://127.0.0.1:9/", number) for number in range(3)]
    push(server.client, *payloads)
    with daemon_of(server, tmp_path, mode="supervise") as daemon:
        with ForeignWorker(server.url, PREFIX) as worker:
            worker.begin("batch")
            worker.go_on(8)  # three are in its hands
            worker.kill()
        assert server.client.lrange(PROCESSING, 0, -1) == payloads
        until(lambda: daemon.metrics().get("cbq_stuck_callbacks") == 3)

        assert post(daemon, stuck(status="resolved")) == (200, ["resolved"])
        assert post(daemon, stuck()) == (200, ["accepted"])
        # Behind the rest, where order is not kept: the dead worker still has the lock.
        until(lambda: sorted(server.client.lrange(PENDING, 0, -1)) == sorted(payloads))
        until(lambda: audited(server) == ONCE)
        until(lambda: daemon.metrics().get("cbq_operations_total", trigger="alert", result="done") == 1)

        server.client.delete(PENDING)
        are_stuck(server, daemon, payloads[0])
        assert post(daemon, stuck()) == (200, ["duplicate"])
        assert daemon.stop() == 0
        with daemon:  # the limits outlive it
            until(lambda: daemon.metrics().get("cbq_stuck_callbacks") == 1)
            assert post(daemon, stuck()) == (200, ["duplicate"])
            assert audited(server) == ONCE
            assert server.client.lrange(PROCESSING, 0, -1) == [payloads[0]]
            assert daemon.metrics().get("cbq_alerts_received_total", outcome="duplicate") == 1
        assert TOKEN not in daemon.log()


def test_killed_at_the_answer_the_action_is_neither_forgotten_nor_repeated(server: Server, tmp_path: Path) -> None:
    daemon = daemon_of(server, tmp_path, mode="supervise")
    for firing in range(2):
        server.client.delete(PENDING, f"{PREFIX}:audit")
        payload = item("http://127.0.0.1:9/", firing)
        with daemon:
            are_stuck(server, daemon, payload)
            assert post(daemon, stuck(firing)) == (200, ["accepted"])
            daemon.kill()
        server.client.delete(f"{PREFIX}:alerts_turn")  # half a minute later
        with daemon:
            until(lambda: not server.client.zcard(f"{PREFIX}:alerts_open"))
            assert post(daemon, stuck(firing)) in ((200, ["duplicate"]), (200, ["not_needed"]))
        assert server.client.lrange(PENDING, 0, -1) == [payload], firing
        assert server.client.llen(PROCESSING) == 0
        assert audited(server).count(ONCE[1]) <= 1


def test_what_one_daemon_wrote_down_another_does(server: Server, tmp_path: Path) -> None:
    """The first stands still from its answer on."""
    payload = item("http://127.0.0.1:9/", 1)
    with (
        daemon_of(server, tmp_path, mode="supervise") as first,
        daemon_of(server, tmp_path, mode="supervise") as second,
    ):
        are_stuck(server, first, payload)
        until(lambda: second.metrics().get("cbq_stuck_callbacks") == 1)
        assert post(first, stuck()) == (200, ["accepted"])
        first.pause()
        assert post(second, stuck()) in ((200, ["duplicate"]), (200, ["not_needed"]))
        server.client.delete(f"{PREFIX}:alerts_turn")  # half a minute later
        until(lambda: not server.client.zcard(f"{PREFIX}:alerts_open"))
        first.resume()
        first.wait_until_ready()
        assert server.client.lrange(PENDING, 0, -1) == [payload]
        assert audited(server).count(ONCE[1]) <= 1


@contextmanager
def alertmanager_for(daemon: Daemon, tmp_path: Path) -> Iterator[Alertmanager]:
    (tmp_path / "token").write_text(TOKEN)
    hook = {
        "url": f"{daemon.url}/api/v1/alerts",
        "max_alerts": 1000,
        "http_config": {"authorization": {"credentials_file": str(tmp_path / "token")}},
    }
    config = {
        "route": {"receiver": "daemon", "group_wait": "0s", "group_interval": "1s", "repeat_interval": "1s"},
        "receivers": [{"name": "daemon", "webhook_configs": [hook]}],
    }
    with Alertmanager(config) as alertmanager:
        yield alertmanager


@contextmanager
def hanging(server: Server) -> Iterator[None]:
    server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("outage", [False, True], ids=["at once", "after an outage of the store"])
def test_a_real_alertmanager_has_callbacks_delivered(server: Server, tmp_path: Path, outage: bool) -> None:
    with (
        CountingReceiver() as receiver,
        daemon_of(server, tmp_path, mode="dispatch") as daemon,
        alertmanager_for(daemon, tmp_path) as alertmanager,
    ):
        are_stuck(server, daemon, *(item(receiver.url, number) for number in range(3)))
        with hanging(server) if outage else nullcontext():
            alertmanager.post({"alertname": "CbqStuckCallbacks", "queue": "callbacks", "severity": "warning"})
            if outage:
                until(lambda: daemon.metrics(9).get("cbq_alerts_received_total", outcome="failed"), timeout=30)
        wait_until_settled(server.client)
        assert list(receiver.accepted.values()) == [1, 1, 1]
        # It comes again and again, and nothing more is done.
        until(lambda: (daemon.metrics().get("cbq_alerts_received_total", outcome="duplicate") or 0) >= 1)
        assert daemon.metrics().get("cbq_operations_total", operation="recover", trigger="alert", result="done") == 1


def test_a_reload_changes_who_may_post_and_what_comes_of_it(server: Server, tmp_path: Path) -> None:
    with documented_user(server, "supervise") as url:
        daemon = daemon_of(server, tmp_path, mode="supervise")
        daemon.configure(redis={"url": url}, alerts={"auth": {"bearer_token_file": None}, "routes": []})
        payload = item("http://127.0.0.1:9/", 1)
        with daemon:
            are_stuck(server, daemon, payload)
            assert post(daemon, stuck()) == (403, [])
            auth = {"bearer_token_file": str(tmp_path / "tokens")}
            daemon.configure(alerts={"auth": auth, "routes": ROUTES})
            daemon.send_signal(signal.SIGHUP)
            until(lambda: post(daemon, stuck(status="resolved")) == (200, ["resolved"]))
            assert post(daemon, stuck()) == (200, ["accepted"])
            until(lambda: server.client.lrange(PENDING, 0, -1) == [payload])
            until(lambda: audited(server) == ONCE)
