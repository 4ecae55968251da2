"""One callback as the existing producers write it, checked before anything is sent.

The bytes are those of Python's ``json.dumps`` with its defaults. That is part of the format where the existing workers
run: to acknowledge, they read an item, write it with ``json.dumps`` and remove that text from processing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from cbq_exporter import item
from cbq_exporter.delivery.url import parse
from cbq_exporter.errors import InvalidCallback

MAX_BYTES = 8 * 1024 * 1024  # the default of delivery.max_request_bytes


def write(
    url: str,
    data: Any,
    fields: Mapping[str, Any],
    *,
    default: Callable[[Any], Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """``fields`` are added to those that every item has, or take their place; ``default`` is that of ``json.dumps``.

    Raises InvalidCallback for what no receiver could be sent.
    """
    try:
        parse(url)
    except ValueError as error:
        raise InvalidCallback(str(error)) from None
    content = {"url": url, "task_id": str(uuid.uuid4()), "status": "success", "data": data}
    content |= {"created_at": None, "_queued_at": time.time(), **fields}
    try:
        payload = json.dumps(content, allow_nan=False, default=default).encode("ascii")
        item.read(payload)
    except item.ItemError as error:
        raise InvalidCallback(str(error)) from None
    except RecursionError:
        raise InvalidCallback(f"nested deeper than {item.MAX_DEPTH} levels") from None
    except (TypeError, ValueError) as error:
        raise InvalidCallback(f"it cannot be written as JSON: {error}") from error
    if len(payload) > max_bytes:
        raise InvalidCallback(
            f"the callback has {len(payload):,} bytes, more than the {max_bytes:,} of max_bytes "
            "(in a configuration: delivery.max_request_bytes): send a link instead of the data"
        )
    return payload
