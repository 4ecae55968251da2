"""Standard streams as supervisors and full disks leave them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.daemons import until
from tests.support.servers import Server

URL = re.compile(r"http://127\.0\.0\.1:[0-9]+")
PROGRAM = (sys.executable, "-m", "cbq_exporter")


def redirected(how: str, *words: str) -> list[str]:
    return ["sh", "-c", f'exec "$0" "$@" {how}', *PROGRAM, *words]


@pytest.fixture
def config(server: Server, tmp_path: Path) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"redis": {"url": server.url}, "web": {"listen_address": "127.0.0.1:0"}}))
    return str(file)


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&-", "> /dev/full", "2> /dev/full"])
def test_a_daemon_serves_wherever_its_streams_lead(config: str, tmp_path: Path, how: str) -> None:
    said = tmp_path / "said"
    with said.open("wb") as out:
        daemon = subprocess.Popen(redirected(how, "serve", "-c", config), stdout=out, stderr=out)
    try:
        url = until(lambda: "".join(URL.findall(said.read_text())[:1]), 30, what=said.read_text)
        with urllib.request.urlopen(f"{url}/-/healthy", timeout=10) as answer:
            assert answer.status == 200
        daemon.terminate()
        assert daemon.wait(20) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_a_command_says_what_became_of_its_output(config: str) -> None:
    def status(how: str) -> tuple[int, list[str]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CBQ_")}
        command = redirected(how, "status", "-c", config)
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
        return done.returncode, done.stderr.splitlines()

    full = "the output cannot be written: No space left on device: make room, or send it elsewhere"
    assert status("> /dev/full") == (1, [f"cbq-exporter: {full}"])
    assert status(">&-") == (0, [])
    assert status("<&- 2>&-") == (0, [])
