"""Operations on a queue of a real server, from a plain test."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from cbq_exporter.config import Config, DestinationConfig, QueueConfig
from cbq_exporter.model import Actor, AuditEntry, Mode, Result, Trigger
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import Executed, Operation, Operations, Plan
from cbq_exporter.store.opening import make_store
from tests.support.servers import Server

T = TypeVar("T")

ALICE = Actor(Trigger.CLI, "alice@host")
QUEUE = "callbacks"


class Operating:
    """Use as a context manager."""

    def __init__(
        self,
        server: Server,
        mode: Mode = Mode.SUPERVISE,
        destinations: tuple[DestinationConfig, ...] = (),
        url: str | None = None,
    ) -> None:
        """``url`` is another way to the server; ``redis`` takes the usual one."""
        self.redis: Any = server.client
        config = Config(queues=(QueueConfig(name=QUEUE, prefix="q", mode=mode),), destinations=destinations)
        self._loop = asyncio.new_event_loop()
        self.store = make_store(config, url or server.url, lock_value="cbq-exporter_1_host_1")
        self.counted: list[tuple[str, str, str]] = []
        self.audit = Audit(self.store, count=self._count)
        self.operations = Operations(config, self.store, self.audit)
        self.queue = self.store.queues[QUEUE]
        self.healing = self.store.healing[QUEUE]
        self.keys = self.queue.keys

    def _count(self, operation: str, actor: Actor, result: Result) -> None:
        self.counted.append((str(operation), str(actor.trigger), str(result)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.do(self.store.close())
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def plan(self, operation: Operation) -> Plan:
        return self.do(self.operations.plan(operation))

    def execute(self, plan: Plan, actor: Actor = ALICE, **options: Any) -> Executed:
        return self.do(self.operations.execute(plan, actor=actor, **options))

    def carry_out(self, operation: Operation, **options: Any) -> Executed:
        return self.execute(self.plan(operation), **options)

    @property
    def entries(self) -> list[AuditEntry]:
        return self.do(self.audit.entries(QUEUE, count=1000))

    @property
    def story(self) -> list[tuple[str, str]]:
        """Operation and result of every entry."""
        return [(entry.operation, str(entry.result)) for entry in self.entries]

    def contents(self) -> dict[bytes, Any]:
        """All of the database but for the audit."""
        names = [name for name in sorted(self.redis.keys("*")) if name != self.keys.audit.encode()]
        return {name: self.redis.dump(name) for name in names}
