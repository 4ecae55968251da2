"""How many files and sockets the process may have open, and how many of them for connections that wait."""

from __future__ import annotations

import contextlib

from cbq_exporter.config import Config, QueueConfig
from cbq_exporter.model import Mode

_OTHERS = 256  # the store's connections, scrapes, logs
_UNLIMITED = 1 << 30
_LIMIT_UNKNOWN = 512  # where the platform does not tell: what Windows allows


def raise_limit() -> int:
    """Raise the limit of open files as far as a process may by itself; returns what holds then.

    It is low by default for the sake of programs that use select(), which cannot see more than 1,024; this one
    does not use it.
    """
    try:
        import resource
    except ImportError:
        return _LIMIT_UNKNOWN
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit of its own, and does not say which
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            limit = most
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


def idle_connections(queue: QueueConfig, config: Config, limit: int) -> int:
    """How many connections without a request ``queue`` may keep: as configured, where its share of ``limit`` has room.

    Requests under way go first: without a socket they fail.
    """
    sending = sum(one.mode is Mode.DISPATCH for one in config.queues)
    share = (limit - _OTHERS) // max(1, sending)
    return max(0, min(queue.delivery.idle_connections, share - queue.delivery.concurrency))
