"""The job every contestant gets: a JSON body of exactly 1 KiB, each with its own number."""

from __future__ import annotations

import json

SIZE = 1024


def data(number: int) -> dict[str, object]:
    """The callback's data; compact JSON of it is SIZE bytes long."""
    fields: dict[str, object] = {"id": number, "status": "success", "result": ""}
    padding = SIZE - len(json.dumps(fields, separators=(",", ":")))
    fields["result"] = ("lorem ipsum dolor sit amet " * (padding // 27 + 1))[:padding]
    return fields


def body(number: int) -> str:
    return json.dumps(data(number), separators=(",", ":"))
