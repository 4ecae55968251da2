"""taskiq on a Redis stream (acknowledged after the run, results off)."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import aiohttp
from payload import body
from taskiq import TaskiqEvents
from taskiq_redis import RedisStreamBroker

CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "64"))
URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json"}

broker = RedisStreamBroker(os.environ["BENCH_REDIS"])
http: dict[str, aiohttp.ClientSession] = {}


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def startup(_state: Any) -> None:
    http["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def shutdown(_state: Any) -> None:
    await http["session"].close()


@broker.task(task_name="send")
async def send(text: str) -> None:
    async with http["session"].post(URL, data=text.encode(), headers=HEADERS) as answer:
        answer.raise_for_status()


async def enqueue(count: int) -> None:
    await broker.startup()
    for first in range(0, count, 200):
        await asyncio.gather(*(send.kiq(body(number)) for number in range(first, min(first + 200, count))))
    await broker.shutdown()


if __name__ == "__main__" and sys.argv[1] == "enqueue":
    asyncio.run(enqueue(int(os.environ["BENCH_COUNT"])))
