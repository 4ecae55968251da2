"""YAML text as plain values that know their lines.

Only what a configuration needs is read: one document of mappings, lists and the scalars of YAML 1.2 (``yes`` is a
text, ``010`` is no number). Tags and aliases are refused, so nothing is constructed and nothing can unfold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from cbq_exporter.config.places import Finding, Place

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32  # of lists and mappings within each other
MAX_VALUES = 50_000  # keys count as values

_LOADERS: tuple[Any, ...] = (getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader)

_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}")


class DocumentError(Exception):
    """The text cannot be read further than ``line`` (from 1, None where unknown); the message quotes no value."""

    def __init__(self, message: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Document:
    """``data`` is made of dicts with text keys, lists, str, int, float, bool and None.

    ``findings`` are errors that did not keep the rest from being read.
    """

    data: Any
    lines: Mapping[Place, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def line(self, place: Place) -> int | None:
        """The line of ``place`` or of the nearest thing around it that is written in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)


def read(content: bytes, *, loader: Any = _LOADERS[0]) -> Document:
    """Raises DocumentError. An empty text is an empty mapping."""
    if len(content) > MAX_BYTES:
        raise DocumentError(f"more than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError("bytes that are not UTF-8", 1 + content[: error.start].count(b"\n")) from None
    try:
        return _Reader(yaml.parse(text, Loader=loader)).document()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DocumentError(_without_quotes(error.problem), line) from None
    except (yaml.YAMLError, ValueError, OverflowError):  # the loader in Python lets some of its own through
        raise DocumentError("a character that YAML does not allow") from None


class _Reader:
    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._lines: dict[Place, int] = {}
        self._findings: list[Finding] = []
        self._values = 0

    def document(self) -> Document:
        data: Any = None
        seen = False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise DocumentError("a second document after ---", _line(event))
                seen = True
                data = self._value(next(self._events), ())
        return Document({} if data is None else data, self._lines, tuple(self._findings))

    def _value(self, event: Any, place: Place) -> Any:
        line = _line(event)
        self._lines.setdefault(place, line)  # a key's own line is there already
        self._values += 1
        if self._values > MAX_VALUES:
            raise DocumentError(f"more than {MAX_VALUES} values", line)
        if isinstance(event, yaml.AliasEvent):
            self._findings.append(Finding(place, "an alias (*)", "write the value out: aliases are not allowed"))
            return None
        if event.tag is not None:
            self._findings.append(Finding(place, "a tag (!)", "leave it out, or quote the text: tags are not allowed"))
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if len(place) >= MAX_DEPTH:
            raise DocumentError(f"more than {MAX_DEPTH} levels", line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(place)
        return self._mapping(place)

    def _list(self, place: Place) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*place, len(values))))
        return values

    def _mapping(self, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise DocumentError("a key that is not a plain text", line)
            key = _text(event)
            inner = (*place, key)
            if key in values:
                found = f"this key again in line {line}"
                self._findings.append(Finding(inner, found, "keep one of the two"))
            self._values += 1
            self._lines.setdefault(inner, line)
            values.setdefault(key, self._value(next(self._events), inner))
        return values


def _line(event: Any) -> int:
    number: int = event.start_mark.line
    return number + 1


def _text(event: Any) -> str:
    text: str = event.value
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DocumentError("half of a surrogate pair", _line(event))
    return text


def _scalar(event: Any) -> str | int | float | bool | None:
    text = _text(event)
    if not event.implicit[0]:  # quoted
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _without_quotes(problem: str | None) -> str:
    """The parser's complaint without pieces of the file; names of its own, such as '<scalar>', stay."""
    return re.sub(r"'(?!<)[^']{2,}'|\"[^\"]{2,}\"", "…", problem or "something that is not YAML")
