"""Which settings hold for a URL: those of the first entry of ``destinations`` that fits it, else the queue's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cbq_exporter.clock import SYSTEM_CLOCK, Clock
from cbq_exporter.config import (
    BreakerConfig,
    CoalesceConfig,
    DeliveryConfig,
    DestinationConfig,
    QueueConfig,
    RequestConfig,
    SigningConfig,
    TlsConfig,
)
from cbq_exporter.config.files import Files
from cbq_exporter.config.matching import Match
from cbq_exporter.delivery.exchange import Certificates
from cbq_exporter.delivery.shaping import Shaper
from cbq_exporter.delivery.signing import Signer, signer_of
from cbq_exporter.delivery.url import Target
from cbq_exporter.policy.retry import RetryRule

_REMEMBERED = 20_000  # hosts, and URLs where hosts do not decide
_LONGEST_REMEMBERED = 256  # characters of a URL: there may be one a callback
_AFTER_HOST = re.compile(r"[/?#]")
_FIRST_PLACES = 4  # at least, while a destination has not answered; or:
_FIRST_PART = 8  # an eighth of its concurrency
_ANY = Match.read("*")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Receiver:
    """What holds for a callback. ``name`` is the entry's, or the host where there is none.

    ``concurrency`` is not above that of the queue: more would wait where nobody sees that they wait. ``places``: see
    ``Request``.
    ``first_concurrency`` holds until it answers. Times are seconds, ``rate`` is requests a second, ``bandwidth`` bits a
    second, ``gzip_from`` bytes.
    """

    name: str
    paused: bool
    concurrency: int
    first_concurrency: int
    rate: float | None
    bandwidth: float | None
    timeout: float
    connect_timeout: float
    shaper: Shaper
    gzip_from: int | None
    retry: RetryRule
    signer: Signer | None
    breaker: BreakerConfig | None
    coalesce: CoalesceConfig | None
    tls: Certificates | None
    places: int


class Receivers:
    """Of one queue."""

    def __init__(
        self,
        queue: QueueConfig,
        destinations: Sequence[DestinationConfig],
        *,
        files: Files | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Raises ConfigError where a template, a renderer or a secret cannot be used."""
        making = _Making(queue.delivery, files or Files(), clock)
        self._usual = _usual(queue, making)
        self._entries = [(Match.read(entry.match), _own(entry, self._usual, making)) for entry in destinations]
        self._by_host: dict[str, Receiver] = {}  # where the host decides
        self._candidates: dict[str, list[tuple[Match, Receiver]]] = {}  # where it does not: what may hold, by host
        self._by_url: dict[str, Receiver] = {}  # then

    @property
    def largest_bundle(self) -> int:
        """The most callbacks in one request; 1 where none go together."""
        all_of_them = [self._usual, *(receiver for _, receiver in self._entries)]
        return max(1 if one.coalesce is None else one.coalesce.size for one in all_of_them)

    def of(self, target: Target) -> Receiver:
        known = self._by_host.get(target.destination)
        if known is None:
            known = self._by_url.get(target.url)
        return known if known is not None else self._find(target)

    def _find(self, target: Target) -> Receiver:
        host = target.destination
        candidates = self._candidates.get(host)
        if candidates is None:
            candidates = [(match, receiver) for match, receiver in self._entries if match.host.fits(host)]
            if not candidates or candidates[0][0].is_of_host:
                return self._remember(self._by_host, host, candidates[0][1] if candidates else self._unnamed(host))
            candidates.append((_ANY, self._unnamed(host)))
            self._remember(self._candidates, host, candidates)
        path = _path(target)
        found = next(receiver for match, receiver in candidates if match.fits(target.scheme, path))
        if len(target.url) <= _LONGEST_REMEMBERED:
            self._remember(self._by_url, target.url, found)
        return found

    def _unnamed(self, host: str) -> Receiver:
        return replace(self._usual, name=host)

    @staticmethod
    def _remember(known: dict[str, T], key: str, what: T) -> T:
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = what
        return what


def _path(target: Target) -> str:
    """Path and query in one way of writing, without the fragment."""
    rest = _AFTER_HOST.search(target.url, target.url.index("://") + 3)
    path = target.url[rest.start() :].partition("#")[0] if rest else ""
    return path if path.startswith("/") else f"/{path}"


