"""The Lua scripts: one file a transition, read from the package, run by digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    text: str
    sha: str


@cache
def load(name: str) -> Script:
    """The script in ``lua/<name>.lua``."""
    text = resources.files("cbq_exporter.store").joinpath("lua", f"{name}.lua").read_text("utf-8")
    # The digest that EVALSHA wants; nothing is kept secret by it.
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
