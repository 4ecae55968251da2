"""Errors of the API as RFC 9457 has them: ``application/problem+json``.

``type`` is about:blank, so ``title`` is the status's own phrase; ``code`` is the word that programs look at, of a
closed set; ``detail`` is one line for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated

import msgspec
from aiohttp import web

from cbq_exporter.web.status import text

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER = 5  # seconds after which trying again makes sense, where the store is away
_MOST_DETAIL = 1000  # characters


class Code(StrEnum):
    """What went wrong. A closed set that only ever grows."""

    UNAUTHORIZED = "unauthorized"
    NO_TOKEN_FILE = "no_token_file"  # noqa: S105 (a word, no password)
    TOKEN_FILE_UNUSABLE = "token_file_unusable"  # noqa: S105
    OBSERVED = "observed"
    REFUSED = "refused"
    UNKNOWN_QUEUE = "unknown_queue"
    NOT_FOUND = "not_found"
    METHOD = "method"
    SLOW_BODY = "slow_body"
    CHANGED = "changed"
    NOT_DONE = "not_done"
    CONFIG_REFUSED = "config_refused"
    NEEDS_RESTART = "needs_restart"
    KEY_IN_USE = "key_in_use"
    TOO_LARGE = "too_large"
    CONTENT_TYPE = "content_type"
    INVALID_ALERTS = "invalid_alerts"
    INVALID_BODY = "invalid_body"
    INVALID_KEY = "invalid_key"
    KEY_REUSED = "key_reused"
    TOO_MANY_KEYS = "too_many_keys"
    STORE_UNAVAILABLE = "store_unavailable"
    STORE_MISUSE = "store_misuse"
    FAILED = "failed"
    HTTP = "http"


MEANINGS: Mapping[Code, tuple[int, str]] = {
    Code.INVALID_ALERTS: (400, "The body is not what Alertmanager sends: its webhook of version 4."),
    Code.UNAUTHORIZED: (401, "No token or no user where one is needed, a wrong one, or more than one `Authorization`."),
    Code.NO_TOKEN_FILE: (
        403,
        "`web.bearer_token_file` (for alerts `alerts.auth.bearer_token_file`) is not set: nothing is changed.",
    ),
    Code.OBSERVED: (403, "The queue's mode is observe: nothing of it is ever changed."),
    Code.REFUSED: (403, "A safety rule said no; `detail` says which, and what would be needed."),
    Code.UNKNOWN_QUEUE: (404, "No queue of that name is configured."),
    Code.NOT_FOUND: (404, "There is no such path."),
    Code.METHOD: (405, "Another method is needed; `Allow` names it."),
    Code.SLOW_BODY: (408, "The body did not arrive in time."),
    Code.CHANGED: (409, "What was planned no longer matched what was there: look again and decide anew."),
    Code.NOT_DONE: (409, "It cannot be done as things are; `detail` says why."),
    Code.CONFIG_REFUSED: (409, "The configuration is wrong; `problems` says all that is. The old one goes on."),
    Code.NEEDS_RESTART: (
        409,
        "The configuration is right, but what `problems` names only counts from a start on. The old one goes on.",
    ),
    Code.KEY_IN_USE: (
        409,
        "The request with this key is under way, or its outcome is unknown: look at the audit before trying another.",
    ),
    Code.TOO_LARGE: (413, "The body is larger than 64 KiB; of alerts, than 4,000 KiB or 1,000 of them."),
    Code.CONTENT_TYPE: (415, "The body must be `application/json`, not compressed."),
    Code.INVALID_BODY: (422, "The body is not what is needed; `field` names the member that is wrong."),
    Code.INVALID_KEY: (422, "`Idempotency-Key` must be there once at most, with 1 to 200 printable characters."),
    Code.KEY_REUSED: (422, "This `Idempotency-Key` was sent before, with another request."),
    Code.TOO_MANY_KEYS: (429, "Too many answers are kept for this queue: leave out `Idempotency-Key`, or wait."),
    Code.FAILED: (500, "An error of the daemon's own; it is in its log."),
    Code.STORE_MISUSE: (500, "The store refused for a reason that trying again will not change."),
    Code.STORE_UNAVAILABLE: (503, "The store cannot be used for now; `Retry-After` says when to try again."),
    Code.TOKEN_FILE_UNUSABLE: (503, "The token file cannot be used; the daemon's log says why."),
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error. ``field`` is there only where a member of the body is wrong, ``problems`` only where the
    configuration is.
    """

    type: str
    title: str
    status: int
    code: Code
    detail: Annotated[str, msgspec.Meta(description="One line for people.")]
    field: Annotated[str | None, msgspec.Meta(description="The member of the body that is wrong.")] = None
    problems: Annotated[
        tuple[str, ...] | None, msgspec.Meta(description="What is wrong with the configuration, a line each.")
    ] = None


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = headers or {}
        self.problems = problems

    @property
    def status(self) -> int:
        return MEANINGS[self.code][0]

    def body(self) -> str:
        return encode(self.status, self.code, self.detail, self.field, self.problems)


def encode(status: int, code: Code, detail: str, field: str | None = None, problems: Sequence[str] = ()) -> str:
    line = " ".join(detail.split())
    problem = Problem(
        type="about:blank",
        title=_phrase(status),
        status=status,
        code=code,
        detail=text(line, _MOST_DETAIL) or "",
        field=text(field),
        problems=tuple(text(" ".join(one.split()), _MOST_DETAIL) or "" for one in problems) or None,
    )
    return msgspec.json.encode(problem).decode()


def response(status: int, body: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """``body`` as ``encode`` made it."""
    return web.Response(body=body.encode(), status=status, content_type=CONTENT_TYPE, headers=headers)


def of_status(status: int, detail: str) -> web.Response:
    """What the server itself says, where no handler was reached."""
    code = next((code for code, (its, _) in MEANINGS.items() if its == status and code in _SERVERS_OWN), Code.HTTP)
    return response(status, encode(status, code, detail))


def refusal(request: web.Request, status: int, line: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """For programs where they ask, for people elsewhere."""
    if request.path.startswith(_API):
        refused = of_status(status, line)
    else:
        refused = web.Response(text=line + "\n", status=status)
    refused.headers.update(headers or {})
    return refused


_API = "/api/"
_SERVERS_OWN = frozenset({Code.UNAUTHORIZED, Code.NOT_FOUND, Code.METHOD, Code.TOO_LARGE, Code.FAILED})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
