"""What waits in retry, for operators. It walks in pages, so that the number of callbacks does not matter."""

from __future__ import annotations

from cbq_exporter.errors import CbqError
from cbq_exporter.model import WaitingRetry
from cbq_exporter.store.queue import Queue

PAGE = 500  # callbacks


async def soonest(
    queue: Queue, destination: str | None = None, *, offset: int = 0, limit: int = 50
) -> list[WaitingRetry]:
    """Up to ``limit`` callbacks after the first ``offset``, the soonest due first; of one ``destination``, or all."""
    if destination is None:
        return await queue.waiting_retries(await queue.retry_ids(offset=offset, count=limit))
    found: list[WaitingRetry] = []
    first = 0
    while len(found) < offset + limit and (ids := await queue.retry_ids(offset=first, count=PAGE)):
        found += [one for one in await queue.waiting_retries(ids) if one.destination == destination]
        first += len(ids)
    return found[offset : offset + limit]


async def one(queue: Queue, retry_id: str) -> WaitingRetry:
    """A callback with its payload; raises CbqError where none of that id waits."""
    found = await queue.waiting_retries([retry_id], with_payload=True)
    if not found:
        raise CbqError(f"nothing with the id {retry_id} waits in retry: retry list shows what does")
    return found[0]
