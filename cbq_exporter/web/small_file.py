"""Files that are read while requests wait: small ones, and nothing that could keep the reader waiting."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read(path: Path, most: int) -> bytes:
    """Raises OSError or ValueError, the latter for more than ``most`` bytes. A pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes")
    return content


def why(error: OSError | ValueError) -> str:
    """In a few words, without the path."""
    return getattr(error, "strerror", None) or str(error)
