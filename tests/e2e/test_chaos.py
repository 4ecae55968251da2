"""Daemons and store killed with SIGKILL again and again, under load: nothing that was accepted is lost.

``CBQ_CHAOS_SECONDS`` is for how long there are kills, in all; ``CBQ_CHAOS_SEED`` is what is done when. The moments
are chosen by the seed, what the machine is doing at them is not: a failure may need several runs to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.queue import Queue
from tests.e2e.bare_client import PREFIX, item, kept, lengths, push, wait_until_settled
from tests.support.counting_receiver import RESET, CountingReceiver
from tests.support.daemons import SHORT_LIVED, Daemon, queue, until
from tests.support.servers import KINDS, Server

SEED = int(os.environ.get("CBQ_CHAOS_SEED", "20261124"))
SECONDS = float(os.environ.get("CBQ_CHAOS_SECONDS", "33"))

# Three queues, so that each kill finds three times as many things half done.
PREFIXES = ("one", "two", "three")
NEVER_GIVEN_UP = {"max_attempts": 1000, "base": "50ms", "cap": "300ms"}
# Redis 7.0 (not Valkey 9) that is killed inside a write and then once more applies the first part of a script the
# second time: ends of leases without what followed them. Such callbacks come back like those that others left behind.
RECOVERY = {"every": "200ms", "max_recoveries": 1000, "stuck_after": "1s"}
# A circuit that opens and closes again and again, whenever the receiver is down, and few places: much is put aside and
# brought forward. (Else one in six attempts fails: were that enough to open it, the end would not come in time.)
SKITTISH = {
    "breaker": {
        "failure_ratio": 0.4,
        "min_attempts": 10,
        "window": "1s",
        "probes": 2,
        "open_for": "200ms",
        "longest_open": "500ms",
    },
    "per_destination": {"concurrency": 8, "rate": "2000/s"},
}
# Several in a request, of which one may be refused for good, and few keys whose callbacks wait for each other.
TOGETHER = {"coalesce": {"size": 10, "linger": "20ms"}, "order_by": "task_id"}
KEYS = 40
OWN = {"one": TOGETHER, "two": {"own_process": True}, "three": SKITTISH}
QUEUES = [
    queue(
        SHORT_LIVED,
        name=prefix,
        prefix=prefix,
        batch={"size": 20},
        delivery=OWN[prefix],
        retry=NEVER_GIVEN_UP,
        recovery=RECOVERY,
    )
    for prefix in PREFIXES
]

pytestmark = pytest.mark.slow


def numbers_of(body: bytes) -> list[int]:
    """Of the callbacks in a request, one or several."""
    found = json.loads(body)
    return [one["n"] for one in (found if isinstance(found, list) else [found])]


class Moods:
    """Mostly 200; some fail, are reset or too slow. Each hundredth callback is refused for good.

    While it is ``down`` all the rest fail.
    """

    def __init__(self, seed: int) -> None:
        self.down = False
        self._seed = seed

    def __call__(self, body: bytes, nth: int) -> int | tuple[int, float]:
        if any(number % 100 == 7 for number in numbers_of(body)):
            return 400
        if self.down:
            return 503
        roll = random.Random(f"{self._seed} {body!r} {nth}")
        mood = roll.random()
        if mood < 0.10:
            return 500
        if mood < 0.14:
            return RESET
        if mood < 0.17:
            return 200, 0.8  # later than the daemon waits: it was delivered and will be delivered again
        return 200, roll.uniform(0.0, 0.03)


class Producer(threading.Thread):
    """Pushes until it is stopped. What it got no answer for may have been accepted or not."""

    def __init__(self, connect: Callable[[], redis.Redis], url: str, seed: int) -> None:
        super().__init__(name="producer", daemon=True)
        self.accepted: Counter[tuple[str, bytes]] = Counter()  # by prefix and payload
        self.unsure: Counter[tuple[str, bytes]] = Counter()
        self._connect = connect
        self._url = url
        self._random = random.Random(seed)
        self._stop_asked = threading.Event()

    def run(self) -> None:
        client: redis.Redis | None = None
        number = 0
        while not self._stop_asked.wait(0.01):
            prefix = self._random.choice(PREFIXES)
            payloads = []
            for _ in range(self._random.randint(1, 6)):
                number += 1
                filling = "x" * (self._random.randint(0, 100_000) if number % 40 == 0 else 20)
                one = item(self._url, number, task_id=f"task-{number % KEYS}", prompt=filling)
                payloads += [one, one] if number % 20 == 0 else [one]  # twins, byte for byte
            counted = Counter((prefix, payload) for payload in payloads)
            try:
                client = client or self._connect()
                client.rpush(f"{prefix}:pending", *payloads)
                self.accepted += counted
            except (redis.RedisError, OSError):
                self.unsure += counted
                client = None

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(30)


def connected(path: str) -> redis.Redis:
    """Nothing is sent twice."""
    return redis.Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0), socket_timeout=10)


class Witness:
    """Looks again and again for what the kills are to hit, so that a test can say that it was there.

    It sees the store and the processes, not the daemons' counters: those end with each kill.
    """

    def __init__(self, connect: Callable[[], redis.Redis], daemons: Sequence[Daemon]) -> None:
        self.openings = set[tuple[bytes, bytes]]()  # of circuits: since when it was not closed, and which one since
        self.waited = set[bytes]()  # ids of callbacks that waited for their turn
        self.senders = set[int]()  # pids of the processes that send for a daemon
        self._connect = connect
        self._daemons = daemons
        self._stop_asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self._thread.join(30)

    def _run(self) -> None:
        client: redis.Redis | None = None
        while not self._stop_asked.wait(0.03):
            self.senders.update(*(_senders_of(one.pid) for one in self._daemons if one.process))
            try:
                client = client or self._connect()
                self._look(client)
            except (redis.RedisError, OSError):
                client = None

    def _look(self, client: Any) -> None:
        for circuit in client.hvals("three:breakers"):
            phase, _, openings, since = circuit.split(b" ")
            if phase == b"open":
                self.openings.add((since, openings))
        records = client.hgetall("one:records")
        self.waited.update(one for one, record in records.items() if b'"kind":"waiting"' in record)

    def wait_for_an_opening(self, timeout: float = 4.0) -> None:
        """Or for so long as that could take; for the first one longer, should the machine be busy."""
        before = len(self.openings)
        timeout = timeout if before else 5 * timeout
        with contextlib.suppress(TimeoutError):
            until(lambda: len(self.openings) > before, timeout)

    def check(self, receiver: CountingReceiver) -> str:
        bundles = [n for body, n in receiver.arrived.items() if len(numbers_of(body)) > 1]
        assert bundles, "no request carried several callbacks"
        assert self.openings, "no circuit opened"
        assert self.waited, "no callback waited for its turn"
        assert len(self.senders) > 1, "no daemon that was killed had a process that sends"
        until(lambda: not any(map(_is_sender, self.senders)), 15, "a sending process outlives its daemon")
        return (
            f"{sum(bundles)} bundles, {len(self.openings)} openings of circuits, {len(self.waited)} waited for their "
            f"turn, {len(self.senders)} sending processes"
        )


def _senders_of(daemon: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = os.listdir(f"/proc/{daemon}/task")
        children = " ".join(_text_of(f"{daemon}/task/{task}/children") for task in tasks).split()
        return [pid for pid in map(int, children) if _is_sender(pid)]
    return []


def _is_sender(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "cbq_exporter.delivery.child" in _text_of(f"{pid}/cmdline")
    return False


def _text_of(path: str) -> str:
    return Path("/proc", path).read_text(errors="replace")


class Tally:
    """The exact count at the end."""

    def __init__(self, producer: Producer, receiver: CountingReceiver) -> None:
        self.producer = producer
        self.receiver = receiver

    def refused(self, payloads: Counter[tuple[str, bytes]], prefix: str) -> Counter[bytes]:
        return Counter({one: n for (where, one), n in payloads.items() if where == prefix and _number(one) % 100 == 7})

    def wait_until_settled(self, client: redis.Redis, log: Callable[[], str]) -> None:
        def unsettled() -> dict[str, dict[str, int]]:
            found = {prefix: lengths(client, prefix) for prefix in PREFIXES}
            return {prefix: one for prefix, one in found.items() if sum(one.values()) > one["dead"]}

        def settled() -> bool:
            try:
                return not unsettled()
            except redis.ConnectionError:
                return False  # a server that a killed daemon left behind is just being ended by the next one

        until(settled, 60, lambda: log()[-3000:])

    def check(self, client: redis.Redis) -> str:
        accepted, unsure = self.producer.accepted, self.producer.unsure
        deliveries = Counter[int]()
        for body, times in self.receiver.accepted.items():
            for number in numbers_of(body):
                deliveries[number] += times
        wanted = Counter[int]()
        possible = Counter[int]()
        for (_, payload), times in (accepted + unsure).items():
            if _number(payload) % 100 != 7:
                possible[_number(payload)] += times
                wanted[_number(payload)] += accepted[_, payload]
        lost = {number: times for number, times in wanted.items() if deliveries[number] < times}
        assert not lost, f"{len(lost)} lost: {sorted(lost)[:50]}"
        assert deliveries.keys() <= possible.keys()
        for prefix in PREFIXES:
            there = kept(client, prefix)
            least, most = self.refused(accepted, prefix), self.refused(accepted + unsure, prefix)
            assert least <= there <= most  # as often as they were pushed, not once more
            # Nothing is left over of what is not there any more.
            assert client.hlen(f"{prefix}:payloads") == client.hlen(f"{prefix}:records") == there.total()
        repeated = sum(max(0, times - possible[number]) for number, times in deliveries.items())
        return (
            f"{accepted.total()} accepted, {unsure.total()} unsure, {deliveries.total()} deliveries, "
            f"of these {repeated} repeated"
        )


def _number(payload: bytes) -> int:
    return int(json.loads(payload)["data"]["n"])


class Daemons:
    """Two on the same queues, each started again when it was killed."""

    def __init__(self, url: str) -> None:
        self.all = [Daemon(url, *QUEUES), Daemon(url, *QUEUES)]

    def __enter__(self) -> Daemons:
        for one in self.all:
            one.launch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in self.all:
            if one.is_running:
                one.kill()
            one.__exit__()

    def log(self) -> str:
        return "\n".join(one.log()[-3000:] for one in self.all)


def _rounds(enough: Callable[[], object]) -> Iterator[int]:
    """Numbers, for as long as there are kills in one test; three times as long where there was not ``enough``."""
    began = time.monotonic()
    for nth in count():
        passed = time.monotonic() - began
        if passed > SECONDS or (passed > SECONDS / 3 and enough()):
            return
        yield nth


def _wait_for_work(receiver: CountingReceiver, moods: Moods, witness: Witness, nth: int, timeout: float = 4.0) -> None:
    """Until something is being delivered (or not: a kill while nothing can be is as good).

    Each third time the receiver is down until the next, and this is until a circuit has opened.
    """
    moods.down = nth % 3 == 1
    if moods.down:
        witness.wait_for_an_opening(timeout)
        return
    before = receiver.requests
    with contextlib.suppress(TimeoutError):
        until(lambda: receiver.requests > before, timeout)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_when_daemons_and_store_are_killed(kind: str) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    kills = Counter[str]()
    moods = Moods(SEED)
    with Server(kind, durable=True) as server, CountingReceiver(moods) as receiver:
        producer = Producer(lambda: connected(str(server.socket)), receiver.url, SEED)
        with Daemons(server.url) as daemons, Witness(lambda: connected(str(server.socket)), daemons.all) as witness:
            producer.start()
            for nth in _rounds(lambda: witness.openings):
                _wait_for_work(receiver, moods, witness, nth)
                time.sleep(chance.uniform(0.0, 0.25))  # the moment of the kill
                if chance.random() < 0.4:
                    server.kill()
                    kills["store"] += 1
                    if chance.random() < 0.5:
                        victim = chance.choice(daemons.all)
                        victim.kill()
                        victim.launch()
                        kills["daemon"] += 1
                    time.sleep(chance.uniform(0.0, 0.3))
                    server.start()
                for victim in chance.choice(([daemons.all[0]], [daemons.all[1]], daemons.all)):
                    victim.kill()
                    victim.launch()
                    kills["daemon"] += 1
            moods.down = False
            producer.stop()
            tally = Tally(producer, receiver)
            tally.wait_until_settled(server.client, daemons.log)
        print(f"{kind}: {dict(kills)} killed; {tally.check(server.client)}; {witness.check(receiver)}")
        assert kills["daemon"] >= SECONDS / 6
        assert producer.accepted.total() > 50 * SECONDS / 3


def test_nothing_is_lost_when_the_daemon_and_its_embedded_store_are_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    kills = Counter[str]()
    daemon = Daemon(None, *QUEUES, folder=tmp_path)

    def running() -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, Any] = json.loads((daemon.data_dir / "server.json").read_text())
            return known
        return {}

    def connect() -> redis.Redis:
        path = running().get("socket")
        if path is None:
            raise ConnectionError("there is none")
        return connected(path)

    def answering() -> redis.Redis | None:
        with contextlib.suppress(redis.RedisError, OSError):
            client = connect()
            client.ping()
            return client
        return None

    def kill_store() -> None:
        pid = running().get("pid")
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills["store"] += 1

    moods = Moods(SEED)
    with CountingReceiver(moods) as receiver, Witness(connect, [daemon]) as witness:
        producer = Producer(connect, receiver.url, SEED)
        try:
            daemon.launch()
            producer.start()
            for nth in _rounds(lambda: witness.openings and kills["store"] > SECONDS / 30):
                _wait_for_work(receiver, moods, witness, nth, 6)
                time.sleep(chance.uniform(0.0, 0.25))
                what = chance.choice(("daemon", "daemon", "store", "both"))
                if what != "daemon":
                    kill_store()
                if what != "store" or not daemon.is_running:
                    daemon.kill()
                    daemon.launch()
                    kills["daemon"] += 1
            moods.down = False
            producer.stop()
            tally = Tally(producer, receiver)
            if not daemon.is_running:  # its store was killed while it waited for it to start
                daemon.launch()
            client = until(answering, 60, daemon.log)
            assert client is not None
            tally.wait_until_settled(client, daemon.log)
            counted = tally.check(client)
            assert daemon.stop() == 0
            print(f"embedded: {dict(kills)} killed; {counted}; {witness.check(receiver)}")
            assert min(kills["daemon"], kills["store"]) >= SECONDS / 30
        finally:
            daemon.__exit__()
            kill_store()


def test_nothing_is_lost_when_a_daemon_is_killed_while_it_recovers(server: Server) -> None:
    """Each round kills it as soon as the first of many expired callbacks is back."""
    client = server.client
    config = queue(SHORT_LIVED, recovery={"every": "100ms"})
    with CountingReceiver() as receiver:
        payloads = [item(receiver.url, n) for n in range(2800)]
        payloads += payloads[:200]  # twins
        push(client, *payloads)
        daemon = Daemon(server.url, config)
        try:
            for _ in range(8):
                asyncio.run(_claim_all_for_a_moment(server.url))
                assert lengths(client)["processing"] == len(payloads)
                client.set(f"{PREFIX}:lock", "worker_1764000000_1234", ex=600)  # so it recovers and does not send
                daemon.launch()
                until(lambda: client.llen(f"{PREFIX}:pending"), 30, daemon.log)
                daemon.kill()
                assert kept(client) == Counter(payloads)
                client.delete(f"{PREFIX}:lock")
            daemon.start()
            wait_until_settled(client, timeout=30)
            assert receiver.accepted == Counter(json.dumps({"n": _number(one)}).encode() for one in payloads)
        finally:
            daemon.__exit__()


async def _claim_all_for_a_moment(url: str) -> None:
    """As a daemon does that is gone at once; its leases have run out when this returns."""
    connections = Connections(url, shown_as="the test's")
    try:
        store = Queue(connections, QueueKeys.of(PREFIX), lock_value="gone")
        await store.keep_lock(60)
        left = 1
        while left:
            claim = await store.claim(count=500, max_bytes=1 << 30, lease=0.001, lock_ttl=60)
            assert claim is not None
            left = claim.pending_left
        await store.free_lock()
    finally:
        await connections.close()
