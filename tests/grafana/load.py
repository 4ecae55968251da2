"""A daemon that has seen everything that the dashboards show: deliveries, failures, a dead letter, bundles, healing."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.support.daemons import SHORT_LIVED, Daemon, queue
from tests.support.receiver import Answer, Receiver, Seen
from tests.support.servers import Server

THEIRS = "worker_1764000000_1234"
FAILING = "localhost"  # the same receiver, under a name of its own
FOREIGN = "foreign"
IDLE = "idle"
NEVER_SENT = "never-sent"
_HEALING: dict[str, Any] = {
    "recovery": {"every": "200ms", "stuck_after": "1s"},
    "lock": {"check_every": "200ms", "stale": {"no_ttl_after": "1s", "max_ttl": "10m"}},
    "delivery": SHORT_LIVED["delivery"],
}

# One is sent by the daemon, one so in bundles, one by workers that die, one has a key that is something else, one
# is idle, and one has nobody who sends.
QUEUES = (
    queue(SHORT_LIVED, name="callbacks", prefix="callbacks", retry={"max_attempts": 3}),
    queue({"delivery": {"coalesce": {"size": 5, "linger": "50ms"}}}, name="together", prefix="together"),
    queue(_HEALING, name="theirs", prefix="theirs", mode="supervise"),
    queue(_HEALING, name="foreign", prefix="foreign", mode="supervise"),
    queue(name=IDLE, prefix=IDLE, mode="observe"),
    queue(name=NEVER_SENT, prefix=NEVER_SENT, mode="supervise"),
)


def item(url: str, number: int) -> bytes:
    return json.dumps({"url": url, "data": {"n": number}, "_queued_at": time.time()}).encode()


@contextlib.contextmanager
def loaded(server: Server) -> Iterator[Daemon]:
    """The daemon, with callbacks coming in until the end."""
    server.client.config_set("maxmemory", "256mb")
    done = threading.Event()
    try:
        with Receiver() as receiver, Daemon(server.url, *QUEUES) as daemon:
            producer = threading.Thread(target=_produce, args=(server, receiver, daemon, done), name="producer")
            producer.start()
            try:
                yield daemon
            finally:
                done.set()
                producer.join(20)
    finally:
        server.client.config_set("maxmemory", "0")


def _produce(server: Server, receiver: Receiver, daemon: Daemon, done: threading.Event) -> None:
    client: Any = server.client
    ok = receiver.on("/ok", Answer(delay=0.2))  # long enough for a scrape to see it under way
    down = receiver.on("/down", Answer(503)).replace("127.0.0.1", FAILING)
    together = receiver.on("/together", _in_part)
    client.rpush("together:pending", item(receiver.on("/gone", Answer(410)).replace("127.0.0.1", FAILING), 0))
    client.set("foreign:processing", "not a list")
    client.rpush(f"{NEVER_SENT}:pending", item(ok, 0))
    number = 0
    while not done.wait(0.1):
        number += 1
        client.rpush("callbacks:pending", *(item(ok, number) for _ in range(5)), item(down, number), b"{")
        client.rpush("together:pending", *(item(together, number) for _ in range(5)))
        client.set("theirs:last_send_time", str(time.time()), ex=60)
        if number % 5 == 0 and (taken := client.lpop("callbacks:processing")) is not None:
            client.rpush("callbacks:pending", taken)  # as their clean-up does, while it is being sent
        if number % 20 == 1:  # one more worker dies with a callback, and leaves the send lock
            client.rpush("theirs:processing", item(ok, number))
            client.set("theirs:lock", f"{THEIRS}{number}")
            client.delete("callbacks:lock")  # as existing tools free it, whoever holds it
            _post_alert(daemon)


def _in_part(seen: Seen) -> Answer:
    """At most three callbacks at once, of which the first is refused."""
    count = len(json.loads(seen.body))
    if count > 3:
        return Answer(413)
    return Answer(body=json.dumps([{"status": 400}, *({"status": 200} for _ in range(count - 1))]).encode())


def _post_alert(daemon: Daemon) -> None:
    """Without a token: it is refused, and counted."""
    request = urllib.request.Request(f"{daemon.url}/api/v1/alerts", b"{}", {"Content-Type": "application/json"})
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=10).close()
