"""What would be sent for an item, by the same steps as sending takes, and with no secret in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cbq_exporter import __version__
from cbq_exporter.clock import Clock
from cbq_exporter.config import DestinationConfig, QueueConfig
from cbq_exporter.config.files import Files
from cbq_exporter.delivery import shaping
from cbq_exporter.delivery.receivers import Receiver, Receivers
from cbq_exporter.delivery.shaping import Unusable
from cbq_exporter.model import Claimed

_SENSITIVE = re.compile(r"auth|cookie|credential|key|pass|secret|signature|token", re.IGNORECASE)
_MASK = "***"


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the destination. Times are seconds, ``rate`` is requests a second, ``bandwidth`` bits a second.

    ``match`` is that of the entry of ``destinations`` that applies; None where none does.
    """

    destination: str
    match: str | None
    paused: bool
    concurrency: int
    rate: float | None
    bandwidth: float | None
    timeout: float
    max_attempts: int
    signed: bool
    coalesced: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """Either ``url``, ``headers`` and ``body`` of a POST, or the ``reason`` and ``detail`` of a dead letter."""

    settings: Settings | None = None
    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    reason: str | None = None
    detail: str = ""


def preview(
    payload: bytes, queue: QueueConfig, destinations: Sequence[DestinationConfig], clock: Clock, attempt: int = 1
) -> Preview:
    """Secrets are not read: their names stand in for them. Raises ConfigError for a template that cannot be used."""
    now_ms = int(clock.now() * 1000)
    claimed = Claimed("", hashlib.sha1(payload, usedforsecurity=False).hexdigest(), payload, attempt - 1, 0, now_ms)
    receivers = Receivers(queue, destinations, files=Files(masked=True), clock=clock)
    read = shaping.read(claimed)
    if isinstance(read, Unusable):
        return Preview(reason=read.reason, detail=read.detail)
    receiver = receivers.of(read.target)
    settings = _settings(receiver, destinations)
    shaped = receiver.shaper.shape(claimed, read)
    if isinstance(shaped, Unusable):
        return Preview(settings, read.target.url, reason=shaped.reason, detail=shaped.detail)
    user_agent = queue.delivery.user_agent or f"cbq-exporter/{__version__}"
    headers = receiver.shaper.all_headers(claimed, shaped)
    compressed = receiver.gzip_from is not None and len(shaped.body) >= receiver.gzip_from
    return Preview(settings, read.target.url, _headers(user_agent, headers, compressed), shaped.body)


def _settings(receiver: Receiver, destinations: Sequence[DestinationConfig]) -> Settings:
    return Settings(
        destination=receiver.name,
        match=next((one.match for one in destinations if one.name == receiver.name), None),
        paused=receiver.paused,
        concurrency=receiver.concurrency,
        rate=receiver.rate,
        bandwidth=receiver.bandwidth,
        timeout=receiver.timeout,
        max_attempts=receiver.retry.max_attempts,
        signed=receiver.signer is not None,
        coalesced=receiver.coalesce is not None,
    )


def _headers(user_agent: str, lines: Sequence[str], compressed: bool) -> tuple[tuple[str, str], ...]:
    """All but those that say where the body goes and how long it is; the sender's own where no others are given."""
    given = {line.partition(":")[0].lower() for line in lines}
    own = {"user-agent": user_agent, "accept": "*/*"}
    made = [(name, value) for name, value in own.items() if name not in given]
    for line in lines:
        name, _, value = line.partition(": ")
        made.append((name, _masked(name, value)))
    if compressed and "content-encoding" not in given:
        made.append(("content-encoding", "gzip"))
    return tuple(made)


def _masked(name: str, value: str) -> str:
    if name.lower() == "webhook-signature":
        return f"v1,{_MASK}"
    if _MASK in value or not _SENSITIVE.search(name):
        return value
    return _MASK
