"""Rules about what requests are made of and how they are signed, in queues and in destinations.

The first paragraph of each rule's docstring is its line in the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

from cbq_exporter.config.delivery import RequestConfig, SigningConfig
from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Finding, Place

_OF_SIGNATURES = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature"})


def refuse_signing_without_secrets(config: Config) -> Iterator[Finding]:
    """A `signing` with neither `secrets_file` nor `secrets_env`."""
    for place, _, signing in _places(config):
        if signing is not None and signing.secrets_file is None and signing.secrets_env is None:
            yield Finding((*place, "signing"), "no secrets", "must name secrets_file or secrets_env")


def refuse_headers_of_signatures(config: Config) -> Iterator[Finding]:
    """A `request.headers` with webhook-id, webhook-timestamp or webhook-signature beside a `signing`, which makes
    them; and any of the three in `request.item_headers`."""
    signs = any(signing is not None for _, _, signing in _places(config))
    for place, request, _ in _places(config):
        for name in request.headers if request is not None and signs else ():
            if name.lower() in _OF_SIGNATURES:
                yield Finding((*place, "request", "headers", name), "set", "must be left out: signing makes it")
        for position, name in enumerate(request.item_headers if request is not None else ()):
            if name.lower() in _OF_SIGNATURES:
                at: Place = (*place, "request", "item_headers", position)
                yield Finding(at, name.lower(), "must be left out: an item must not say it")


def _places(config: Config) -> Iterator[tuple[Place, RequestConfig | None, SigningConfig | None]]:
    for number, queue in enumerate(config.queues):
        yield ("queues", number, "delivery"), queue.delivery.request, queue.delivery.signing
    for number, entry in enumerate(config.destinations):
        yield ("destinations", number), entry.request, entry.signing
