"""arq: `send` is the job, `enqueue` the untimed filling of its queue."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, ClassVar

import aiohttp
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func, run_worker
from payload import body

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "64"))
URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json"}
SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_REDIS"])


async def send(ctx: dict[str, Any], text: str) -> None:
    async with ctx["http"].post(URL, data=text.encode(), headers=HEADERS) as answer:
        answer.raise_for_status()


async def startup(ctx: dict[str, Any]) -> None:
    ctx["http"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))


async def shutdown(ctx: dict[str, Any]) -> None:
    await ctx["http"].close()


class WorkerSettings:
    functions: ClassVar[list[Any]] = [func(send, keep_result=0)]
    redis_settings = SETTINGS
    on_startup = startup
    on_shutdown = shutdown
    max_jobs = CONCURRENCY
    # arq looks for jobs once per poll_delay; with its default (0.5 s) that pause would set the pace.
    poll_delay = 0.01
    queue_read_limit = CONCURRENCY * 5


async def enqueue(count: int) -> None:
    pool = await create_pool(SETTINGS)
    for first in range(0, count, 200):
        await asyncio.gather(
            *(pool.enqueue_job("send", body(number)) for number in range(first, min(first + 200, count)))
        )
    await pool.aclose()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if sys.argv[1] == "enqueue":
        asyncio.run(enqueue(int(os.environ["BENCH_COUNT"])))
    else:
        asyncio.set_event_loop(asyncio.new_event_loop())
        run_worker(WorkerSettings)  # type: ignore[arg-type]
