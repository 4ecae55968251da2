"""From a claimed payload to the request that goes out, or the reason why it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cbq_exporter import item
from cbq_exporter.config import RequestConfig
from cbq_exporter.delivery import url
from cbq_exporter.model import Claimed, DeadReason


class Item(msgspec.Struct, frozen=True):
    """A callback that was read: the top level of its payload, each value as the bytes it was written in.

    ``queued_at`` is the producer's clock, epoch seconds, where the item says.
    """

    fields: dict[str, msgspec.Raw]
    target: url.Target
    queued_at: float | None


class Shaped(msgspec.Struct, frozen=True):
    """What is to be posted; ``headers`` are whole lines."""

    body: bytes
    headers: list[str]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why nothing can be posted; ``url`` is what the item gave, for people."""

    reason: DeadReason
    detail: str
    url: str = ""


def read(claimed: Claimed) -> Item | Unusable:
    try:
        fields = item.read(claimed.payload)
    except item.ItemError as error:
        return Unusable(error.reason, str(error))
    given = item.value(fields, "url")
    try:
        if given is None:
            raise ValueError("the item has no url")
        target = url.parse(given)
    except ValueError as error:
        return Unusable(DeadReason.INVALID_URL, str(error), given if isinstance(given, str) else "")
    return Item(fields, target, item.queued_at_of(fields))


class Shaper:
    """Makes requests as one ``request`` section says: ``data`` posts that field of the item, ``item`` all of it."""

    def __init__(self, request: RequestConfig, *, max_bytes: int) -> None:
        self._posts_data = request.body == "data"
        self._max_bytes = max_bytes
        given = {name.lower() for name in request.headers}
        self._headers = [f"{name}: {value}" for name, value in request.headers.items()]
        if "content-type" not in given:
            self._headers.append("content-type: application/json")
        self._sends_id = "webhook-id" not in given

    def shape(self, claimed: Claimed, read: Item) -> Shaped | Unusable:
        body = claimed.payload
        if self._posts_data:
            data = read.fields.get("data")
            if data is None:
                return Unusable(
                    DeadReason.NO_DATA,
                    "the item has no `data` to post; to post whole items set delivery.request to {body: item}",
                    read.target.url,
                )
            body = bytes(data)
        if len(body) > self._max_bytes:
            return Unusable(
                DeadReason.TOO_LARGE,
                f"the body has {len(body):,} bytes; delivery.max_request_bytes allows {self._max_bytes:,}",
                read.target.url,
            )
        headers = self._headers
        if self._sends_id:
            headers = [*headers, f"webhook-id: {webhook_id(claimed)}"]
        return Shaped(body, headers)


def webhook_id(claimed: Claimed) -> str:
    """The idempotency id: the same at each attempt, after each recovery and from each daemon."""
    return f"msg_{claimed.fingerprint}"
