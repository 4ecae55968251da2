"""How long `cbq-exporter status` takes, start-up of the process included, whatever waits in the queue.

python -m benchmarks.status [RUNS]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.servers import Server

_LENGTHS = (0, 100_000, 1_000_000)
_ITEM = json.dumps({"url": "https://client.example/hook", "data": {"n": 1}, "_queued_at": 1764000000.123}).encode()
_CHUNK = 10_000


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with Server("redis") as server, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"redis": {"url": server.url}, "queues": [{"name": "callbacks"}]}))
        command = [sys.executable, "-m", "cbq_exporter", "status", "-c", str(config)]
        there = 0
        for length in _LENGTHS:
            for _ in range(there, length, _CHUNK):
                server.client.rpush("callback_queue:pending", *[_ITEM] * _CHUNK)
            there = length
            took = sorted(_seconds(command) for _ in range(runs))
            print(
                f"{length:>9,} callbacks: median {1000 * statistics.median(took):.0f} ms, "
                f"fastest {1000 * took[0]:.0f} ms, slowest {1000 * took[-1]:.0f} ms"
            )


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
