"""The text of one scrape: what Redis says and what the daemon counted, in the format the scraper prefers."""

from __future__ import annotations

from itertools import chain

from prometheus_client import exposition as plain
from prometheus_client.openmetrics import exposition as openmetrics

from cbq_exporter.metrics.families import families
from cbq_exporter.metrics.instruments import Instruments
from cbq_exporter.metrics.lines import END, Lines
from cbq_exporter.model import Snapshot

OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST
PLAIN = plain.CONTENT_TYPE_PLAIN_0_0_4


_FEW = 1500  # lines
_PLAIN_RANGES = ("text/plain", "text/*", "*/*")


class Exposition:
    """Writes the scrapes of one daemon, and remembers what it wrote: most of it is the same the next time."""

    def __init__(self, instruments: Instruments) -> None:
        self._registry = instruments.registry
        self._lines = {OPENMETRICS: Lines(openmetrics.generate_latest), PLAIN: Lines(plain.generate_latest)}

    def is_quick(self, content_type: str) -> bool:
        """Whether ``body`` will take a fraction of a millisecond: it was written before, and is short."""
        return 0 < self._lines[content_type].count <= _FEW

    def body(self, snapshot: Snapshot, content_type: str) -> bytes:
        """``content_type`` is what ``choose`` gave. May be called from any thread."""
        text = self._lines[content_type].text(chain(families(snapshot), self._registry.collect()))
        return f"{text}{END if content_type == OPENMETRICS else ''}".encode()


def choose(accept: str | None) -> str:
    """OpenMetrics 1.0.0 where it is asked for and not less wanted than plain text; else plain text.

    The client library's own choice repeats whatever version the header names, fails on one that is no number,
    and ignores the weights.
    """
    wanted = 0.0  # OpenMetrics
    plain_by = [0.0, 0.0, 0.0]  # plain text; the most specific range that is there decides
    for one in (accept or "").split(","):
        name, *parameters = (part.strip() for part in one.lower().split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        version = given.get("version", "").strip('"')
        if name == "application/openmetrics-text" and version in ("", "1.0.0"):
            wanted = max(wanted, _weight(given))
        elif name in _PLAIN_RANGES and version in ("", "0.0.4"):
            place = _PLAIN_RANGES.index(name)
            plain_by[place] = max(plain_by[place], _weight(given))
    return OPENMETRICS if wanted and wanted >= next(filter(None, plain_by), 0.0) else PLAIN


def _weight(parameters: dict[str, str]) -> float:
    """From 0 to 1; what cannot be read counts as not wanted."""
    try:
        weight = float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0
