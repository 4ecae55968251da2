"""What docs/wire-format.md and docs/producers.md show is run, and what they say of keys and permissions is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cbq_exporter import item
from cbq_exporter.client import CallbackQueue
from cbq_exporter.delivery.url import parse
from cbq_exporter.store.keys_page import described
from tests.generated import ROOT
from tests.support.servers import Server
from tests.support.skips import skip_or_fail

WIRE_FORMAT = (ROOT / "docs" / "wire-format.md").read_text("utf-8")
PRODUCERS = (ROOT / "docs" / "producers.md").read_text("utf-8")
USUAL_URL = "redis://localhost:6379/0"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PROGRAMS = [*blocks(WIRE_FORMAT, "python"), *blocks(PRODUCERS, "python")]


def pushed(server: Server) -> list[dict[str, Any]]:
    """The items, each of which the daemon could send."""
    redis: Any = server.client
    found = redis.lrange("callback_queue:pending", 0, -1)
    for payload in found:
        parse(item.value(item.read(payload), "url"))
    return [json.loads(payload) for payload in found]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_python_programs(server: Server, program: str) -> None:
    assert USUAL_URL in program
    command = [sys.executable, "-W", "error", "-c", program.replace(USUAL_URL, server.url)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    items = pushed(server)
    assert items[0]["data"] == {"answer": 42}
    assert int(server.client.get("callback_queue:stats:queued") or 0) == len(items)
    assert server.client.ttl("callback_queue:stats:queued") > 86_000


def test_the_commands_of_redis_cli(server: Server, tmp_path: Path) -> None:
    program = shutil.which("redis-cli")
    if program is None:
        skip_or_fail("the redis-cli program is needed")
    here = tmp_path / "redis-cli"
    here.write_text(f'#!/bin/sh\nexec {program} -s {server.socket} "$@"\n')
    here.chmod(here.stat().st_mode | stat.S_IXUSR)
    (commands,) = blocks(WIRE_FORMAT, "sh")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-ec", commands], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1", "1", "1"], "")
    assert pushed(server)[0]["task_id"] == "7"


def test_the_example_is_an_item(server: Server) -> None:
    (example,) = blocks(WIRE_FORMAT, "json")
    with CallbackQueue(server.url) as callbacks:
        callbacks.push([example.encode()])
        written = json.loads(callbacks.write("https://example.com/callback", {}, prompt="a cat"))
    assert set(pushed(server)[0]) == set(written)


def test_the_keys_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| `(callback_queue:\S+)` \| ([a-z ]+) \|", WIRE_FORMAT, re.MULTILINE)
    assert rows == [(key.name, key.kind) for key in described()[: len(rows)]]
    assert len(rows) == 7


def test_a_producer_is_allowed_what_is_said(server: Server) -> None:
    redis: Any = server.client
    found = re.search(r"^user producer (.+)$", WIRE_FORMAT, re.MULTILINE)
    assert found is not None
    redis.execute_command("ACL", "SETUSER", "producer", "reset", *found[1].split())
    try:
        with CallbackQueue(f"unix://producer:PASSWORD@{server.socket}?db=0") as callbacks:
            callbacks.enqueue("https://example.com/callback", 1)
        for command in ("LPOP", "LLEN", "DEL"):
            said = redis.execute_command("ACL", "DRYRUN", "producer", command, "callback_queue:pending")
            assert b"no permissions" in said
    finally:
        redis.execute_command("ACL", "DELUSER", "producer")
