"""Whether the disk below the embedded store has room: a server without any ends at the next change."""

from __future__ import annotations

import os
from pathlib import Path

from cbq_exporter.phrases import size

# Bytes. A change is written as a whole or not at all, and the largest common ones (4 MiB of callbacks that are
# enqueued at once) fail while there still is room for small ones.
FULL_BELOW = 8 * 1024 * 1024


def room(data_dir: Path) -> int | None:
    """Bytes that are free for this user; None where that cannot be found out."""
    try:
        about = os.statvfs(data_dir)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def why_full(data_dir: Path) -> str | None:
    """What to tell an operator; None where there is room."""
    free = room(data_dir)
    return None if free is None or free >= FULL_BELOW else full(data_dir, free)


def full(data_dir: Path, free: int | None = None) -> str:
    left = "" if free is None else f" ({size(free)} left)"
    return f"the disk of data_dir {data_dir} is full{left}: free some space, and it goes on by itself"
