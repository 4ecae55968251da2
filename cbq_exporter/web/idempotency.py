"""``Idempotency-Key``: a request that comes again gets its answer again, and is not carried out again.

A key belongs to one queue and to whoever sent it. What is kept is an answer that says how the operation ended, a
refusal included. A request that did not get as far as being carried out leaves nothing, so it can come again. One
whose outcome is not known (the store went away, the daemon died) is not carried out again by the same key.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence

from aiohttp import web

from cbq_exporter.errors import StoreError
from cbq_exporter.store.answers import Answers, Kept, TooManyAnswers
from cbq_exporter.web import problems
from cbq_exporter.web.problems import Code, ProblemError

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_KEY = re.compile(r"[\x20-\x7e]{1,200}")


def key_of(values: Sequence[str]) -> str | None:
    """From the values of all headers of that name. Raises ProblemError."""
    if not values:
        return None
    key = values[0].strip(" \t")
    if len(values) > 1 or not _KEY.fullmatch(key):
        raise ProblemError(Code.INVALID_KEY, f"{HEADER} must be there once, with 1 to 200 printable ASCII characters")
    return key


class Once:
    """One request and its place among the kept answers: ``look``, ``begin``, then ``end``, in this order.

    Without a key nothing is kept.
    """

    def __init__(self, answers: Answers, key: str | None, *, actor: str, request: bytes) -> None:
        self._answers = answers
        self._key = key
        self._id = _digest(actor.encode(), (key or "").encode())
        self._request = _digest(request)
        self._started: Kept | None = None

    async def look(self) -> web.Response | None:
        """The answer, where this request was carried out before. Raises ProblemError or StoreError."""
        if self._key is None:
            return None
        kept = await self._answers.look(self._id)
        return None if kept is None else self._again(kept)

    async def begin(self) -> web.Response | None:
        """Take the place; or the answer, where somebody else was faster. Raises ProblemError or StoreError."""
        if self._key is None:
            return None
        try:
            ours, kept = await self._answers.begin(self._id, self._request)
        except TooManyAnswers:
            raise ProblemError(Code.TOO_MANY_KEYS, f"too many answers are kept: leave out {HEADER}") from None
        if not ours:
            return self._again(kept)
        self._started = kept
        return None

    async def end(self, status: int, body: str) -> None:
        """Keep the answer. Where that fails it is given all the same: what was done is done."""
        if self._started is None:
            return
        try:
            await self._answers.end(self._id, self._started, status, body)
        except StoreError as error:
            log.warning("an answer of the API could not be kept: %s", error)

    def _again(self, kept: Kept) -> web.Response:
        if kept.request != self._request:
            raise ProblemError(Code.KEY_REUSED, f"this {HEADER} was sent before, with another request: take a new one")
        if kept.status is None:
            raise ProblemError(
                Code.KEY_IN_USE,
                f"the request with this {HEADER} is being carried out, or its outcome is not known: "
                "look at the audit before you try with another key",
            )
        return answer(kept.status, kept.body, {REPLAYED: "true"})


def answer(status: int, body: str, headers: dict[str, str] | None = None) -> web.Response:
    if status >= 400:
        return problems.response(status, body, headers)
    return web.Response(body=body.encode(), status=status, content_type="application/json", headers=headers)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
