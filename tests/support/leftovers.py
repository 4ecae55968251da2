"""Processes that a test has left behind, found by the folder that all of them were given."""

from __future__ import annotations

from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked for in /proc")


def processes_of(folder: str) -> list[str]:
    """The command lines in which ``folder`` stands."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_text().replace("\0", " ")
        except OSError:
            continue
        if folder in command:
            found.append(command)
    return found
