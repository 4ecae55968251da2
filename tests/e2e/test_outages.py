"""Every way in which Redis can be away: the daemon says so, waits without spinning, and goes on by itself."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.e2e.bare_client import PREFIX, item, lengths, number_of, push, wait_until_settled
from tests.support.counting_receiver import CountingReceiver
from tests.support.daemons import AT_ONCE, SHORT_LIVED, Daemon, queue, until
from tests.support.receiver import Receiver, held
from tests.support.servers import Server, may_debug

CONFIG = queue(SHORT_LIVED, AT_ONCE)
IDLE_SHARE = 0.25  # of a core, at most, while Redis is away; spinning takes all of one


@dataclass
class Place:
    server: Server
    receiver: CountingReceiver
    daemon: Daemon
    pushed: int = 0

    def push(self, count: int = 10) -> None:
        push(self.server.client, *(item(self.receiver.url, n) for n in range(self.pushed, self.pushed + count)))
        self.pushed += count

    def all_delivered_once(self) -> None:
        wait_until_settled(self.server.client, timeout=30, what=lambda: self.daemon.log()[-3000:])
        self.daemon.wait_until_ready(30)
        assert Counter(number_of(body) for body in self.receiver.order) == Counter(range(self.pushed))
        assert self.daemon.metrics().get("cbq_up") == 1
        until(lambda: self.daemon.metrics().get("cbq_dispatch_leader") == 1)

    def waits_without_spinning(self, seconds: float = 1.5) -> None:
        until(self._flush_has_failed)  # an idle one looks each ten seconds; from then on it could spin
        self.does_not_spin(seconds)

    def does_not_spin(self, seconds: float = 1.5) -> None:
        cpu, began = self.daemon.cpu_seconds(), time.monotonic()
        time.sleep(seconds)  # not waiting for anything: this is the measurement
        share = (self.daemon.cpu_seconds() - cpu) / (time.monotonic() - began)
        print(f"waiting costs {100 * share:.1f} % of a core")
        assert share < IDLE_SHARE

    def _flush_has_failed(self) -> bool:
        failures = self.daemon.metrics(2.0).get("cbq_task_failures_total", task="flush:callbacks")
        return (failures or 0) > 0

    def says_that_redis_is_down(self, saying: str) -> None:
        """Not ready with the reason; the scrape is answered, with our own metrics and nothing that was true before."""
        self.daemon.wait_until_not_ready(saying)
        assert self.daemon.get("/-/healthy")[0] == 200
        until(lambda: self.daemon.metrics(2.0).get("cbq_up") == 0)
        metrics = self.daemon.metrics(2.0)
        assert metrics.get("cbq_queue_length") is None
        assert metrics.get("cbq_lock_held") is None
        assert (metrics.get("cbq_task_runs_total") or 0) > 0
        assert metrics.get("cbq_build_info") == 1
        assert (metrics.get("cbq_redis_errors_total") or 0) > 0


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Working, with ten callbacks delivered. Its server is its own, and keeps all it has answered."""
    kind = getattr(request, "param", "valkey")
    with (
        Server(kind, *may_debug(kind), durable=True) as server,
        CountingReceiver() as receiver,
        Daemon(server.url, CONFIG) as daemon,
    ):
        place = Place(server, receiver, daemon)
        daemon.wait_until_ready()
        place.push()
        wait_until_settled(server.client)
        assert daemon.metrics().get("cbq_task_failures_total", task="flush:callbacks") == 0
        yield place


def test_redis_is_killed_and_comes_back(place: Place) -> None:
    place.server.kill()
    place.says_that_redis_is_down("cannot be reached")
    place.waits_without_spinning()
    place.server.start()
    place.push()
    place.all_delivered_once()


def test_redis_hangs(place: Place) -> None:
    place.server.send_signal(signal.SIGSTOP)
    place.says_that_redis_is_down("not answer in time")
    place.waits_without_spinning()
    place.server.send_signal(signal.SIGCONT)
    place.push()
    place.all_delivered_once()


def test_redis_hangs_while_sends_are_on_their_way(server: Server) -> None:
    """The ends of sends are stored when it answers again, once, however often that was tried meanwhile."""
    client = server.client
    config = queue(SHORT_LIVED, AT_ONCE, delivery={"timeout": "10s", "lease": "11s"})
    with Receiver() as receiver, Daemon(server.url, config) as daemon:
        push(client, *(item(receiver.on("/", held), n) for n in range(10)))
        receiver.wait_for_requests(10)
        server.send_signal(signal.SIGSTOP)
        try:
            receiver.open_gate()
            daemon.wait_until_not_ready("not answer in time")
            until(lambda: (daemon.metrics(1.0).get("cbq_redis_errors_total", kind="timeout") or 0) >= 3)
        finally:
            server.send_signal(signal.SIGCONT)
        wait_until_settled(client)
        daemon.wait_until_ready()
        assert len(receiver.requests) == 10
        assert client.get(f"{PREFIX}:stats:sent") == b"10"
        assert daemon.metrics().get("cbq_callbacks_delivered_total") == 10
        assert client.get(f"{PREFIX}:stats:failed") is None


