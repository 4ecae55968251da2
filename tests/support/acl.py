"""The users of docs/redis-acl.md, exactly as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import Server, major_version

_DOCUMENT = Path(__file__).parents[2] / "docs" / "redis-acl.md"


@contextmanager
def documented_user(server: Server, mode: str) -> Iterator[str]:
    """The URL with which the user for ``mode`` logs in; it exists while inside."""
    found = re.search(rf"^user (cbq-{mode}) (.+)$", _DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    rights = found[2]
    if major_version(server.kind) < 7:  # as the page says
        rights = rights.replace("%R~", "~")
    client: Any = server.client
    client.execute_command("ACL", "SETUSER", found[1], "reset", *rights.split())
    try:
        yield f"unix://{found[1]}:PASSWORD@{server.socket}"
    finally:
        client.execute_command("ACL", "DELUSER", found[1])
