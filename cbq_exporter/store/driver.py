"""The driver's connections without the rest of it, for commands that are to be quick.

``import redis`` brings every command of every module of Redis, the clusters and the sentinels, each in two styles; of
all that this program uses the connections. That took a tenth of the time of ``status``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from cbq_exporter import postponed

_USED = ("redis.asyncio.connection", "redis.asyncio.retry", "redis.backoff", "redis.exceptions")


def import_connections() -> None:
    """Before anything else imports the driver; afterwards it does nothing.

    A version of the driver in which it does not work is imported whole.
    """
    if "redis" in sys.modules:
        return
    with contextlib.suppress(Exception):
        postponed.postpone("redis", "redis.asyncio")
        for name in _USED:
            importlib.import_module(name)
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        del sys.modules[name]
