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
    if (free is None or free >= FULL_BELOW) and not _lacks_inodes(data_dir):
        return None
    return full(data_dir)


def full(data_dir: Path) -> str:
    if _lacks_inodes(data_dir):
        return f"the disk of data_dir {data_dir} has no inode left: delete some files, and it goes on by itself"
    free = room(data_dir)
    left = "" if free is None else f" ({size(free)} left)"
    return f"the disk of data_dir {data_dir} is full{left}: free some space, and it goes on by itself"


def _lacks_inodes(data_dir: Path) -> bool:
    """No file can be made, whatever room there is; some file systems do not count them."""
    try:
        about = os.statvfs(data_dir)
    except OSError:
        return False
    return about.f_files > 0 and about.f_favail == 0
