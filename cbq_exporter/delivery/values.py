"""What templates are given for one attempt. Each value is made once, so that all that a request says of it agrees."""

from __future__ import annotations

import secrets as chance
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from cbq_exporter.delivery.fields import JsonObject
from cbq_exporter.model import Claimed

_OF_BODIES = ("attempt", "item", "nonce", "now_iso", "now_ms", "secrets", "webhook_id")
OF_BODIES = frozenset(_OF_BODIES)
OF_HEADERS = frozenset((*_OF_BODIES, "body"))  # those are made last


class Values:
    """Only what is asked for is made. ``now`` is epoch seconds."""

    def __init__(
        self,
        claimed: Claimed,
        fields: dict[str, msgspec.Raw],
        webhook_id: str,
        now: float,
        secrets: Mapping[str, str],
    ) -> None:
        self._claimed = claimed
        self._fields = fields
        self.now = now
        self.webhook_id = webhook_id
        self._made: dict[str, Any] = {"webhook_id": webhook_id, "secrets": secrets, "now_ms": int(now * 1000)}

    def add(self, name: str, value: Any) -> None:
        self._made[name] = value

    def of(self, names: Collection[str]) -> dict[str, Any]:
        made = self._made
        for name in names:
            if name not in made:
                made[name] = self._make(name)
        return {name: made[name] for name in names}

    def _make(self, name: str) -> Any:
        if name == "item":
            return JsonObject(msgspec.Raw(self._claimed.payload), self._fields)
        if name == "nonce":
            return chance.token_hex(16)
        if name == "now_iso":
            return datetime.fromtimestamp(self.now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert name == "attempt"
        return {"number": self._claimed.attempts + 1, "first_at": self._claimed.first_claimed_ms / 1000}
