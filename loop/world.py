"""Everything that the loop consists of: a store, receivers, two daemons, Prometheus and Alertmanager, all real."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from loop import shipped
from tests.support.daemons import Daemon
from tests.support.prometheus import Alertmanager, Prometheus
from tests.support.receiver import Receiver
from tests.support.servers import Server

_TOKEN = "of-alertmanager-and-of-nobody-else"
_PEOPLE = "/people"

Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Told:
    """What people were told of one alert. ``at`` is epoch seconds."""

    at: float
    alert: str
    severity: str
    queue: str
    status: str


@dataclass(frozen=True, slots=True)
class World:
    """``receiver`` takes callbacks, and what people are told."""

    server: Server
    receiver: Receiver
    daemons: Sequence[Daemon]
    alertmanager: Alertmanager
    prometheus: Prometheus

    @property
    def client(self) -> redis.Redis:
        return self.server.client

    def unsettled(self, queue: str) -> int:
        """How many of its callbacks are pending, in processing or in retry."""
        pipe = self.client.pipeline()
        pipe.llen(f"{queue}:pending")
        pipe.llen(f"{queue}:processing")
        pipe.zcard(f"{queue}:retry")
        return sum(pipe.execute())

    def told(self) -> list[Told]:
        found = []
        for request in self.receiver.requests:
            if request.path == _PEOPLE:
                for one in json.loads(request.body)["alerts"]:
                    of = one["labels"]
                    about = (of["alertname"], of["severity"], of.get("queue", ""))
                    found.append(Told(request.at, *about, one["status"]))
        return found

    def audited(self, queue: str) -> list[dict[str, str]]:
        """Its audit, the oldest first; ``at`` is epoch seconds by the store's clock."""
        entries: Any = self.client.xrange(f"{queue}:audit")
        return [
            {"at": str(int(entry.partition(b"-")[0]) / 1000), **{k.decode(): v.decode() for k, v in fields.items()}}
            for entry, fields in entries
        ]

    def counted(self, name: str, **labels: str) -> float:
        """The sum over all daemons."""
        return sum(daemon.metrics().get(name, **labels) or 0 for daemon in self.daemons)


@contextmanager
def running(*queues: dict[str, Any], change: Change = lambda config: None) -> Iterator[World]:
    """All of it, with nothing wrong; all is ended and removed afterwards. ``change``: of Alertmanager's configuration.

    The prefix of a queue is its name.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbq-loop-")))
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(_TOKEN)
        server = stack.enter_context(Server(durable=True))
        receiver = stack.enter_context(Receiver())
        of_queues = [{**one, "prefix": one["name"]} for one in queues]
        daemons = [Daemon(server.url, *of_queues, alerts=shipped.alerts(token_file)) for _ in range(2)]
        for daemon in daemons:
            stack.enter_context(daemon)
        urls = [daemon.url for daemon in daemons]
        config = shipped.alertmanager(urls, token_file, receiver.url(_PEOPLE))
        change(config)
        alertmanager = stack.enter_context(Alertmanager(config))
        rule_files = [_written(folder / name, content) for name, content in shipped.rules().items()]
        prometheus = stack.enter_context(Prometheus(shipped.prometheus(urls, alertmanager.url, rule_files)))
        prometheus.wait_for(f"count(cbq_up == 1) == {len(daemons)}", timeout=60)
        yield World(server, receiver, daemons, alertmanager, prometheus)


def item(url: str, number: int) -> bytes:
    return json.dumps({"url": url, "data": {"n": number}, "_queued_at": time.time()}).encode()


def _written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
