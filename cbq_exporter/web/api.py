"""The part of the API that changes something: ``POST /api/v1/queues/{queue}/{operation}``.

Nothing is looked at, let alone changed, before it is known who asks. What is done is done by ``services.operations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
from aiohttp import web

from cbq_exporter.config.models import Config
from cbq_exporter.errors import CbqError, PreconditionChanged, RefusedError, StoreError, StoreUnavailable
from cbq_exporter.model import Actor, Mode, Trigger
from cbq_exporter.services.operations import Executed, Operation, Plan
from cbq_exporter.store.answers import Answers
from cbq_exporter.web import auth, bodies, expect, idempotency, problems
from cbq_exporter.web.auth import Tokens
from cbq_exporter.web.bodies import ACTIONS, Action, Body, Outcome
from cbq_exporter.web.content import BODY_TIME, read_json
from cbq_exporter.web.idempotency import Once
from cbq_exporter.web.problems import Code, ProblemError
from cbq_exporter.web.status import text

MOST_BODY = 64 * 1024  # bytes of a request

_MOST_LINE = 1000  # characters of a line for people


class Operator(Protocol):
    """What is needed of ``services.operations.Operations``."""

    async def plan(self, operation: Operation) -> Plan: ...

    async def execute(self, plan: Plan, *, actor: Actor, reason: str = "", dry_run: bool = False) -> Executed: ...


@dataclass(frozen=True, slots=True)
class _Setup:
    """What one request is answered with. ``modes`` and ``answers`` by the queue's name."""

    modes: Mapping[str, Mode]
    operations: Operator
    answers: Mapping[str, Answers]


class Api:
    """``answers`` by the queue's name. Without ``web.bearer_token_file`` every request is refused."""

    def __init__(
        self,
        config: Config,
        operations: Operator,
        answers: Mapping[str, Answers],
        *,
        body_time: float = BODY_TIME,
    ) -> None:
        self._body_time = body_time
        self.reconfigure(config, operations, answers)

    def reconfigure(self, config: Config, operations: Operator, answers: Mapping[str, Answers]) -> None:
        """For requests from now on; those under way end as they began."""
        path = config.web.bearer_token_file
        self._tokens = None if path is None else Tokens(path)
        if self._tokens is not None:
            self._tokens.check()
        self._setup = _Setup({queue.name: queue.mode for queue in config.queues}, operations, answers)

    def add_to(self, app: web.Application) -> None:
        path = f"/api/v1/queues/{{queue}}/{{operation:{'|'.join(ACTIONS)}}}"
        auth.ask_for_token(app, app.router.add_post(path, self._handle, expect_handler=expect.answer))

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            return await self._act(request)
        except ProblemError as error:
            response = problems.response(error.status, error.body(), error.headers)
            if error.code in (Code.SLOW_BODY, Code.TOO_LARGE):
                response.force_close()
            return response

    async def _act(self, request: web.Request) -> web.Response:
        actor, setup = self.actor_of(request), self._setup
        action, queue = ACTIONS[request.match_info["operation"]], _queue(request, setup.modes)
        key = idempotency.key_of(request.headers.getall(idempotency.HEADER, ()))
        content = await read_json(request, most=MOST_BODY, body_time=self._body_time)
        body = bodies.read(action.body, content)
        once = Once(setup.answers[queue], key, actor=actor.name, request=_identity(action, body))
        try:
            if (before := await once.look()) is not None:
                return before
            plan = await setup.operations.plan(action.operation(queue, body))
            if (before := await once.begin()) is not None:
                return before
        except CbqError as error:
            raise problem_of(error) from error
        try:
            executed = await setup.operations.execute(plan, actor=actor, reason=body.reason, dry_run=body.dry_run)
        except CbqError as error:
            problem = problem_of(error)
            if not isinstance(error, StoreError):  # else it is not known how far it came
                await once.end(problem.status, problem.body())
            raise problem from error
        done = msgspec.json.encode(_outcome(action, queue, body, plan, executed)).decode()
        await once.end(200, done)
        return idempotency.answer(200, done)

    def actor_of(self, request: web.Request) -> Actor:
        """Who asks; raises ProblemError where that may not change anything."""
        if self._tokens is None:
            raise ProblemError(
                Code.NO_TOKEN_FILE,
                "changing something needs authentication: name a file with a token in web.bearer_token_file",
            )
        return Actor(Trigger.API, self._tokens.name_of(request.headers.getall("Authorization", ())))


def _queue(request: web.Request, modes: Mapping[str, Mode]) -> str:
    name = request.match_info["queue"]
    mode = modes.get(name)
    if mode is None:
        known = ", ".join(modes)
        raise ProblemError(Code.UNKNOWN_QUEUE, f"no queue of that name is configured: there is {known}")
    if mode is Mode.OBSERVE:
        raise ProblemError(Code.OBSERVED, f"the mode of queue {name} is observe: nothing of it is ever changed")
    return name


def _identity(action: Action, body: Body) -> bytes:
    """The same for two requests that ask for the same."""
    return action.name.encode() + b" " + msgspec.json.encode(body)


def _outcome(action: Action, queue: str, body: Body, plan: Plan, executed: Executed) -> Outcome:
    return Outcome(
        operation=action.name,
        queue=queue,
        dry_run=body.dry_run,
        nothing_to_do=plan.nothing_to_do,
        summary=tuple(text(line, _MOST_LINE) or "" for line in plan.summary),
        planned=dict(plan.counts),
        done={} if body.dry_run else dict(executed.counts),
        undo=executed.undo,
    )


def problem_of(error: CbqError) -> ProblemError:
    if isinstance(error, RefusedError):
        hint = "" if error.unless is None else f', or set "{error.unless}": true'
        return ProblemError(Code.REFUSED, f"{error}{hint}")
    if isinstance(error, PreconditionChanged):
        return ProblemError(Code.CHANGED, str(error))
    if isinstance(error, StoreUnavailable):
        return ProblemError(Code.STORE_UNAVAILABLE, str(error), headers={"Retry-After": str(problems.RETRY_AFTER)})
    return ProblemError(Code.STORE_MISUSE if isinstance(error, StoreError) else Code.NOT_DONE, str(error))
