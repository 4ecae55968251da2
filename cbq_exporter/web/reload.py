"""``POST /-/reload``: read the configuration again, as SIGHUP does, and say what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from cbq_exporter.config.changes import Changes
from cbq_exporter.errors import CbqError, ConfigError, NeedsRestart
from cbq_exporter.model import Actor
from cbq_exporter.web import auth, expect, problems
from cbq_exporter.web.api import Api
from cbq_exporter.web.problems import Code, ProblemError

PATH = "/-/reload"


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was different and is in effect now."""

    added: Annotated[tuple[str, ...], Meta(description="Queues that there were not before.")]
    removed: Annotated[tuple[str, ...], Meta(description="Queues that are not attended to any more.")]
    changed: Annotated[
        dict[str, tuple[str, ...]], Meta(description="Queues with other settings, and the paths of these in a queue.")
    ]
    settings: Annotated[tuple[str, ...], Meta(description="The paths of other settings.")]


class ReloadRoute:
    """For whoever may change something through ``api``."""

    def __init__(self, api: Api, reload: Callable[[Actor], Awaitable[Changes]]) -> None:
        """``reload`` raises CbqError where the old configuration goes on."""
        self._api = api
        self._reload = reload

    def add_to(self, app: web.Application) -> None:
        auth.ask_for_token(app, app.router.add_post(PATH, self._handle, expect_handler=expect.answer))

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            changes = await self._reload(self._api.actor_of(request))
        except ProblemError as error:
            return problems.response(error.status, error.body(), error.headers)
        except CbqError as error:
            refused = _refused(error)
            return problems.response(refused.status, refused.body())
        done = Reloaded(
            added=changes.added,
            removed=changes.removed,
            changed=dict(changes.changed),
            settings=changes.settings,
        )
        return web.Response(body=msgspec.json.encode(done), content_type="application/json", charset="utf-8")


def _refused(error: CbqError) -> ProblemError:
    if isinstance(error, NeedsRestart):
        detail = f"nothing was reloaded: restart to change {', '.join(error.paths)}"
        return ProblemError(Code.NEEDS_RESTART, detail, problems=_lines(error))
    if isinstance(error, ConfigError):
        return ProblemError(
            Code.CONFIG_REFUSED, "nothing was reloaded: the configuration is wrong", problems=_lines(error)
        )
    return ProblemError(Code.NOT_DONE, str(error))


def _lines(error: ConfigError) -> tuple[str, ...]:
    return tuple(str(problem) for problem in error.problems)
