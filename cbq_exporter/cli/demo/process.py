"""The daemon as a process of its own: started, killed, started again, and asked for its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import aiohttp

from cbq_exporter.cli import output
from cbq_exporter.errors import CbqError

_STARTS_WITHIN = 30.0  # seconds
_ENDS_WITHIN = 30.0
_ASKS_FOR = 1.0  # seconds that one request may take

_CONFIG = """\
data_dir: {data_dir}
web: {{listen_address: "127.0.0.1:{port}"}}
log: {{format: json}}
queues:
  - name: demo
    prefix: demo
    batch: {{size: 20, max_delay: 200ms}}
    delivery:
      timeout: 2s
      connect_timeout: 1s
      lease: 4s
      egress: {{allow: [127.0.0.0/8]}}  # the receivers are on this machine
      breaker: {{open_for: 1s, longest_open: 2s}}  # what is left alone must be found well before the demo ends
    # A receiver that is gone would be paused, and its callbacks would wait for a person: here they are dead letters.
    retry: {{max_attempts: 100, base: 1s, cap: 4s, statuses: {{"410": dead}}}}
    recovery: {{every: 1s, stuck_after: 10s}}
    lock: {{ttl: 4s}}
"""


class DaemonProcess:
    """Its configuration, data and log are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.config_file = folder / "config.yaml"
        self.data_dir = folder / "data"
        self._log_file = folder / "daemon.log"
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port: int = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.config_file.write_text(_CONFIG.format(data_dir=self.data_dir, port=port))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def left_its_store(self) -> bool:
        """It did not end in order, and nobody has taken its store over."""
        return self._process is not None and self.pid is None and self._process.returncode != 0

    async def start(self) -> None:
        """Returns when it is ready; raises CbqError with its last words where it does not get ready."""
        self._process = self._launch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STARTS_WITHIN):
                while self.pid is not None:
                    if await self._get("/-/ready") is not None:
                        return
                    await asyncio.sleep(0.05)
        last = self._log_file.read_text("utf-8", "replace").splitlines()[-1:]
        raise CbqError(f"the demo's daemon did not get ready: {''.join(last) or 'it said nothing'}")

    def _launch(self) -> subprocess.Popen[bytes]:
        # Not asyncio's subprocess: it complains where a signal meets a process that has just ended.
        with self._log_file.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "cbq_exporter", "serve", "-c", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the daemon
            )

    async def kill(self) -> None:
        """SIGKILL: it can do nothing about it."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        if not await self._end(signal.SIGTERM):
            output.say(f"the demo's daemon did not stop within {_ENDS_WITHIN:.0f} s and was killed: this is a bug")
            await self.kill()

    async def metrics(self) -> str | None:
        """The text of /metrics; None while nobody answers."""
        return await self._get("/metrics")

    async def _end(self, number: signal.Signals) -> bool:
        """Whether it ended in time."""
        process, give_up_at = self._process, time.monotonic() + _ENDS_WITHIN
        if process is None:
            return True
        process.send_signal(number)
        while process.poll() is None:
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _get(self, path: str) -> str | None:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_ASKS_FOR)) as session,
                session.get(self.url + path) as answer,
            ):
                return await answer.text() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            return None


class Totals:
    """Counters over several lives of the daemon: like Prometheus, it takes a smaller value for a new start."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}
        self._total: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, exposition: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if not sample.name.endswith("_total"):
                    continue
                key = (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())))
                before = self._last.get(key, 0.0)
                self._last[key] = sample.value
                self._total[key] += sample.value - before if sample.value >= before else sample.value

    def of(self, name: str) -> int:
        return round(sum(value for (one, _), value in self._total.items() if one == name))

    def by(self, name: str, label: str) -> dict[str, int]:
        """By the value of ``label``, the largest first; without zeros."""
        sums: defaultdict[str, float] = defaultdict(float)
        for (one, labels), value in self._total.items():
            for pair in labels.split(",") if one == name else ():
                key, _, text = pair.partition("=")
                if key == label:
                    sums[text] += value
        return {text: round(value) for text, value in sorted(sums.items(), key=lambda kv: -kv[1]) if value}
