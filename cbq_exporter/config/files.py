"""What the files and environment variables hold that a configuration names: templates and secrets.

They are read where their queue is made ready, and read again to see whether a reload finds something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from cbq_exporter.errors import CONFIGURATION, ConfigError, Problem

_MOST_BYTES = 1024 * 1024  # of one file
_ENVIRONMENT = "env:"
_SET_IT = "set it where cbq-exporter runs, or name a file instead"


class Files:
    """Those that were asked for, as they were then.

    With ``masked``, secrets are not read: their names stand in for them.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, masked: bool = False) -> None:
        self._environ = environ
        self.masked = masked
        self._held: dict[str, bytes] = {}  # digests, by source

    def text(self, source: str, place: str) -> str:
        """``source`` is a path, or ``env:NAME``; ``place`` is the setting that names it. Raises ConfigError."""
        try:
            content = self._read(source)
            text = content.decode()
        except UnicodeDecodeError:
            raise not_usable(source, place, "no UTF-8") from None
        except (OSError, ValueError) as error:
            raise not_usable(source, place, getattr(error, "strerror", None) or str(error)) from None
        self._held[source] = _digest(content)
        return text

    def secret(self, source: str, place: str, name: str) -> str:
        """Without the end of its line. Raises ConfigError, also for an empty one."""
        if self.masked:
            return f"***{name}***"
        text = self.text(source, place).rstrip("\r\n")
        if not text:
            raise not_usable(source, place, "nothing in it")
        return text

    def have_changed(self) -> bool:
        """Whether any of them holds something else now. One that cannot be read has changed."""
        try:
            return any(_digest(self._read(source)) != held for source, held in self._held.items())
        except (OSError, ValueError):
            return True

    def _read(self, source: str) -> bytes:
        if source.startswith(_ENVIRONMENT):
            name = source.removeprefix(_ENVIRONMENT)
            if name not in self._environ:
                raise ValueError("no value")
            return self._environ[name].encode("utf-8", "surrogateescape")
        path = Path(source)
        if not path.is_file():
            raise ValueError("no file there" if not path.exists() else "no regular file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        return content


def not_usable(source: str, place: str, why: str, allowed: str = "") -> ConfigError:
    """``allowed`` says what must be there; without it, that it must be readable."""
    if source.startswith(_ENVIRONMENT):
        found = f"{why} (environment variable {source.removeprefix(_ENVIRONMENT)})"
        return ConfigError((Problem(CONFIGURATION, place, found, allowed or _SET_IT),))
    return ConfigError((Problem(source, place, why, allowed or "must be a file that can be read"),))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
