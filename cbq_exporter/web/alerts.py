"""Alertmanager's webhook: ``POST /api/v1/alerts``.

Nothing is read before it is known who asks. Whatever was understood is answered with 200, also where nothing comes of
it, because any other answer makes Alertmanager send it again or give up; a store that is away is answered with 503,
so that it comes again. Field names of the answer are an interface: they only ever grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta

from cbq_exporter.errors import CbqError
from cbq_exporter.model import AlertOutcome
from cbq_exporter.policy.alerts import Alert
from cbq_exporter.services import alert_body
from cbq_exporter.services.alert_body import BadAlerts
from cbq_exporter.services.alert_responder import Received
from cbq_exporter.web import auth, expect, problems
from cbq_exporter.web.api import problem_of
from cbq_exporter.web.auth import Tokens
from cbq_exporter.web.content import BODY_TIME, read_json
from cbq_exporter.web.problems import Code, ProblemError
from cbq_exporter.web.status import text

PATH = "/api/v1/alerts"

# A group of more is a storm, out of which nothing should be done by itself; max_alerts of Alertmanager keeps its first
# ones. An alert has 1 to 2 KiB as Alertmanager sends it, with the annotations of the shipped rules.
MOST_ALERTS = 1000
MOST_BODY = MOST_ALERTS * 4 * 1024  # bytes

_MOST_DETAIL = 300  # characters


class Responder(Protocol):
    """What is needed of ``services.alert_responder.AlertResponder``."""

    async def receive(self, alerts: Sequence[Alert]) -> list[Received]: ...


class AlertAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One alert, in the order of the request."""

    fingerprint: Annotated[str, Meta(description="As it was sent.")]
    outcome: Annotated[AlertOutcome, Meta(description="What becomes of it.")]
    route: Annotated[str, Meta(description="Where the route that fits stands in the configuration; empty: none fits.")]
    detail: Annotated[str, Meta(description="One line for people.")]


class AlertsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of each alert."""

    alerts: Annotated[tuple[AlertAnswer, ...], Meta(description="One for each alert of the request.")]


class AlertWebhook:
    """Without ``tokens`` (a file) every request is refused. ``count`` is told of each request that is refused as a
    whole, ``count_truncated`` how many alerts Alertmanager left out. A body may take ``body_time`` seconds.
    """

    def __init__(
        self,
        tokens: Path | None,
        responder: Responder,
        *,
        count: Callable[[AlertOutcome], None],
        count_truncated: Callable[[int], None],
        body_time: float = BODY_TIME,
    ) -> None:
        self._count = count
        self._count_truncated = count_truncated
        self._body_time = body_time
        self.reconfigure(tokens, responder)

    def reconfigure(self, tokens: Path | None, responder: Responder) -> None:
        """From the next request on."""
        self._responder = responder
        self._tokens = None if tokens is None else Tokens(tokens, auth.OF_ALERTS)
        if self._tokens is not None:
            self._tokens.check()

    def add_to(self, app: web.Application) -> None:
        auth.ask_for_token(app, app.router.add_post(PATH, self._handle, expect_handler=expect.answer))

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            answer = await self._receive(request)
        except ProblemError as error:
            outcome = _OUTCOMES.get(error.code, AlertOutcome.INVALID)
            if outcome is not None:
                self._count(outcome)
            response = problems.response(error.status, error.body(), error.headers)
            if error.code in (Code.SLOW_BODY, Code.TOO_LARGE):
                response.force_close()
            return response
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json", charset="utf-8")

    async def _receive(self, request: web.Request) -> AlertsAnswer:
        if self._tokens is None:
            raise ProblemError(
                Code.NO_TOKEN_FILE,
                f"causing something needs authentication: name a file with a token in {auth.OF_ALERTS}",
            )
        self._tokens.name_of(request.headers.getall("Authorization", ()))
        content = await read_json(request, most=MOST_BODY, body_time=self._body_time, not_whole=Code.INVALID_ALERTS)
        try:
            body = alert_body.read(content)
        except BadAlerts as error:
            raise ProblemError(Code.INVALID_ALERTS, str(error)) from None
        if len(body.alerts) > MOST_ALERTS:
            raise ProblemError(
                Code.TOO_LARGE, f"there may be {MOST_ALERTS:,} alerts at most: set max_alerts of Alertmanager's webhook"
            )
        if body.truncated:
            self._count_truncated(body.truncated)
        try:
            received = await self._responder.receive(body.alerts)
        except CbqError as error:
            raise problem_of(error) from error
        return AlertsAnswer(alerts=tuple(_answer(one) for one in received))


# Those of the store were counted alert by alert.
_OUTCOMES: Mapping[Code, AlertOutcome | None] = {
    Code.UNAUTHORIZED: AlertOutcome.UNAUTHORIZED,
    Code.NO_TOKEN_FILE: AlertOutcome.UNAUTHORIZED,
    Code.TOKEN_FILE_UNUSABLE: AlertOutcome.FAILED,
    Code.STORE_UNAVAILABLE: None,
    Code.STORE_MISUSE: None,
}


def _answer(received: Received) -> AlertAnswer:
    return AlertAnswer(
        fingerprint=received.alert.fingerprint,
        outcome=received.outcome,
        route=received.place,
        detail=text(received.why, _MOST_DETAIL) or "",
    )
