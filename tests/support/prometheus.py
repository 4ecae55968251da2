"""Real Prometheus servers for tests, each with a folder and a free port of its own, ended by pid.

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


class Prometheus:
    """Use as a context manager: inside, it is ready. ``config`` is that of ``prometheus.yml``."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._program = program("prometheus")
        self._config = config
        self.folder = Path(tempfile.mkdtemp(prefix="cbq-prometheus-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

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

    def _ask(self, path: str, parameters: dict[str, str]) -> Any:
        status, body = self._post(path, parameters) if parameters else self._get(path)
        answer = json.loads(body)
        if answer["status"] != "success":
            raise ValueError(f"{status} {answer.get('error')}: {parameters}")
        return answer["data"]

    def _get(self, path: str) -> tuple[int, str]:
        return self._request("GET", path)

    def _post(self, path: str, parameters: dict[str, str]) -> tuple[int, str]:
        return self._request("POST", path, urllib.parse.urlencode(parameters))

    def _request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    # --- start and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until it is ready; on another port, where somebody took the free one first."""
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps(self._config))
        for _ in range(3):
            self._port = free_port()
            self._launch(config)
            if until(self._is_ready_or_gone, _STARTUP, what=self.log) == "ready":
                return
            if "address already in use" not in self.log():
                break
        raise RuntimeError(f"Prometheus did not start: {self.log()}")

    def _launch(self, config: Path) -> None:
        command = [self._program, f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )

    def _is_ready_or_gone(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            return "gone"
        try:
            return "ready" if self._get("/-/ready")[0] == 200 else ""
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
