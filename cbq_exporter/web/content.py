"""The body of a request: of the right kind, not too large, and in time."""

from __future__ import annotations

import asyncio

from aiohttp import web

from cbq_exporter.phrases import size
from cbq_exporter.web.problems import Code, ProblemError

BODY_TIME = 10.0  # seconds for a request's body to arrive


async def read_json(request: web.Request, *, most: int, body_time: float, not_whole: Code = Code.INVALID_BODY) -> bytes:
    """``most`` in bytes, ``body_time`` in seconds; ``not_whole`` is what a body that breaks off is called.

    Raises ProblemError.
    """
    if (
        len(request.headers.getall("Content-Type", ())) != 1
        or request.content_type != "application/json"
        or (request.charset or "utf-8").lower() not in ("utf-8", "utf8")
        or request.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    ):
        raise ProblemError(Code.CONTENT_TYPE, "the body must be application/json in UTF-8, and not compressed")
    too_large = ProblemError(Code.TOO_LARGE, f"the body may have {size(most)} at most")
    if request.content_length is not None and request.content_length > most:
        raise too_large
    try:
        async with asyncio.timeout(body_time):
            return await request.clone(client_max_size=most).read()
    except TimeoutError:
        raise ProblemError(
            Code.SLOW_BODY, f"the body did not arrive within {body_time:g} s", headers={"Connection": "close"}
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except (web.RequestPayloadError, ConnectionError):
        raise ProblemError(not_whole, "the body did not arrive whole") from None
