"""A command imports only the driver's connections; whoever wants more of the driver in its process still has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers import Server

LEAN = """
import asyncio, sys
from cbq_exporter.store import driver
driver.import_connections()
from cbq_exporter.store.connections import Connections
assert "redis.client" not in sys.modules
assert asyncio.run(Connections(sys.argv[1], shown_as="").read("PING")) == b"PONG"
assert "redis.client" not in sys.modules
"""
WHOLE = """
import redis, redis.asyncio
from cbq_exporter.store import connections
assert redis.Redis.from_url(sys.argv[1]).ping()
assert redis.asyncio.Redis and redis.asyncio.sentinel.Sentinel and redis.__version__
assert redis.exceptions.RedisError is connections.driver.RedisError is redis.RedisError
"""
ASKED = {
    "outer": "import redis; redis.Redis",
    "inner": "from redis.asyncio import Redis",
    "version": "redis.__version__",
}
UNFIT = """
import sys
from cbq_exporter.store import driver
sys.modules["redis.backoff"] = None  # as though this version had none
driver.import_connections()
"""


@pytest.mark.parametrize("first", ASKED.values(), ids=ASKED)
def test_the_rest_comes_when_it_is_asked_for(first: str, server: Server) -> None:
    _run(f"{LEAN}\nimport redis\n{first}\n{WHOLE}", server)


def test_a_driver_in_which_it_does_not_work_is_imported_whole(server: Server) -> None:
    _run(f"{UNFIT}\n{WHOLE}", server)


def _run(program: str, server: Server) -> None:
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", program, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
