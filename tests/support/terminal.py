"""The program on a terminal of its own, as a person has it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.daemons import until

PROGRAM = (sys.executable, "-m", "cbq_exporter")


class Terminal:
    """Runs ``program`` with ``words`` in ``folder``; what it has shown so far is in ``shown``."""

    def __init__(self, folder: Path, *words: str, program: Sequence[str] = PROGRAM) -> None:
        self._ours, theirs = pty.openpty()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CBQ_")}
        self.process = subprocess.Popen(
            [*program, *words],
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self._read()

    def wait_until_it_reads(self) -> None:
        """It stands still, now that it has shown all that it was waited for."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Its exit code, with all that it shows read."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        self._read()
        os.close(self._ours)
        return self.process.wait(1)

    def _read(self) -> None:
        ready, _, _ = select.select([self._ours], [], [], 0.05)
        with contextlib.suppress(OSError):
            if ready:
                self.shown += os.read(self._ours, 4096).decode()


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C typed into it is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
