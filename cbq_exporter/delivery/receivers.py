"""Which settings hold for a URL: those of the first entry of ``destinations`` that fits it, else the queue's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cbq_exporter.config import (
    BreakerConfig,
    CoalesceConfig,
    DestinationConfig,
    QueueConfig,
    SigningConfig,
    TlsConfig,
)
from cbq_exporter.delivery.shaping import Shaper
from cbq_exporter.delivery.url import Target
from cbq_exporter.policy.retry import RetryRule

_REMEMBERED = 10_000  # URLs or hosts

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Receiver:
    """What holds for a callback. ``name`` is the entry's, or the host where there is none.

    Times are seconds, ``rate`` is requests a second, ``bandwidth`` bits a second.
    """

    name: str
    paused: bool
    concurrency: int
    rate: float | None
    bandwidth: float | None
    timeout: float
    connect_timeout: float
    shaper: Shaper
    retry: RetryRule
    signing: SigningConfig | None
    breaker: BreakerConfig | None
    coalesce: CoalesceConfig | None
    tls: TlsConfig | None


class Receivers:
    """Of one queue."""

    def __init__(self, queue: QueueConfig, destinations: Sequence[DestinationConfig]) -> None:
        self._usual = _usual(queue)
        self._entries = [
            (_fits(entry.match), _own(entry, self._usual, queue.delivery.max_request_bytes)) for entry in destinations
        ]
        self._by_url = any("://" in entry.match for entry in destinations)
        self._known: dict[str, Receiver] = {}

    def of(self, target: Target) -> Receiver:
        key = target.url if self._by_url else target.destination
        known = self._known.get(key)
        if known is not None:
            return known
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = found = self._find(target)
        return found

    def _find(self, target: Target) -> Receiver:
        whole = _whole(target)
        for (pattern, of_host), receiver in self._entries:
            if pattern.fullmatch(target.destination if of_host else whole):
                return receiver
        return replace(self._usual, name=target.destination)


def _whole(target: Target) -> str:
    """The URL in one way of writing: the port only where it is not the scheme's own, no fragment."""
    begin = target.url.index("://") + 3
    rest = re.search(r"[/?#]", target.url[begin:])
    path = target.url[begin + rest.start() :].partition("#")[0] if rest else ""
    return f"{target.scheme}://{target.destination}{path if path.startswith('/') else f'/{path}'}"


def _fits(match: str) -> tuple[re.Pattern[str], bool]:
    """The pattern, and whether it is about the host alone.

    What stands between two stars is looked for once, from the left (an atomic group): no URL takes long.
    """
    _, mark, rest = match.rpartition("://")
    of_host = not mark
    if mark and "/" not in rest:
        match = f"{match}/*"
    first, *others = match.split("*")
    pattern = re.escape(first)
    for piece in others[:-1]:
        pattern += f"(?>.*?{re.escape(piece)})"
    if others:
        pattern += f".*{re.escape(others[-1])}"
    return re.compile(pattern, re.DOTALL), of_host


def _usual(queue: QueueConfig) -> Receiver:
    """What holds where no entry fits."""
    delivery, again = queue.delivery, queue.retry
    return Receiver(
        name="",
        paused=False,
        concurrency=delivery.per_destination.concurrency,
        rate=delivery.per_destination.rate,
        bandwidth=delivery.per_destination.bandwidth,
        timeout=delivery.timeout,
        connect_timeout=delivery.connect_timeout,
        shaper=Shaper(delivery.request, max_bytes=delivery.max_request_bytes),
        retry=RetryRule(again.max_attempts, again.max_age, again.base, again.cap, again.retry_after_cap),
        signing=delivery.signing,
        breaker=delivery.breaker,
        coalesce=delivery.coalesce,
        tls=None,
    )


def _own(entry: DestinationConfig, usual: Receiver, max_bytes: int) -> Receiver:
    again = entry.retry
    return Receiver(
        name=entry.name,
        paused=entry.paused,
        concurrency=_either(entry.concurrency, usual.concurrency),
        rate=_either(entry.rate, usual.rate),
        bandwidth=_either(entry.bandwidth, usual.bandwidth),
        timeout=_either(entry.timeout, usual.timeout),
        connect_timeout=_either(entry.connect_timeout, usual.connect_timeout),
        shaper=usual.shaper if entry.request is None else Shaper(entry.request, max_bytes=max_bytes),
        retry=RetryRule(
            _either(again.max_attempts, usual.retry.max_attempts),
            _either(again.max_age, usual.retry.max_age),
            _either(again.base, usual.retry.base),
            _either(again.cap, usual.retry.cap),
            _either(again.retry_after_cap, usual.retry.retry_after_cap),
            again.statuses,
        ),
        signing=_either(entry.signing, usual.signing),
        breaker=_either(entry.breaker, usual.breaker),
        coalesce=_either(entry.coalesce, usual.coalesce),
        tls=entry.tls,
    )


def _either(own: T | None, usual: T) -> T:
    return usual if own is None else own
