"""The text of one scrape: what Redis says and what the daemon counted, in the format the scraper prefers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import exposition as plain
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from cbq_exporter.metrics.families import families
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.model import Snapshot

OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST
PLAIN = plain.CONTENT_TYPE_PLAIN_0_0_4


def render(instruments: Instruments, snapshot: Snapshot, accept: str | None) -> tuple[bytes, str]:
    """The body and its content type. ``accept`` is the request's header; any text at all is answered."""
    content_type = choose(accept)
    write = openmetrics.generate_latest if content_type == OPENMETRICS else plain.generate_latest
    return write(_Joined(snapshot, instruments.registry)), content_type


def choose(accept: str | None) -> str:
    """OpenMetrics 1.0.0 where it is asked for and not less wanted than plain text; else plain text.

    The client library's own choice repeats whatever version the header names, fails on one that is no number,
    and ignores the weights.
    """
    weights = {OPENMETRICS: 0.0, PLAIN: 0.0}
    for one in (accept or "").split(","):
        name, *parameters = (part.strip() for part in one.lower().split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        version = given.get("version", "").strip('"')
        if name == "application/openmetrics-text" and version in ("", "1.0.0"):
            weights[OPENMETRICS] = max(weights[OPENMETRICS], _weight(given))
        elif name == "text/plain" and version in ("", "0.0.4"):
            weights[PLAIN] = max(weights[PLAIN], _weight(given))
    return OPENMETRICS if weights[OPENMETRICS] and weights[OPENMETRICS] >= weights[PLAIN] else PLAIN


def _weight(parameters: dict[str, str]) -> float:
    """From 0 to 1; what cannot be read counts as not wanted."""
    try:
        weight = float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


@dataclass(frozen=True, slots=True)
class _Joined(Collector):
    """A registry for one scrape."""

    snapshot: Snapshot
    registry: CollectorRegistry

    def collect(self) -> Iterable[Metric]:
        yield from families(self.snapshot)
        yield from self.registry.collect()