@pytest.mark.parametrize("place", ["valkey", "redis"], indirect=True)
def test_redis_is_loading(place: Place) -> None:
    client = place.server.client
    place.server.kill()
    place.daemon.wait_until_not_ready("cannot be reached")
    place.server.start()
    for number in range(100):
        client.set(f"ballast:{number}", os.urandom(300))
    client.bgrewriteaof()  # into a form whose loading can be slowed down, and is interrupted to answer
    until(lambda: _is_rewritten(place.server))
    place.server.kill()
    slow = Server(
        place.server.kind,
        *("--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024"),
        *("--appendonly", "yes", "--appendfsync", "always"),
        folder=place.server.folder,
    )
    loading = _in_background(slow.start)
    try:
        place.daemon.wait_until_not_ready("loading")
        metrics = place.daemon.metrics(2.0)
        assert metrics.get("cbq_up") == 0
        assert metrics.get("cbq_queue_length") is None
        loading()
        place.push()
        place.all_delivered_once()
    finally:
        slow.stop()


def _is_rewritten(server: Server) -> bool:
    about = server.client.info("persistence")
    return not (about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"])


def _in_background(work: Callable[[], None]) -> Callable[[], None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return lambda: thread.join(60)


def test_redis_is_a_replica_for_a_while(place: Place) -> None:
    client = place.server.client
    with Server() as primary:
        primary.client.config_set("port", _free_port())
        port = primary.client.config_get("port")["port"]
        primary.client.config_set("repl-diskless-sync-delay", 0)
        # It takes the data of its primary: so that has all of ours.
        client.replicaof("127.0.0.1", port)
        until(lambda: client.info("replication")["master_link_status"] == "up")
        place.daemon.wait_until_not_ready("replica")
        place.waits_without_spinning()
        assert place.daemon.metrics().get("cbq_up") == 1  # it can be read
        client.replicaof("NO", "ONE")
        place.push()
        place.all_delivered_once()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_redis_is_full_for_a_while(place: Place) -> None:
    """It says so, because producers are refused, and goes on sending what is there: that frees memory."""
    client = place.server.client
    with Receiver() as receiver:
        receiver.on("/", held)
        push(client, *(item(receiver.url("/"), n) for n in range(5)))
        receiver.wait_for_requests(5)
        place.push()
        client.config_set("maxmemory", 1)
        place.daemon.wait_until_not_ready("maxmemory")
        receiver.open_gate()
        until(lambda: lengths(client)["pending"] == lengths(client)["processing"] == 0)
        place.does_not_spin()
        assert place.daemon.metrics().get("cbq_up") == 1
        client.config_set("maxmemory", 0)
        place.all_delivered_once()
        assert len({request.body for request in receiver.requests}) == 5


def test_the_scripts_are_flushed(place: Place) -> None:
    for _ in range(5):
        place.server.client.script_flush()
        place.push()
        wait_until_settled(place.server.client)
    assert not place.daemon.not_ready()
    place.all_delivered_once()


def test_a_script_of_somebody_else_blocks_redis(place: Place) -> None:
    client = place.server.client
    client.config_set("busy-reply-threshold", 100)
    endless = _in_background(lambda: _endless_script(place.server))
    place.daemon.wait_until_not_ready("a script blocks it")
    place.waits_without_spinning()
    client.script_kill()
    endless()
    place.push()
    place.all_delivered_once()


def _endless_script(server: Server) -> None:
    # Without patience of the library's own, which would start it again after five seconds.
    client = redis.Redis(unix_socket_path=str(server.socket), socket_timeout=None, retry=Retry(NoBackoff(), 0))
    try:
        client.eval("while true do end", 0)
    except redis.ResponseError:
        return  # killed, as it was to be
    finally:
        client.close()


def test_a_daemon_that_starts_without_redis_waits_for_it() -> None:
    with Server(durable=True) as server, CountingReceiver() as receiver:
        push(server.client, *(item(receiver.url, n) for n in range(10)))
        server.kill()
        with Daemon(server.url, CONFIG) as daemon:
            daemon.wait_until_not_ready("cannot be reached")
            assert daemon.metrics(2.0).get("cbq_up") == 0
            server.start()
            daemon.wait_until_ready(30)
            wait_until_settled(server.client)
            assert set(receiver.arrived.values()) == {1}
            assert len(receiver.arrived) == 10


def test_redis_goes_away_again_and_again_while_callbacks_are_sent(place: Place) -> None:
    """Short outages, each at another point of the work; sends that ended meanwhile are not made again."""
    place.receiver.behaviour = lambda body, nth: (200, 0.01)
    for _ in range(6):
        place.push(50)
        before = place.receiver.requests
        until(lambda before=before: place.receiver.requests > before)  # type: ignore[misc]
        place.server.kill()
        place.server.start()
    wait_until_settled(place.server.client, timeout=30)
    place.daemon.wait_until_ready(30)
    arrived = Counter(number_of(body) for body in place.receiver.order)
    assert arrived.keys() == set(range(place.pushed))
    assert place.daemon.metrics().get("cbq_callbacks_dead_total") == 0
