"""The proxy that a queue's requests go through, and whose fault it is where none gets through.

It is asked to open a way (CONNECT) for http URLs too: so its own answers are told from the receiver's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cbq_exporter.errors import ConfigError, Problem
from cbq_exporter.model import FailureKind

if TYPE_CHECKING:  # the sending process does without
    from cbq_exporter.config import QueueConfig
    from cbq_exporter.config.files import Files

_MOST_CHARACTERS = 4096  # of the credentials

# How a proxy says that it could not reach the receiver, or that the receiver did not answer it in time.
_RECEIVER_UNREACHABLE = frozenset({502, 503, 504})


class Proxy(msgspec.Struct, frozen=True):
    """``user`` and ``password`` are empty where it asks for none; nothing shows them."""

    url: str
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"


def proxy_of(queue: QueueConfig, files: Files) -> Proxy | None:
    """With the credentials of its file; raises ConfigError where they cannot be read."""
    config = queue.delivery.proxy
    if config is None:
        return None
    if config.credentials_file is None:
        return Proxy(config.url)
    place = f"queues[{queue.name}].delivery.proxy.credentials_file"
    user, password = _credentials(str(config.credentials_file), place, files)
    return Proxy(config.url, user, password)


def refusal(answer: int) -> tuple[FailureKind, str]:
    """What it means that the proxy answered CONNECT with a status that is no success."""
    if answer in _RECEIVER_UNREACHABLE:
        return FailureKind.CONNECT, f"the proxy cannot reach it: HTTP {answer}"
    return FailureKind.LOCAL, f"the proxy refuses: HTTP {answer}"


def _credentials(source: str, place: str, files: Files) -> tuple[str, str]:
    line = files.text(source, place).strip("\r\n")
    user, colon, password = line.partition(":")
    if len(line) > _MOST_CHARACTERS or not (colon and user and line.isprintable()):
        problem = Problem(source, place, "no user:password in it", "must be a file of one line, user:password")
        raise ConfigError((problem,))
    return user, password
