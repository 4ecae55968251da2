"""dramatiq on Redis, results off."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from easy import post
from payload import body

broker = RedisBroker(url=os.environ["BENCH_REDIS"])
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def send(text: str) -> None:
    post(text)


if __name__ == "__main__" and sys.argv[1] == "enqueue":
    for number in range(int(os.environ["BENCH_COUNT"])):
        send.send(body(number))
