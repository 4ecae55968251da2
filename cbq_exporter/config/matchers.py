"""Matchers of alerts, as Alertmanager has and writes them: ``severity!="info"``, ``queue=~"a|b"``.

A label that an alert does not have counts as empty. Patterns fit the whole value; see ``patterns`` for their syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cbq_exporter.config.kinds import Kind, Wrong

if TYPE_CHECKING:
    from cbq_exporter.config.patterns import Pattern

_LABEL = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
_LONGEST = 500  # characters of a value or a pattern
_MOST = 20  # matchers of one route
_WRITTEN = re.compile(
    rf"\s*({_LABEL})\s*(=~|!~|!=|=)\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\"'`{{}},\\=~!]*))\s*", re.DOTALL
)
_ESCAPES = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label. ``operator`` is =, !=, =~ or !~. Raises Wrong for a pattern that is none."""

    label: str
    operator: str
    value: str
    _pattern: Pattern | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        pattern = None
        if self.operator.endswith("~"):
            from cbq_exporter.config.patterns import BadPattern, Pattern  # only where one is written

            try:
                pattern = Pattern(self.value)
            except BadPattern as error:
                raise Wrong(f"the pattern of label {self.label} {error}") from None
        object.__setattr__(self, "_pattern", pattern)

    def fits(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.label, "")
        alike = value == self.value if self._pattern is None else self._pattern.fits(value)
        return alike is not self.operator.startswith("!")

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{self.label}{self.operator}"{escaped}"'


@dataclass(frozen=True, slots=True)
class Match:
    """All of its matchers must fit."""

    matchers: tuple[Matcher, ...]

    def fits(self, labels: Mapping[str, str]) -> bool:
        return all(matcher.fits(labels) for matcher in self.matchers)

    def __str__(self) -> str:
        return ", ".join(map(str, self.matchers))


def match() -> Kind:
    """A Match. One that fits an alert without any label fits nearly everything, and is refused."""

    def parse(value: object, written: bool) -> Match:
        if isinstance(value, Match):
            return value
        if isinstance(value, dict):
            matchers = [_equal(label, text) for label, text in value.items()]
        elif isinstance(value, list | tuple):
            matchers = [_read(text) for text in value]
        else:
            raise Wrong
        if not 1 <= len(matchers) <= _MOST:
            raise Wrong
        found = Match(tuple(matchers))
        if found.fits({}):
            raise Wrong("fits every alert that lacks these labels: add a label that the alert must have")
        return found

    return Kind(
        "labels and their values, such as {alertname: CbqStuckItems}, or a list of matchers as Alertmanager "
        """writes them, such as ['severity!="info"', 'queue=~"a|b"']""",
        parse,
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": f"^{_LABEL}$"},
                    "additionalProperties": {"type": "string", "maxLength": _LONGEST},
                    "minProperties": 1,
                    "maxProperties": _MOST,
                },
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": _MOST},
            ]
        },
        lambda value: [str(matcher) for matcher in value.matchers],
    )


def _equal(label: object, value: object) -> Matcher:
    if not isinstance(label, str) or not re.fullmatch(_LABEL, label):
        raise Wrong("a label's name must have letters, digits and _ only")
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise Wrong(
            f"the value of label {label} must be a text of {_LONGEST} characters at most (a number needs quotes)"
        )
    return Matcher(label, "=", value)


def _read(text: object) -> Matcher:
    found = _WRITTEN.fullmatch(text) if isinstance(text, str) and len(text) <= 2 * _LONGEST else None
    if found is None:
        raise Wrong('a matcher must be written like label="value", with =, !=, =~ or !~, one in each text')
    label, operator, quoted, bare = found.groups()
    value = bare if quoted is None else re.sub(r"\\.", lambda one: _unescaped(one[0]), quoted, flags=re.DOTALL)
    if len(value) > _LONGEST:
        raise Wrong(f"the value of label {label} must have {_LONGEST} characters at most")
    return Matcher(label, operator, value)


def _unescaped(pair: str) -> str:
    """As Alertmanager has it: an unknown pair stays as it is, so that patterns need not be escaped twice."""
    return _ESCAPES.get(pair, pair)
