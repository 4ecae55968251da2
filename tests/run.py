"""What ``make test`` runs: ``python -m tests.run [pytest's options and paths]``.

Without paths all tests run, in two groups side by side: those that mostly wait (for real daemons, servers and clocks),
several at a time, and beside them the others, one after the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
WAITING = ("tests/install", "tests/e2e", "tests/services", "tests/docs", "tests/django")  # the longest first
AT_A_TIME = "3"


def main(arguments: Sequence[str]) -> int:
    if any(not argument.startswith("-") for argument in arguments):
        return _start(arguments).wait()
    others = [f"--ignore={folder}" for folder in WAITING]
    with tempfile.TemporaryFile() as output:
        beside = _start(["-n", AT_A_TIME, "-o", "cache_dir=.pytest_cache/waiting", *WAITING, *arguments], output)
        try:
            first = _start([*others, *arguments]).wait()
            second = beside.wait()
        finally:
            beside.terminate()
        output.seek(0)
        sys.stdout.write(output.read().decode("utf-8", "replace"))
    return first or second


def _start(arguments: Sequence[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, stdout=output, stderr=output)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
