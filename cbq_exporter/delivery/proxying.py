"""The proxy that a queue's requests go through, and whose fault it is where none gets through.

It is asked to open a way (CONNECT) for http URLs too: so its own answers are told from the receiver's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cbq_exporter.errors import ConfigError, Problem
from cbq_exporter.model import FailureKind

if TYPE_CHECKING:  # the sending process does without
    from cbq_exporter.config import QueueConfig

_MOST_BYTES = 4096  # of the file with the credentials

# How a proxy says that it could not reach the receiver, or that the receiver did not answer it in time.
_RECEIVER_UNREACHABLE = frozenset({502, 503, 504})


class Proxy(msgspec.Struct, frozen=True):
    """``user`` and ``password`` are empty where it asks for none; nothing shows them."""

    url: str
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"


def proxy_of(queue: QueueConfig) -> Proxy | None:
    """With the credentials of its file; raises ConfigError where they cannot be read."""
    config = queue.delivery.proxy
    if config is None:
        return None
    if config.credentials_file is None:
        return Proxy(config.url)
    place = f"queues[{queue.name}].delivery.proxy.credentials_file"
    user, password = _credentials(config.credentials_file, place)
    return Proxy(config.url, user, password)


def refusal(answer: int) -> tuple[FailureKind, str]:
    """What it means that the proxy answered CONNECT with a status that is no success."""
    if answer in _RECEIVER_UNREACHABLE:
        return FailureKind.CONNECT, f"the proxy cannot reach it: HTTP {answer}"
    return FailureKind.LOCAL, f"the proxy refuses: HTTP {answer}"


def _credentials(path: Path, place: str) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode()
        user, colon, password = text.strip("\r\n").partition(":")
        if len(text) > _MOST_BYTES or not (colon and user and text.strip("\r\n").isprintable()):
            raise ValueError("no user:password in it")
    except (OSError, ValueError) as error:
        why = "no UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or str(error)
        problem = Problem(str(path), place, why, "must be a file of one line, user:password")
        raise ConfigError((problem,)) from None
    return user, password
