"""Real Prometheus and Alertmanager servers for tests, each with a folder and a free port of its own, ended by pid.

with Daemon(server.url) as daemon, Prometheus(scraping(daemon.url)) as prometheus:
    prometheus.wait_for("cbq_up == 1")
    assert prometheus.query("max by (queue) (cbq_queue_length)")
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.daemons import until
from tests.support.skips import skip_or_fail

_STARTUP = 60.0  # seconds


def program(name: str) -> str:
    """``prometheus``, ``promtool``, ``prometheus-alertmanager`` or ``amtool``; a stated skip where it is missing."""
    found = shutil.which(name)
    if found is None:
        skip_or_fail(f"the {name} program is needed")
    return found


def free_port() -> int:
    """For programs that cannot take port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scraping(*urls: str, job: str = "cbq-exporter", every: str = "1s", **more: Any) -> dict[str, Any]:
    """A configuration that scrapes the daemons at ``urls`` and evaluates as often; ``more``: rule_files, alerting."""
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [urlsplit(url).netloc for url in urls]}]}],
        **more,
    }


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant query. ``value`` is a number as Prometheus writes it."""

    labels: dict[str, str]
    value: float


class _Program:
    """A program that serves HTTP on one port. Use as a context manager: inside, it is ready."""

    name = ""

    def __init__(self, config: dict[str, Any]) -> None:
        self._program = program(self.name)
        self._config = config
        self.folder = Path(tempfile.mkdtemp(prefix=f"cbq-{self.name}-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _options(self) -> list[str]:
        raise NotImplementedError

    # --- start and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until it is ready; on another port, where somebody took the free one first."""
        (self.folder / "config.yml").write_text(json.dumps(self._config))
        for _ in range(3):
            self._port = free_port()
            self._launch()
            if until(self._is_ready_or_gone, _STARTUP, what=self.log) == "ready":
                return
            if "address already in use" not in self.log():
                break
        raise RuntimeError(f"{self.name} did not start: {self.log()}")

    def _launch(self) -> None:
        command = [self._program, f"--config.file={self.folder / 'config.yml'}", "--log.level=warn"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}", *self._options()]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )

    def _is_ready_or_gone(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            return "gone"
        try:
            return "ready" if self._request("GET", "/-/ready")[0] == 200 else ""
        except OSError:
            return ""

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _request(self, method: str, path: str, body: str | None = None, kind: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


class Prometheus(_Program):
    """``config`` is that of ``prometheus.yml``."""

    name = "prometheus"

    def _options(self) -> list[str]:
        return [f"--storage.tsdb.path={self.folder / 'data'}"]

    # --- asking it ---------------------------------------------------------------------------

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """The series of an instant query, now or at epoch seconds; ValueError says what is wrong with it."""
        parameters = {"query": expression} if at is None else {"query": expression, "time": repr(at)}
        data = self._ask("/api/v1/query", parameters)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of a range query as the API gives them: ``metric`` and ``values``."""
        parameters = {"query": expression, "start": repr(start), "end": repr(end), "step": repr(step)}
        found: list[dict[str, Any]] = self._ask("/api/v1/query_range", parameters)["result"]
        return found

    def wait_for(self, expression: str, timeout: float = 30.0) -> list[Sample]:
        """Its series, once there is one."""
        return until(lambda: self.query(expression), timeout, what=f"no series for {expression}")

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {one.labels["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as the API shows it, its health and last error included."""
        return [rule for group in self._ask("/api/v1/rules", {})["groups"] for rule in group["rules"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Those that wait or fire, as the API shows them: labels and annotations filled in."""
        found: list[dict[str, Any]] = self._ask("/api/v1/alerts", {})["alerts"]
        return found

    def _ask(self, path: str, parameters: dict[str, str]) -> Any:
        body = urllib.parse.urlencode(parameters)
        status, text = self._request("POST" if body else "GET", path, body, "application/x-www-form-urlencoded")
        answer = json.loads(text)
        if answer["status"] != "success":
            raise ValueError(f"{status} {answer.get('error')}: {parameters}")
        return answer["data"]


class Alertmanager(_Program):
    """``config`` is that of ``alertmanager.yml``."""

    name = "prometheus-alertmanager"

    def _options(self) -> list[str]:
        return [f"--storage.path={self.folder / 'data'}", "--cluster.listen-address="]

    def post(self, *alerts: dict[str, str]) -> None:
        """Let alerts fire that have these labels."""
        status, text = self._request(
            "POST", "/api/v2/alerts", json.dumps([{"labels": labels} for labels in alerts]), "application/json"
        )
        assert status == 200, text

    def alerts(self) -> list[dict[str, Any]]:
        """All alerts as the API shows them: ``labels``, ``status`` with ``inhibitedBy`` and ``silencedBy``."""
        found: list[dict[str, Any]] = json.loads(self._request("GET", "/api/v2/alerts")[1])
        return found
