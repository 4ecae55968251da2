"""How long `cbq-exporter status` and `--help` take, start-up of the process included, whatever waits in the queue.

python -m benchmarks.status [RUNS] [OTHER_CHECKOUT]

With the folder of another checkout, its commands and ours take turns, so that what else the machine does meets both;
the ratio is then worth more than the milliseconds.
"""

from __future__ import annotations

import compileall
import json
import os
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
_HERE = Path(__file__).parent.parent


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    checkouts = [_HERE, *(Path(folder).resolve() for folder in sys.argv[2:3])]
    for checkout in checkouts:
        # As an installer does: where PYTHONDONTWRITEBYTECODE is set, each run would compile what was edited since.
        compileall.compile_dir(checkout / "cbq_exporter", quiet=1)
    with Server("redis") as server, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"redis": {"url": server.url}, "queues": [{"name": "callbacks"}]}))
        _compare("--help", ["--help"], checkouts, runs)
        there = 0
        for length in _LENGTHS:
            for _ in range(there, length, _CHUNK):
                server.client.rpush("callback_queue:pending", *[_ITEM] * _CHUNK)
            there = length
            _compare(f"status, {length:,} callbacks", ["status", "-c", str(config)], checkouts, runs)


def _compare(what: str, arguments: list[str], checkouts: list[Path], runs: int) -> None:
    took: list[list[float]] = [[] for _ in checkouts]
    for _ in range(runs):
        for checkout, seconds in zip(checkouts, took, strict=True):
            seconds.append(_seconds(arguments, checkout))
    medians = [statistics.median(seconds) for seconds in took]
    print(f"{what:>27}: median {_ms(medians[0])}, fastest {_ms(min(took[0]))}, slowest {_ms(max(took[0]))}", end="")
    print(f"; the other {_ms(medians[1])}, ratio {medians[0] / medians[1]:.2f}" if len(medians) > 1 else "")


def _seconds(arguments: list[str], checkout: Path) -> float:
    # The folder that it runs in comes first among those where modules are looked for.
    command = [sys.executable, "-m", "cbq_exporter", *arguments]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=checkout, env={**os.environ, "CBQ_CONFIG": ""})
    return time.perf_counter() - began


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
