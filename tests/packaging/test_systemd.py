"""Under systemd: what the daemon tells it, and the unit that is shipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbq_exporter.daemon.systemd import Notifier
from tests.support.daemons import Daemon, queue
from tests.support.servers import Server
from tests.support.skips import skip_or_fail

FOLDER = Path(__file__).resolve().parents[2] / "deploy/systemd"
UNIT = FOLDER / "cbq-exporter.service"

MOST_EXPOSED = 15  # tenths, by `systemd-analyze security`: up to here it calls a unit OK


class Manager:
    """The end of the socket at which systemd listens."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(30)
        self.told: list[str] = []

    def next(self, word: str) -> dict[str, str]:
        """The next message that begins with ``word``; pings in between are passed over."""
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline, f"{word} did not come"
            lines = self._socket.recv(4096).decode().splitlines()
            self.told.append(lines[0])
            if lines[0] == word:
                return dict(line.split("=", 1) for line in lines)
            assert lines[0] == "WATCHDOG=1", f"{lines} came before {word}"

    def waiting(self) -> list[str]:
        """The first lines of what has been told and was not read."""
        lines = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(self._socket.recv(4096).decode().partition("\n")[0])
        self._socket.settimeout(30)
        return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_it_tells_of_each_turn_of_its_life(manager: Manager, server: Server) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    daemon = Daemon(server.url, environment=environment)
    with daemon:
        assert manager.next("READY=1")["STATUS"].startswith("serves callbacks (dispatch); store: unix://")
        for _ in range(3):
            manager.next("WATCHDOG=1")

        daemon.configure(queue(), queue(name="more", prefix="more", mode="observe"))
        daemon.send_signal(signal.SIGHUP)
        assert int(manager.next("RELOADING=1")["MONOTONIC_USEC"]) > 0
        assert "callbacks (dispatch), more (observe)" in manager.next("READY=1")["STATUS"]

        daemon.config_file.write_text("queues: []")
        daemon.send_signal(signal.SIGHUP)
        manager.next("RELOADING=1")
        assert "callbacks (dispatch), more (observe)" in manager.next("READY=1")["STATUS"]  # the old one goes on

        daemon.send_signal(signal.SIGTERM)
        manager.next("STOPPING=1")
        assert daemon.wait() == 0


def test_a_daemon_with_troubles_is_not_called_alive(manager: Manager) -> None:
    troubles: list[str] = []

    async def scenario() -> None:
        notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000"})
        pinging = asyncio.create_task(notifier.ping(lambda: troubles))
        await asyncio.to_thread(manager.next, "WATCHDOG=1")
        troubles.append("the scheduler has run nothing for 60 s")
        await asyncio.sleep(0.01)
        manager.waiting()
        await asyncio.sleep(0.05)  # 50 pings
        assert manager.waiting() == []
        troubles.clear()
        await asyncio.to_thread(manager.next, "WATCHDOG=1")
        pinging.cancel()

    asyncio.run(scenario())


def test_nobody_is_told_where_nobody_asks(tmp_path: Path) -> None:
    asked = {"NOTIFY_SOCKET": f"@{tmp_path}", "WATCHDOG_USEC": "3000000"}
    assert Notifier(asked).ping_every == 1.0
    assert Notifier(asked | {"WATCHDOG_PID": str(os.getpid())}).ping_every == 1.0
    for other in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"NOTIFY_SOCKET": ""}):
        assert Notifier(asked | other).ping_every is None
    Notifier(asked).stopping()  # nobody listens there: logged, and no more
    Notifier({}).stopping()


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = _installed(tmp_path)
    done = subprocess.run([_analyze(), "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_unit_hardened(tmp_path: Path) -> None:
    command = [
        _analyze(),
        "security",
        "--offline=yes",
        f"--threshold={MOST_EXPOSED}",
        "--no-pager",
        _installed(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def _installed(folder: Path) -> str:
    """The unit as it would be where the program is that runs here."""
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("/opt/cbq-exporter/bin/cbq-exporter") == 1
    unit = folder / UNIT.name
    unit.write_text(text.replace("/opt/cbq-exporter/bin/cbq-exporter", sys.executable), encoding="utf-8")
    return str(unit)


def _analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        skip_or_fail("the systemd-analyze program is needed")
    return found
