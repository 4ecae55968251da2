"""Who is at this process, for the audit."""

from __future__ import annotations

import os
import socket

from cbq_exporter.logs import printable
from cbq_exporter.model import Actor, Trigger

_LONGEST = 300  # characters


def person(user: str = "", *, by_way_of: str = "") -> Actor:
    """``user``, otherwise the one whose process this is, and the host; with who became root by sudo.

    ``by_way_of`` stands in front of it.
    """
    if not user:
        user = _user_name()
        before = os.environ.get("SUDO_USER", "")
        if before and before != user:
            user = f"{before} as {user}"
    name = f"{user}@{socket.gethostname()}"
    return Actor(Trigger.CLI, printable(f"{by_way_of} {name}" if by_way_of else name, _LONGEST))


def _user_name() -> str:
    """Of the process, not of the environment, which anybody can set."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
    except ImportError:  # on Windows
        return os.environ.get("USERNAME") or "somebody"
