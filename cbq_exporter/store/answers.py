"""Answers of the API that are kept, so that a request which comes again is not carried out again.

They are in the store, beside the queue, so that they survive a restart and are shared by all daemons. A place is
taken before a request is carried out: where the daemon dies in between, the place stays without an answer, and says
so until it expires.
"""

from __future__ import annotations

import secrets

import msgspec

from cbq_exporter.store.connections import Connections
from cbq_exporter.store.keys import QueueKeys
from cbq_exporter.store.times import ms

KEEP = 24 * 3600  # seconds
MOST = 10_000  # answers of one queue
_MOST_BODY = 64 * 1024  # bytes


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """``request`` tells one request from another; ``status`` is None until the answer is known.

    ``claim`` is different for each try to carry the request out.
    """

    request: str
    claim: str
    status: int | None = None
    body: str = ""


class TooManyAnswers(Exception):
    """No place is free; the oldest are given up by and by."""


_decode = msgspec.json.Decoder(Kept).decode


class Answers:
    """Those of one queue. Ids are of letters and digits. Every method raises StoreError."""

    def __init__(self, connections: Connections, keys: QueueKeys, *, keep: float = KEEP, most: int = MOST) -> None:
        self._connections = connections
        self._keys = keys
        self._keep_ms = max(1, ms(keep))
        self._most = most

    async def look(self, answer_id: str) -> Kept | None:
        kept = await self._connections.read("GET", self._keys.answer_of(answer_id))
        return None if kept is None else _read(kept)

    async def begin(self, answer_id: str, request: str) -> tuple[bool, Kept]:
        """Take the place: True and what was put there, or False and what is there already.

        Raises TooManyAnswers.
        """
        started = Kept(request=request, claim=secrets.token_hex(8))
        keys = [self._keys.answers, self._keys.answer_of(answer_id)]
        args = [answer_id, msgspec.json.encode(started), self._keep_ms, self._most]
        taken, *there = await self._connections.run_named("answer_begin", keys, args)
        if taken < 0:
            raise TooManyAnswers
        return (True, started) if taken else (False, _read(there[0]))

    async def end(self, answer_id: str, started: Kept, status: int, body: str) -> bool:
        """Put the answer in the place that ``begin`` took; says whether the place was still there."""
        if len(body) > _MOST_BODY:
            raise ValueError(f"an answer has {len(body)} bytes")
        ended = msgspec.structs.replace(started, status=status, body=body)
        args = [msgspec.json.encode(started), msgspec.json.encode(ended)]
        return bool(await self._connections.run_named("answer_end", [self._keys.answer_of(answer_id)], args))


def _read(kept: bytes) -> Kept:
    """What somebody else wrote there is nobody's answer: it differs from every request."""
    try:
        return _decode(kept)
    except ValueError:
        return Kept(request="", claim="")
