"""The API on a real store, with a stand-in for the operations that notes what it is asked to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbq_exporter.config.models import Config
from cbq_exporter.model import Actor
from cbq_exporter.services.operations import Executed, Operation, Plan
from cbq_exporter.store.answers import KEEP, MOST, Answers
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.opening import keys_of
from cbq_exporter.web.api import Api
from tests.support.servers import Server
from tests.web.serving import Answer, FakeBackend, Serving, serving

TOKEN = "s3cret-token-of-alice"
OTHER = "an0ther-token-of-bob"

QUEUES = [
    {"name": "callbacks", "prefix": "one"},
    {"name": "second", "prefix": "two", "mode": "supervise"},
    {"name": "watched", "prefix": "three", "mode": "observe"},
]


@dataclass
class NotingOperator:
    """``fail_plan`` and ``fail`` are raised; ``during`` is called while an operation is being carried out."""

    executed: list[tuple[Operation, Actor, str, bool]] = field(default_factory=list)
    planned: list[Operation] = field(default_factory=list)
    fail_plan: Exception | None = None
    fail: Exception | None = None
    during: Callable[[], Any] | None = None
    nothing_to_do: bool = False

    async def plan(self, operation: Operation) -> Plan:
        self.planned.append(operation)
        if self.fail_plan is not None:
            raise self.fail_plan
        return Plan(operation, ("3 callbacks are in processing", "3 go back \ud800"), {"callbacks": 3}, {})

    async def execute(self, plan: Plan, *, actor: Actor, reason: str = "", dry_run: bool = False) -> Executed:
        self.executed.append((plan.operation, actor, reason, dry_run))
        if self.during is not None:
            await self.during()
        if self.fail is not None:
            raise self.fail
        return Executed({"callbacks": 3}, undo="17")


@dataclass
class ApiServing:
    served: Serving
    operator: NotingOperator

    def post(self, path: str, body: Any = None, *, token: str | None = TOKEN, **headers: str) -> Answer:
        """``path`` is ``queue/operation``; header names are written with underscores."""
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        headers.setdefault("Content_Type", "application/json")
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return self.served.ask(f"/api/v1/queues/{path}", "POST", content, **headers)


def problem(answer: Answer) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    told: dict[str, Any] = json.loads(answer.body)
    assert told["status"] == answer.status
    return told


def token_file(folder: Path) -> Path:
    path = folder / "tokens"
    path.write_text(f"# who may\n\nalice {TOKEN}\nbob {OTHER}\n")
    return path


@contextmanager
def api_serving(
    server: Server,
    tokens: Path | None,
    operator: NotingOperator | None = None,
    *,
    keep: float = KEEP,
    most: int = MOST,
    body_time: float = 10.0,
    config_file: Path | None = None,
) -> Iterator[ApiServing]:
    config = Config(web={"bearer_token_file": tokens}, queues=QUEUES)
    connections = Connections(server.url, shown_as="test")
    operator = operator or NotingOperator()
    answers = {queue.name: Answers(connections, keys_of(queue), keep=keep, most=most) for queue in config.queues}
    api = Api(config, operator, answers, body_time=body_time)
    with serving(FakeBackend(config=config), routes=[api], config_file=config_file) as served:
        try:
            yield ApiServing(served, operator)
        finally:
            served.run(connections.close())
