"""From a claimed payload to the request that goes out, or the reason why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cbq_exporter import item
from cbq_exporter.delivery import url
from cbq_exporter.model import Claimed, DeadReason


class Shaped(msgspec.Struct, frozen=True):
    """What is to be posted. ``queued_at`` is the producer's clock, epoch seconds, where the item says."""

    target: url.Target
    body: bytes
    headers: list[str]
    queued_at: float | None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why nothing can be posted; ``url`` is what the item gave, for people."""

    reason: DeadReason
    detail: str
    url: str = ""


class Shaper:
    """``body`` is ``data`` (that field of the item) or ``item`` (all of it); both byte for byte."""

    def __init__(self, *, body: str, headers: dict[str, str], max_bytes: int) -> None:
        self._posts_data = body == "data"
        self._max_bytes = max_bytes
        given = {name.lower() for name in headers}
        self._headers = [f"{name}: {value}" for name, value in headers.items()]
        if "content-type" not in given:
            self._headers.append("content-type: application/json")
        self._sends_id = "webhook-id" not in given

    def shape(self, claimed: Claimed) -> Shaped | Unusable:
        try:
            top = item.read(claimed.payload)
        except item.ItemError as error:
            return Unusable(error.reason, str(error))
        given = item.value(top, "url")
        try:
            if given is None:
                raise ValueError("the item has no url")
            target = url.parse(given)
        except ValueError as error:
            return Unusable(DeadReason.INVALID_URL, str(error), given if isinstance(given, str) else "")
        body = claimed.payload
        if self._posts_data:
            data = top.get("data")
            if data is None:
                return Unusable(
                    DeadReason.NO_DATA,
                    "the item has no `data` to post; to post whole items set delivery.request to {body: item}",
                    target.url,
                )
            body = bytes(data)
        if len(body) > self._max_bytes:
            return Unusable(
                DeadReason.TOO_LARGE,
                f"the body has {len(body):,} bytes; delivery.max_request_bytes allows {self._max_bytes:,}",
                target.url,
            )
        headers = self._headers
        if self._sends_id:
            headers = [*headers, f"webhook-id: {webhook_id(claimed)}"]
        return Shaped(target, body, headers, item.queued_at_of(top))


def webhook_id(claimed: Claimed) -> str:
    """The idempotency id: the same at each attempt, after each recovery and from each daemon."""
    return f"msg_{claimed.fingerprint}"
