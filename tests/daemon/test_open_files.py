"""Connections that wait take their place among open files only where requests leave room."""

from __future__ import annotations

import resource
import subprocess
import sys

from cbq_exporter.config import Config, QueueConfig
from cbq_exporter.daemon.open_files import idle_connections


def room(limit: int, *queues: QueueConfig) -> list[int]:
    config = Config(queues=list(queues))
    return [idle_connections(queue, config, limit) for queue in config.queues]


def queue(name: str, mode: str = "dispatch", **delivery: int) -> QueueConfig:
    return QueueConfig.model_validate({"name": name, "prefix": name, "mode": mode, "delivery": delivery})


def test_each_queue_that_sends_has_its_share() -> None:
    one = queue("one", concurrency=100, idle_connections=400)
    assert room(10_000, one) == [400]
    assert room(656, one) == [300]
    assert room(300, one) == [0]  # requests need what there is
    other = queue("other", concurrency=50, idle_connections=1000)
    assert room(856, one, other, queue("watched", mode="observe"))[:2] == [200, 250]


def test_the_limit_is_raised_as_far_as_may_be() -> None:
    """In a process of its own: a limit that was lowered cannot always be raised again."""
    soft, hard = 128, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
    program = (
        "import resource\n"
        "from cbq_exporter.daemon import open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(open_files.raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.split() == [str(hard)] * 3
