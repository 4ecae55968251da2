"""What a request renderer of yours is given, and what it returns.

    # delivery.request.body: {renderer: "partner.envelopes:render"}
    def render(callback: Callback, attempt: Attempt) -> Request:
        return Request(json.dumps({"id": callback.item["task_id"], "try": attempt.number}).encode())

It is called for each attempt, on the daemon's event loop: whatever it waits for, everything waits for. An exception
makes the callback a dead letter, with the exception's text as the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec


@dataclass(frozen=True)
class Callback:
    """``payload`` is the item, byte for byte; ``id`` is the same at each attempt, and goes out as webhook-id."""

    id: str
    url: str
    payload: bytes
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def item(self) -> Mapping[str, Any]:
        """The item, parsed."""
        parsed: Mapping[str, Any]
        try:
            parsed = msgspec.json.decode(self.payload)
        except msgspec.ValidationError:
            raise ValueError("a number of the item is out of range") from None
        except msgspec.DecodeError:
            parsed = json.loads(self.payload)  # the library refuses halves of surrogate pairs
        return parsed


@dataclass(frozen=True)
class Attempt:
    """``number`` counts from 1. ``first_at`` (when the callback was first taken) and ``now`` are epoch seconds."""

    number: int
    first_at: float
    now: float


@dataclass(frozen=True)
class Request:
    """``headers`` are added to the configured ones, and go before them."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
