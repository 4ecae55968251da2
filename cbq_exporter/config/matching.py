"""Which URLs an entry of ``destinations`` is about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Glob:
    """``*`` stands for any characters, also for none. Upper and lower case differ."""

    text: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # What stands between two stars is looked for once, from the left (an atomic group): no text takes long.
        first, *others = self.text.split("*")
        pattern = re.escape(first)
        for piece in others[:-1]:
            pattern += f"(?>.*?{re.escape(piece)})"
        if others:
            pattern += f".*{re.escape(others[-1])}"
        return re.compile(pattern, re.DOTALL)

    def fits(self, text: str) -> bool:
        return self._pattern.fullmatch(text) is not None

    def covers(self, other: Glob) -> bool:
        """Whether this fits whatever ``other`` fits: a star is nothing that could be written out here."""
        return self.fits(other.text)


@dataclass(frozen=True, slots=True)
class Match:
    """``scheme`` and ``path`` are None where any will do.

    ``host`` has the port where it is not the scheme's own; ``path`` begins with a slash and includes the query. They
    are judged apart, so that no star of a host reaches into a path, which the sender of a callback chooses.
    """

    scheme: str | None
    host: Glob
    path: Glob | None

    @classmethod
    def read(cls, text: str) -> Match:
        """From a ``match`` of the configuration."""
        scheme, mark, rest = text.rpartition("://")
        if not mark:
            return cls(None, Glob(text), None)
        host, slash, path = rest.partition("/")
        return cls(scheme, Glob(host.removesuffix(_DEFAULT_PORTS[scheme])), Glob(f"/{path}") if slash else None)

    @property
    def is_of_host(self) -> bool:
        """Whether the host alone decides."""
        return self.scheme is None and self.path is None

    def fits(self, scheme: str, path: str) -> bool:
        """For a URL whose host fits."""
        return self.scheme in (None, scheme) and (self.path is None or self.path.fits(path))

    def covers(self, other: Match) -> bool:
        """Whether this fits every URL that ``other`` fits."""
        return (
            self.scheme in (None, other.scheme)
            and self.host.covers(other.host)
            and (self.path is None or self.path.covers(other.path or Glob("/*")))
        )