@dataclass(frozen=True, slots=True)
class _Making:
    """What makes the parts of receivers that files have a say in."""

    delivery: DeliveryConfig
    files: Files
    clock: Clock

    def signer(self, signing: SigningConfig | None, place: str) -> Signer | None:
        return None if signing is None else signer_of(signing, self.files, f"{place}.signing")

    def shaper(self, request: RequestConfig, signer: Signer | None, place: str) -> Shaper:
        return Shaper(
            request,
            max_bytes=self.delivery.max_request_bytes,
            signer=signer,
            files=self.files,
            place=f"{place}.request",
            clock=self.clock,
        )


def _usual(queue: QueueConfig, making: _Making) -> Receiver:
    """What holds where no entry fits."""
    delivery, again = queue.delivery, queue.retry
    place = f"queues[{queue.name}].delivery"
    concurrency = min(delivery.per_destination.concurrency, delivery.concurrency)
    signer = making.signer(delivery.signing, place)
    return Receiver(
        name="",
        paused=False,
        concurrency=concurrency,
        first_concurrency=_first(delivery.per_destination.first_concurrency, concurrency),
        rate=delivery.per_destination.rate,
        bandwidth=delivery.per_destination.bandwidth,
        timeout=delivery.timeout,
        connect_timeout=delivery.connect_timeout,
        shaper=making.shaper(delivery.request, signer, place),
        gzip_from=delivery.request.gzip_from,
        retry=RetryRule(
            again.max_attempts, again.max_age, again.base, again.cap, again.retry_after_cap, again.statuses
        ),
        signer=signer,
        breaker=delivery.breaker,
        coalesce=delivery.coalesce,
        tls=None,
        places=_places(concurrency, delivery),
    )


def _first(said: int | None, concurrency: int) -> int:
    return min(concurrency, max(_FIRST_PLACES, concurrency // _FIRST_PART) if said is None else said)


def _places(concurrency: int, delivery: DeliveryConfig) -> int:
    return 0 if concurrency >= delivery.concurrency else concurrency


def _own(entry: DestinationConfig, usual: Receiver, making: _Making) -> Receiver:
    again, request = entry.retry, _request(entry.request, making.delivery.request)
    place = f"destinations[{entry.name}]"
    signer = _either(making.signer(entry.signing, place), usual.signer)
    coalesce = _either(entry.coalesce, usual.coalesce)
    concurrency = min(_either(entry.concurrency, usual.concurrency), making.delivery.concurrency)
    differs = entry.request is not None or entry.signing is not None
    return Receiver(
        name=entry.name,
        paused=entry.paused,
        concurrency=concurrency,
        first_concurrency=_first(
            _either(entry.first_concurrency, making.delivery.per_destination.first_concurrency), concurrency
        ),
        rate=_either(entry.rate, usual.rate),
        bandwidth=_either(entry.bandwidth, usual.bandwidth),
        timeout=_either(entry.timeout, usual.timeout),
        connect_timeout=_either(entry.connect_timeout, usual.connect_timeout),
        shaper=making.shaper(request, signer, place) if differs else usual.shaper,
        gzip_from=request.gzip_from,
        retry=RetryRule(
            _either(again.max_attempts, usual.retry.max_attempts),
            _either(again.max_age, usual.retry.max_age),
            _either(again.base, usual.retry.base),
            _either(again.cap, usual.retry.cap),
            _either(again.retry_after_cap, usual.retry.retry_after_cap),
            _statuses(again.statuses, usual.retry.statuses),
        ),
        signer=signer,
        breaker=_either(entry.breaker, usual.breaker),
        coalesce=coalesce,
        tls=_certificates(entry.tls),
        places=_places(concurrency, making.delivery),
    )


def _request(own: RequestConfig | None, usual: RequestConfig) -> RequestConfig:
    """``own`` where it says something; headers and secrets of both, each name once."""
    if own is None:
        return usual
    named = {name.lower() for name in own.headers}
    headers = {name: value for name, value in usual.headers.items() if name.lower() not in named} | own.headers
    said = {key: getattr(own, key) for key in own.model_fields_set}
    return usual.model_copy(update=said | {"headers": headers, "secrets": {**usual.secrets, **own.secrets}})


def _statuses(own: Mapping[str, str], usual: Mapping[str, str]) -> Mapping[str, str]:
    """A class in ``own`` goes before single statuses in ``usual``."""
    return {status: meaning for status, meaning in usual.items() if f"{status[0]}xx" not in own} | dict(own)


def _certificates(tls: TlsConfig | None) -> Certificates | None:
    if tls is None:
        return None
    return Certificates(*(str(path) if path else None for path in (tls.ca_file, tls.cert_file, tls.key_file)))


def _either(own: T | None, usual: T) -> T:
    return usual if own is None else own
