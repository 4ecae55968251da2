"""From a claimed payload to the request that goes out, or the reason why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cbq_exporter import item
from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.config import RequestConfig
from cbq_exporter.config.files import Files
from cbq_exporter.delivery import url
from cbq_exporter.delivery.render_errors import OutputTooLarge, RenderError
from cbq_exporter.delivery.signing import Signer
from cbq_exporter.delivery.values import Values
from cbq_exporter.model import Claimed, DeadReason

if TYPE_CHECKING:
    from cbq_exporter.delivery.rendered import Rendering


class Item(msgspec.Struct, frozen=True, gc=False):
    """A callback that was read: the top level of its payload, each value as the bytes it was written in.

    ``queued_at`` is the producer's clock, epoch seconds, where the item says.
    """

    fields: dict[str, msgspec.Raw]
    target: url.Target
    queued_at: float | None


class Shaped(msgspec.Struct, frozen=True, gc=False):
    """What is to be posted; ``headers`` are whole lines, all but those ``headers_for`` it alone."""

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
    """Makes requests as one ``request`` section says, and signs them.

    ``data`` posts that field of the item, ``item`` all of it. The rest is rendered anew for each attempt: bodies of
    templates and renderers, headers that are templates, headers that the item may give. What is signed is what was
    made last.
    """

    def __init__(
        self,
        request: RequestConfig,
        *,
        max_bytes: int,
        signer: Signer | None = None,
        files: Files | None = None,
        place: str = "delivery.request",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``place`` is where the section stands. Raises ConfigError where a template, renderer or secret is no good."""
        self._max_bytes = max_bytes
        self._signer = signer
        self._clock = clock
        self._posts_data = request.body == "data"
        self.posts_what_was_read = isinstance(request.body, str)  # a part of the item, as it stands there
        templates = {name: value for name, value in request.headers.items() if "{{" in value or "{%" in value}
        self._rendering: Rendering | None = None
        if templates or request.item_headers or not isinstance(request.body, str):
            # Jinja2 takes time and memory: only where it is asked for.
            from cbq_exporter.delivery.rendered import rendering_of

            self._rendering = rendering_of(request, templates, files or Files(), place)
        given = {name.lower() for name in request.headers}
        self._headers = [f"{name}: {value}" for name, value in request.headers.items() if name not in templates]
        if "content-type" not in given:
            self._headers.append("content-type: application/json")
        self._sends_id = "webhook-id" not in given

    def shape(self, claimed: Claimed, read: Item) -> Shaped | Unusable:
        headers = self._headers
        body: bytes | None = claimed.payload
        if self._posts_data:
            data = read.fields.get("data")
            body = None if data is None else bytes(data)
        if self._rendering is not None:
            try:
                body, headers = self._render(self._rendering, claimed, read, body)
            except OutputTooLarge as error:
                return Unusable(DeadReason.TOO_LARGE, self._rendering.masked(str(error)), read.target.url)
            except RenderError as error:
                return Unusable(DeadReason.RENDER, self._rendering.masked(str(error)), read.target.url)
        if body is None:
            return Unusable(
                DeadReason.NO_DATA,
                "the item has no `data` to post; to post whole items set delivery.request to {body: item}",
                read.target.url,
            )
        if len(body) > self._max_bytes:
            return Unusable(
                DeadReason.TOO_LARGE,
                f"the body has {len(body):,} bytes; delivery.max_request_bytes allows {self._max_bytes:,}",
                read.target.url,
            )
        return Shaped(body, headers)

    def all_headers(self, claimed: Claimed, shaped: Shaped) -> list[str]:
        """Those of a request that goes now with this callback alone."""
        return shaped.headers + self.headers_for(webhook_id(claimed), shaped.body)

    def headers_for(self, request_id: str, body: bytes) -> list[str]:
        """Its idempotency id and its signatures."""
        headers = [f"webhook-id: {request_id}"] if self._sends_id else []
        if self._signer is not None:
            headers += self._signer.headers(request_id, int(self._clock.now()), body)
        return headers

    def _render(
        self, rendering: Rendering, claimed: Claimed, read: Item, body: bytes | None
    ) -> tuple[bytes | None, list[str]]:
        """Raises RenderError. Without a template or a renderer the body stays what it is."""
        values = Values(claimed, read.fields, webhook_id(claimed), self._clock.now(), rendering.secrets)
        own: Mapping[str, str] = {}
        if rendering.body is not None:
            body, own = rendering.body(claimed, read.target.url, values, self._max_bytes)
        return body, [] if body is None else rendering.headers(read.fields, body, values, self._headers, own)


def webhook_id(claimed: Claimed) -> str:
    """The idempotency id: the same at each attempt, after each recovery and from each daemon."""
    return f"msg_{claimed.fingerprint}"
