"""Reloading a daemon that works: nothing in flight is lost or doubled, and what has not changed is not touched."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.e2e.bare_client import PREFIX, item, lengths, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import AT_ONCE, Daemon, queue, until
from tests.support.receiver import Receiver, held
from tests.support.servers import Server

TOKEN = "a-token-of-the-operator"
OFTEN = {"lock": {"check_every": "100ms"}}  # how often there is a sign of life
EMPTY = {"pending": 0, "processing": 0, "leases": 0, "retry": 0, "dead": 0}


def second(*layers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return queue({"name": "second", "prefix": "second"}, *layers, **settings)


def daemon_with_token(url: str, folder: Path, *queues: dict[str, Any], grace: str = "10s") -> Daemon:
    tokens = folder / "tokens"
    tokens.write_text(f"alice {TOKEN}\n")
    return Daemon(url, *queues, web={"bearer_token_file": str(tokens)}, grace=grace)


def reload(daemon: Daemon, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    status, body = daemon.ask("POST", "/-/reload", timeout=30, Authorization=f"Bearer {token}")
    return status, json.loads(body)


def reloads(daemon: Daemon) -> int:
    return daemon.log().count('"event": "reloaded')


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread; what is returned waits for its answer."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()

    def answer() -> Any:
        thread.join(60)
        return answers[0]

    return answer


@contextmanager
def again_and_again(work: Callable[[], object]) -> Iterator[list[Any]]:
    """``work`` in a thread, without a pause; gives the list of what it has returned so far."""
    answers: list[Any] = []
    enough = threading.Event()

    def run() -> None:
        while not enough.is_set():
            answers.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        enough.set()
        thread.join(60)


def rival(client: redis.Redis, prefix: str) -> Callable[[], bool]:
    """Tries to take the send lock, as existing workers do; says whether it could."""
    taking = client.register_script(
        "return redis.call('SET', KEYS[1], 'worker_1764000000_1111', 'NX', 'EX', 30) and 1 or 0"
    )
    return lambda: bool(taking(keys=[f"{prefix}:lock"]))


def test_sends_in_flight_finish_before_a_changed_queue_goes_on(server: Server, tmp_path: Path) -> None:
    client = server.client
    few = queue(batch={"size": 20}, delivery={"per_destination": {"concurrency": 4}})
    more = queue(
        batch={"size": 5},
        delivery={"per_destination": {"concurrency": 2}, "egress": {"allow": ["127.0.0.0/8", "10.0.0.0/8"]}},
    )
    with Receiver() as receiver, daemon_with_token(server.url, tmp_path, few, second()) as daemon:
        payloads = [item(receiver.on("/", held), n) for n in range(20)]
        push(client, *payloads)
        receiver.wait_for_requests(4)
        lock = client.get(f"{PREFIX}:lock")
        assert daemon.metrics().get("cbq_destination_in_flight", queue="callbacks") == 4
        with again_and_again(rival(client, PREFIX)) as taken:
            daemon.configure(more, second())
            answer = in_background(lambda: reload(daemon))
            push(
                client,
                *(
                    item(
                        receiver.url("/free"),
                        n,
                    )
                    for n in range(20, 25)
                ),
            )
            push(client, item(receiver.url("/other")), prefix="second")  # goes on meanwhile
            receiver.wait_until(lambda it: any(one.path == "/other" for one in it.requests))
            assert len(receiver.requests) == 5  # nothing new of the queue that drains
            receiver.open_gate()
            assert answer() == (
                200,
                {
                    "added": [],
                    "removed": [],
                    "changed": {
                        "callbacks": ["batch.size", "delivery.per_destination.concurrency", "delivery.egress.allow"]
                    },
                    "settings": [],
                },
            )
            wait_until_settled(client)
        assert not any(taken), "the lock was free for others"
        assert client.get(f"{PREFIX}:lock") == lock
        sent = [number_of(one.body) for one in receiver.requests if one.path != "/other"]
        assert Counter(sent) == Counter(range(25))
        assert set(sent[:4]) == {0, 1, 2, 3}
        metrics = daemon.metrics()
        assert metrics.get("cbq_callbacks_delivered_total", queue="callbacks") == 25  # counting goes on
        assert metrics.get("cbq_destination_in_flight", queue="callbacks") == 0
        assert metrics.get("cbq_dispatch_leader", queue="callbacks") == 1
        assert daemon.log().count('"event": "dispatching: the send lock is ours", "queue": "second"') == 1
        entry: Any = client.xrevrange(f"{PREFIX}:audit", count=1)
        assert (entry[0][1][b"operation"], entry[0][1][b"actor"]) == (b"reload", b"alice")


def test_queues_come_and_go_while_they_are_scraped(server: Server, tmp_path: Path) -> None:
    client = server.client
    with Receiver() as receiver, daemon_with_token(server.url, tmp_path, queue(OFTEN)) as daemon:
        daemon.wait_until_ready()
        with again_and_again(lambda: daemon.get("/metrics")) as scrapes:
            daemon.configure(queue(OFTEN), second(OFTEN, AT_ONCE))
            daemon.send_signal(signal.SIGHUP)
            push(client, item(receiver.url("/")), prefix="second")
            receiver.wait_for_requests(1)
            until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total", queue="second"))
            assert daemon.metrics().get("cbq_task_runs_total", task="flush:second")
            assert daemon.ask("POST", "/api/v1/queues/second/pause", Authorization=f"Bearer {TOKEN}")[0] == 415

            receiver.on("/", held)
            push(client, *(item(receiver.url("/"), n) for n in range(40)), prefix="second")
            receiver.wait_for_requests(33)
            daemon.configure(queue(OFTEN))
            answer = in_background(lambda: reload(daemon))
            until(lambda: daemon.metrics().get("cbq_queue_length", queue="second") is None)
            receiver.open_gate()
            assert answer()[1]["removed"] == ["second"]
            metrics = daemon.get("/metrics")[1]
            assert 'queue="second"' not in metrics
            assert ':second"' not in metrics
            assert 'queue="callbacks"' in metrics
            assert daemon.ask("POST", "/api/v1/queues/second/pause", Authorization=f"Bearer {TOKEN}")[0] == 404
            assert daemon.not_ready() == []
        assert {status for status, _ in scrapes} == {200}
        assert len(receiver.requests) == 33
        assert lengths(client, "second") == {**EMPTY, "pending": 8}
        assert client.get("second:lock") is None
        client.delete("second:daemons")
        looks = daemon.metrics().get("cbq_task_runs_total", task="check-lock:callbacks") or 0
        until(lambda: (daemon.metrics().get("cbq_task_runs_total", task="check-lock:callbacks") or 0) >= looks + 3)
        assert not client.exists("second:daemons")  # no sign of life any more

        daemon.configure(queue(OFTEN), second())
        assert reload(daemon)[1]["added"] == ["second"]
        wait_until_settled(client, "second")
        assert daemon.metrics().get("cbq_callbacks_delivered_total", queue="second") == 8  # counted anew
        assert Counter(number_of(one.body) for one in receiver.requests[1:]) == Counter(range(40))


def test_queues_may_exchange_their_keys_and_change_their_names(server: Server, tmp_path: Path) -> None:
    """Nobody works on keys that another one has not left yet."""
    client = server.client
    busy = {"delivery": {"per_destination": {"concurrency": 2}}}
    witness = queue(OFTEN, name="witness", prefix="witness")
    with Receiver() as receiver, daemon_with_token(server.url, tmp_path, queue(busy), second(busy)) as daemon:
        url = receiver.on("/", held)
        push(client, *(item(url, n) for n in range(10)))
        push(client, *(item(receiver.url("/free"), n) for n in range(10, 20)), prefix="second")
        receiver.wait_for_requests(12)
        wait_until_settled(client, "second")
        with again_and_again(rival(client, PREFIX)) as one, again_and_again(rival(client, "second")) as other:
            daemon.configure(queue(busy, prefix="second"), second(busy, prefix=PREFIX), witness)
            answer = in_background(lambda: reload(daemon))
            push(client, *(item(receiver.url("/free"), n) for n in range(20, 30)))
            until(lambda: (daemon.metrics().get("cbq_task_runs_total", task="check-lock:witness") or 0) >= 4)
            assert len(receiver.requests) == 12  # "second" waits for "callbacks"
            receiver.open_gate()
            assert answer()[1]["changed"] == {"callbacks": ["prefix"], "second": ["prefix"]}

            daemon.configure(queue(busy, name="renamed", prefix="second"), second(busy, prefix=PREFIX), witness)
            status, changes = reload(daemon)
            assert (status, changes["added"], changes["removed"]) == (200, ["renamed"], ["callbacks"])
            push(client, *(item(receiver.url("/free"), n) for n in range(30, 40)), prefix="second")
            wait_until_settled(client)
            wait_until_settled(client, "second")
        assert not any(one + other), "the lock was free for others"
        assert Counter(number_of(one.body) for one in receiver.requests) == Counter(range(40))
        metrics = daemon.metrics()
        assert metrics.get("cbq_callbacks_delivered_total", queue="renamed") == 10
        assert metrics.get("cbq_callbacks_delivered_total", queue="callbacks") is None


def _bomb(path: Path) -> None:
    path.write_text(
        "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*{'a' if not n else f'b{n - 1}'}, *a]\n" for n in range(40))
    )


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "nothing there"),
    "a directory": (_replaced(Path.mkdir), "no regular file"),
    "a pipe that nobody writes": (_replaced(os.mkfifo), "no regular file"),
    "empty": (lambda path: path.write_text(""), "nothing in it"),
    "cut off": (lambda path: path.write_text(path.read_text()[:100]), "YAML"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "UTF-8"),
    "a bomb": (_bomb, "alias"),
    "too large": (lambda path: path.write_text("#" * 2_000_000), "bytes"),
    "wrong": (lambda path: path.write_text("queues: [{name: a, batch: {size: 0}}]\nlog: {level: loud}\nx: 1"), "size"),
}


def test_a_bad_file_changes_nothing_and_is_told_whole(server: Server, tmp_path: Path) -> None:
    client = server.client
    with Receiver() as receiver, daemon_with_token(server.url, tmp_path) as daemon:
        good = daemon.config_file.read_text()
        for number, (how, (spoil, said)) in enumerate(BAD.items()):
            spoil(daemon.config_file)
            status, answer = reload(daemon)
            assert (status, answer["code"]) == (409, "config_refused"), how
            assert len(answer["problems"]) == (3 if how == "wrong" else len(answer["problems"])), how
            assert said in " ".join(answer["problems"]), (how, answer)
            assert all("\n" not in line and line for line in answer["problems"])
            assert daemon.metrics().get("cbq_config_last_reload_successful") == 0
            push(client, item(receiver.url("/")))
            receiver.wait_for_requests(number + 1)
            if daemon.config_file.is_dir():
                daemon.config_file.rmdir()
            elif daemon.config_file.exists():
                daemon.config_file.unlink()
            daemon.config_file.write_text(good)
            assert reload(daemon) == (200, {"added": [], "removed": [], "changed": {}, "settings": []}), how
            assert daemon.metrics().get("cbq_config_last_reload_successful") == 1
        daemon.config_file.unlink()
        before = daemon.log().count("not reloaded: the old configuration goes on")
        daemon.send_signal(signal.SIGHUP)
        until(lambda: daemon.log().count("not reloaded: the old configuration goes on") == before + 1)
        assert daemon.log().count("dispatching: the send lock is ours") == 1
        assert "Traceback" not in daemon.log()


def test_what_only_counts_from_a_start_on_is_named_and_nothing_else_is_taken_over(
    server: Server, tmp_path: Path
) -> None:
    with daemon_with_token(server.url, tmp_path) as daemon:
        secret = "redis://:a-secret-password@127.0.0.1:1/0"
        daemon.configure(
            queue(batch={"size": 7}), second(), redis={"url": secret}, web={"listen_address": "127.0.0.1:1"}
        )
        status, answer = reload(daemon)
        assert (status, answer["code"]) == (409, "needs_restart")
        assert answer["detail"] == "nothing was reloaded: restart to change redis.url, web.listen_address"
        assert daemon.metrics().get("cbq_config_last_reload_successful") == 0
        assert daemon.metrics().get("cbq_queue_length", queue="second") is None
        assert "a-secret-password" not in daemon.log() + json.dumps(answer)
        assert "restart to change" in daemon.log()
        daemon.configure(queue(), redis={"url": server.url}, web={"listen_address": "127.0.0.1:0"})
        assert reload(daemon) == (200, {"added": [], "removed": [], "changed": {}, "settings": []})


def test_only_whoever_may_change_something_may_reload_and_tokens_and_the_log_can_change(
    server: Server, tmp_path: Path
) -> None:
    with Daemon(server.url) as daemon:
        assert daemon.get("/-/reload")[0] == 405
        status, body = daemon.ask("POST", "/-/reload", Authorization=f"Bearer {TOKEN}")
        assert (status, json.loads(body)["code"]) == (403, "no_token_file")
        for name, token in (("old", TOKEN), ("new", "an0ther-token-of-bob")):
            (tmp_path / name).write_text(token)
        daemon.configure(web={"bearer_token_file": str(tmp_path / "old")})
        daemon.send_signal(signal.SIGHUP)
        until(lambda: reloads(daemon) == 1)
        assert daemon.ask("POST", "/-/reload")[0] == 401
        assert reload(daemon, "an0ther-token-of-bob")[0] == 401
        assert reloads(daemon) == 1

        daemon.configure(web={"bearer_token_file": str(tmp_path / "new")}, log={"level": "error"})
        assert reload(daemon)[1]["settings"] == ["web.bearer_token_file", "log.level"]
        assert reload(daemon)[0] == 401
        assert reload(daemon, "an0ther-token-of-bob")[0] == 200
        assert reloads(daemon) == 1  # that is told no more


def test_a_storm_of_reloads_while_a_backlog_is_drained(server: Server, tmp_path: Path) -> None:
    client = server.client
    each = 10_000
    with CountingReceiver() as receiver, daemon_with_token(server.url, tmp_path, queue(), second()) as daemon:
        for prefix, first in ((PREFIX, 0), ("second", each)):
            push(client, *(item(receiver.url, n) for n in range(first, first + each)), prefix=prefix)
        until(lambda: receiver.requests > 100)
        with again_and_again(rival(client, PREFIX)) as one, again_and_again(rival(client, "second")) as other:
            for number in range(50):
                daemon.configure(queue(), second(batch={"size": 50 + number}, retry={"base": f"{number + 1}ms"}))
                daemon.send_signal(signal.SIGHUP)
            until(lambda: reload(daemon)[1] == {"added": [], "removed": [], "changed": {}, "settings": []})
            wait_until_settled(client, timeout=60)
            wait_until_settled(client, "second", timeout=60)
        assert not any(one + other), "the lock was free for others"
        assert reloads(daemon) >= 3
        assert len(receiver.accepted) == 2 * each
        assert set(receiver.arrived.values()) == {1}
        metrics = daemon.metrics()
        for name in ("callbacks", "second"):
            assert metrics.get("cbq_callbacks_delivered_total", queue=name) == each
        assert daemon.log().count('"event": "dispatching: the send lock is ours", "queue": "callbacks"') == 1
        assert daemon.log().count('"event": "dispatching: the send lock is ours", "queue": "second"') >= 3
        assert daemon.stop() == 0


def test_a_signal_during_start_or_stop_is_harmless(server: Server) -> None:
    with Receiver() as receiver, Daemon(server.url, grace="20s") as daemon:
        daemon.stop()
        (daemon.folder / "out").unlink()
        daemon.launch()
        until(lambda: _minds(daemon, signal.SIGHUP))
        while "Metrics: " not in (daemon.folder / "out").read_text():
            daemon.send_signal(signal.SIGHUP)
        daemon.url = daemon._said_url()
        daemon.wait_until_ready()
        daemon.send_signal(signal.SIGHUP)  # on a busy machine none of the others may have come before it was ready
        until(lambda: reloads(daemon))

        push(server.client, item(receiver.on("/", held)))
        receiver.wait_for_requests(1)
        daemon.configure(second())
        daemon.send_signal(signal.SIGTERM)
        until(lambda: daemon.not_ready() == ["stopping"])
        for _ in range(20):
            daemon.send_signal(signal.SIGHUP)
        receiver.open_gate()
        with again_and_again(lambda: daemon.send_signal(signal.SIGHUP)):  # also at the very end
            assert daemon.wait(20) == 0
        assert "the daemon is stopping" in daemon.log()
        assert lengths(server.client) == EMPTY


def test_a_stop_during_a_reload_ends_both(server: Server, tmp_path: Path) -> None:
    client = server.client
    with Receiver() as receiver, daemon_with_token(server.url, tmp_path) as daemon:
        push(client, *(item(receiver.on("/", held), n) for n in range(3)))
        receiver.wait_for_requests(3)
        daemon.configure(queue(batch={"size": 7}), second())
        daemon.send_signal(signal.SIGHUP)
        until(lambda: daemon.metrics().get("cbq_queue_length", queue="second") is not None)
        daemon.send_signal(signal.SIGTERM)
        until(lambda: daemon.not_ready() == ["stopping"])
        receiver.open_gate()
        assert daemon.wait(20) == 0
        assert len(receiver.requests) == 3
        assert lengths(client) == EMPTY
        assert client.get(f"{PREFIX}:lock") is None
        assert client.get("second:lock") is None


def _minds(daemon: Daemon, number: int) -> bool:
    """Whether the process ignores or handles the signal: until then it would end by it."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)
