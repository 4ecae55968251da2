"""Modules that are there, and are run only when they are asked for something: for commands that are to be quick.

It is for processes of one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_together: dict[str, tuple[str, ...]] = {}


class _Postponed(ModuleType):
    def __getattr__(self, name: str) -> Any:
        _run(_together[self.__name__])
        return getattr(self, name)


def postpone(*names: str, functions: Sequence[str] = ()) -> None:
    """Before anything imports them; what is imported already stays as it is. All are run when one is.

    A package stands before those in it; other modules in it can be imported meanwhile. To take one of ``functions``
    out of a module, without calling it, is not to ask for anything.
    """
    if any(name in sys.modules for name in names):
        return
    for name in names:
        spec = find_spec(name)
        assert spec is not None
        module = module_from_spec(spec)
        module.__class__ = _Postponed
        for function in functions:
            setattr(module, function, _forwarding(module, function))
        _together[name] = names
        sys.modules[name] = module
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, module)


def _run(names: Sequence[str]) -> None:
    modules = [sys.modules[name] for name in names]
    for module in modules:
        module.__class__ = ModuleType  # from here on what is missing is missing
    for module in reversed(modules):  # a package imports what is in it in its first lines
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)


def _forwarding(module: ModuleType, function: str) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        if isinstance(module, _Postponed):
            _run(_together[module.__name__])
        return getattr(module, function)(*args, **named)

    return call
