"""The driver's connections without the rest of it, for commands that are to be quick.

``import redis`` brings every command of every module of Redis, the clusters and the sentinels, each in two styles; of
all that this program uses the connections. That took a tenth of the time of ``status``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_PACKAGES = ("redis", "redis.asyncio")
_USED = ("redis.asyncio.connection", "redis.asyncio.retry", "redis.backoff", "redis.exceptions")


class _Postponed(ModuleType):
    """A package whose modules can be imported though it was not run. Both are run when either is asked for more."""

    def __getattr__(self, name: str) -> Any:
        packages = [sys.modules[package] for package in _PACKAGES]
        for package in packages:
            package.__class__ = ModuleType  # from here on what is missing is missing
        for package in reversed(packages):  # the first line of the outer one imports the inner one
            assert package.__spec__ is not None
            assert package.__spec__.loader is not None
            package.__spec__.loader.exec_module(package)
        return getattr(self, name)


def import_connections() -> None:
    """Before anything else imports the driver; afterwards it does nothing.

    It is for processes of one thread, and a version of the driver in which it does not work is imported whole.
    """
    if "redis" in sys.modules:
        return
    with contextlib.suppress(Exception):
        for name in _PACKAGES:
            _postpone(name)
        for name in _USED:
            importlib.import_module(name)
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        del sys.modules[name]


def _postpone(name: str) -> None:
    spec = find_spec(name)
    assert spec is not None
    package = module_from_spec(spec)
    package.__class__ = _Postponed
    sys.modules[name] = package
    holder, _, last = name.rpartition(".")
    if holder:
        setattr(sys.modules[holder], last, package)
