"""Real daemons for tests: ``python -m cbq_exporter serve`` as a process of its own, ended by its pid.

with Daemon(server.url, queue(batch={"size": 10})) as daemon:
    server.client.rpush("callback_queue:pending", b"…")
    until(lambda: daemon.metrics().get("cbq_callbacks_delivered_total") == 1)
    assert daemon.stop() == 0
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")

# Everything that a test waits for comes quickly; the rest is as configured for newcomers.
_QUICK: dict[str, Any] = {
    "name": "callbacks",
    "batch": {"max_delay": "0s"},
    "delivery": {
        "egress": {"allow": ["127.0.0.0/8"]},
        "breaker": {"open_for": "100ms", "longest_open": "400ms"},
    },
    "retry": {"base": "50ms", "cap": "200ms"},
}

# A daemon that is killed or paused is found out after two seconds.
SHORT_LIVED: dict[str, Any] = {
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"every": "200ms", "max_recoveries": 1000},
    "lock": {"ttl": "1s"},
}

# One that does not answer gets all its places.
AT_ONCE: dict[str, Any] = {"delivery": {"per_destination": {"first_concurrency": 32}}}


def until(condition: Callable[[], T], timeout: float = 15.0, what: object = "") -> T:
    """Wait for ``condition`` to be true and return it; TimeoutError says ``what`` (called, where it can be)."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(str(what() if callable(what) else what) or f"still {value!r} after {timeout:g} s")
        time.sleep(0.01)


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """The later layer wins, key by key at every depth."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = whole.get(key)
            whole[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return whole


def queue(*layers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A queue's configuration: that of a newcomer, made quick, with ``layers`` and then ``settings`` over it."""
    return merged(_QUICK, *layers, settings)


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def get(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with these labels, whatever others they have; None where there is none."""
        found = [one.value for one in self._samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None


class Daemon:
    """Use as a context manager: inside, it runs and serves HTTP (it may not be ready yet).

    ``redis`` None is the embedded store. ``folder`` holds its configuration, its output and its data; a second
    daemon on the same folder would share them. ``before`` is a program that becomes the daemon, and its arguments.
    """

    def __init__(
        self,
        redis: str | None,
        *queues: dict[str, Any],
        folder: Path | None = None,
        grace: str = "5s",
        web: dict[str, Any] | None = None,
        alerts: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        destinations: Sequence[dict[str, Any]] = (),
        before: Sequence[str] = (),
    ) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="cbq-"))
        self.data_dir = self.folder / "data"
        self._config = {
            "redis": {"url": redis},
            "data_dir": str(self.data_dir),
            "web": merged({"listen_address": "127.0.0.1:0"}, web or {}),
            "log": {"level": "debug", "format": "json"},
            "shutdown": {"grace": grace},
            "queues": list(queues or [queue()]),
            "alerts": alerts or {},
            "destinations": list(destinations),
        }
        self._environment = environment or {}
        self._before = before
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    # --- start and end -----------------------------------------------------------------------

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    def configure(self, *queues: dict[str, Any], **sections: Any) -> None:
        """Write its file anew, in one step, with these queues (none: those before) and ``sections`` over the rest."""
        self._config = merged(self._config, sections, {"queues": list(queues)} if queues else {})
        fresh = self.folder / "config.yaml.new"
        fresh.write_text(json.dumps(self._config))
        fresh.replace(self.config_file)

    def launch(self) -> None:
        """Start the process and do not wait for it."""
        self.configure()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CBQ_")}
        environment |= self._environment
        command = [*self._before, sys.executable, "-m", "cbq_exporter", "serve", "-c", str(self.config_file)]
        with open(self.folder / "out", "wb") as out, open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=log
            )

    def start(self, timeout: float = 60.0) -> None:
        """Start, and wait until it serves HTTP."""
        self.launch()
        self.url = until(self._said_url, timeout, what=self.log)

    def _said_url(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self.process.returncode}: {self.log()}")
        said = re.search(r"Metrics: (https?://\S+)/metrics\n", (self.folder / "out").read_text())
        return said[1] if said else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self.send_signal(signal.SIGSTOP)
        until(lambda: self._state() == "T")

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code, once it has ended; negative where a signal ended it."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        self.send_signal(number)
        return self.wait(timeout)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running:
            self.resume()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(timeout=20)
            if self.is_running:
                self.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- looking at it -----------------------------------------------------------------------

    def get(self, path: str, timeout: float = 10.0, **headers: str) -> tuple[int, str]:
        """Status and body."""
        return self.ask("GET", path, timeout, **headers)

    def ask(self, method: str, path: str, timeout: float = 10.0, **headers: str) -> tuple[int, str]:
        """Status and body. Header names are written with underscores."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self, scrape_timeout: float = 5.0) -> Metrics:
        """A scrape by a Prometheus that waits so many seconds; it must be answered in that time, with 200."""
        status, text = self.get(
            "/metrics", timeout=scrape_timeout, X_Prometheus_Scrape_Timeout_Seconds=str(scrape_timeout)
        )
        assert status == 200, text
        return Metrics(text)

    def not_ready(self) -> list[str]:
        """The reasons that ``/-/ready`` gives; empty where it says ready."""
        status, text = self.get("/-/ready")
        return [] if status == 200 else text.splitlines()

    def wait_until_ready(self, timeout: float = 15.0) -> None:
        until(lambda: not self.not_ready(), timeout, what=self.not_ready)

    def wait_until_not_ready(self, saying: str, timeout: float = 15.0) -> str:
        """The first reason that contains ``saying``, in whatever case."""
        return until(
            lambda: next((reason for reason in self.not_ready() if saying.lower() in reason.lower()), ""),
            timeout,
            what=lambda: f"no reason with {saying!r}: {self.not_ready()}",
        )

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text()
        return ""

    def cpu_seconds(self) -> float:
        """Processor time used so far, by all of its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
