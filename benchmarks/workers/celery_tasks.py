"""Celery on Redis: acknowledged after the run, results off, everything optional off."""

from __future__ import annotations

import os
import sys

from celery import Celery
from easy import post
from payload import body

app = Celery("celery_tasks", broker=os.environ["BENCH_REDIS"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=4,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="send")
def send(text: str) -> None:
    post(text)


if __name__ == "__main__" and sys.argv[1] == "enqueue":
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for number in range(int(os.environ["BENCH_COUNT"])):
            send.apply_async((body(number),), producer=producer)
