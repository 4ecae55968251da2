"""What the user of ``redis.url`` may not do, found out without doing it.

Asked through a script that may not write, which any user can run who can run ours; ``ACL DRYRUN`` would need an
administrator. Servers before Redis 7 cannot be asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cbq_exporter.errors import StoreMisuse
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.scripts import load

_CALLED = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'")
_WITHOUT_A_KEY = {"TIME"}
_NO_SUCH_SCRIPT = "0" * 40


@dataclass(frozen=True, slots=True)
class Missing:
    """Commands that are allowed on no key of the queue, and keys on which no command is allowed."""

    commands: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys)


@cache
def commands_of_scripts() -> tuple[str, ...]:
    """Every command with a key that a script of ours runs."""
    folder = resources.files("cbq_exporter.store").joinpath("lua")
    texts = (file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".lua"))
    return tuple(sorted({name for text in texts for name in _CALLED.findall(text)} - _WITHOUT_A_KEY))


async def missing(connections: Connections, keys: Sequence[str], *, dispatch: bool) -> Missing | None:
    """What is lacking to change a queue with these keys; ``dispatch``: to send as well. None: it cannot be told.

    Raises StoreUnavailable.
    """
    lacking = [name for name, probe in _PROBES if await _refused(connections, *probe)]
    if lacking:
        return Missing(commands=tuple(lacking))
    commands = [*commands_of_scripts(), *(["BLMOVE"] if dispatch else [])]
    try:
        answer = await connections.read("EVAL", load("permissions").text, 0, len(keys), *keys, *commands)
    except StoreMisuse:
        return None  # an old server
    refused_commands, refused_keys = ([name.decode("utf-8", "replace") for name in part] for part in answer)
    return Missing(tuple(refused_commands), tuple(refused_keys))


# These do nothing: the one finds no script, the other is empty.
_PROBES: tuple[tuple[str, tuple[str | int, ...]], ...] = (
    ("EVALSHA", ("EVALSHA", _NO_SUCH_SCRIPT, 0)),
    ("EVAL", ("EVAL", "return 0", 0)),
)


async def _refused(connections: Connections, *command: str | int) -> bool:
    try:
        await connections.read(*command)
    except StoreMisuse as error:
        return error.kind == "permission"
    return False
