"""What ``/metrics`` says for a fixed state: ``python -m tests.metrics.golden`` writes the file that it is held to."""

from __future__ import annotations

from pathlib import Path

from cbq_exporter.metrics.exposition import PLAIN, Exposition
from tests.metrics.snapshots import MIXED, counted

FILE = Path(__file__).with_name("golden.prom")
_OTHERS = ("process_", "python_")  # the process's own: their values change with each run


def text() -> str:
    body = Exposition(counted()).body(MIXED, PLAIN)
    return "".join(line for line in body.decode().splitlines(keepends=True) if not _is_other(line))


def _is_other(line: str) -> bool:
    return line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(_OTHERS)


if __name__ == "__main__":
    FILE.write_text(text())
