"""Regular expressions whose time grows with the text only, whatever the pattern and the text are.

They are for texts that others choose, such as the labels of alerts. Python's own expressions try one way after
the other, which can take years; these follow all ways at once, as those of Alertmanager do (RE2), and as there a
pattern must fit the whole text. The syntax is that of RE2 without what a whole label does not need:

    .  [a-z]  [^a-z]  \\d \\D \\s \\S \\w \\W  \\n \\t  \\. (any punctuation)
    ab  a|b  (a)  (?:a)  a*  a+  a?  a{2}  a{2,}  a{2,5}  and (?i) at the beginning
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

_MOST_STEPS = 1000  # of a compiled pattern
_MOST_REPEATS = 1000  # as in RE2
_DEEPEST = 50  # groups in groups
_MOST_MOVES = 10_000  # remembered
_END = -1  # the step after the last

_Ranges = tuple[tuple[str, str], ...]

_CLASSES: dict[str, _Ranges] = {
    "d": (("0", "9"),),
    "w": (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")),
    "s": (("\t", "\n"), ("\f", "\r"), (" ", " ")),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_REPEAT = re.compile(r"\{([0-9]{1,4})(,?)([0-9]{0,4})\}")


class BadPattern(ValueError):
    """What is wrong with a pattern, in words that follow ``it``."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Characters. ``parts`` are sets that belong to it too: ``[a\\D]``."""

    ranges: _Ranges
    negated: bool = False
    any_case: bool = False
    parts: tuple[_Set, ...] = ()

    def __contains__(self, char: str) -> bool:
        forms = {char, char.lower(), char.upper()} if self.any_case else {char}
        within = any(low <= form <= high for form in forms for low, high in self.ranges)
        return (within or any(char in part for part in self.parts)) is not self.negated

    def bounds(self) -> set[str]:
        """The ends of its ranges. Characters with the same ones below and at them are all in it, or none is."""
        return {end for ends in self.ranges for end in ends}.union(*(part.bounds() for part in self.parts))


@dataclass(frozen=True, slots=True)
class _Row:
    """One after the other."""

    nodes: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    nodes: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    least: int
    most: int | None  # None: without end


_Node = _Set | _Row | _Choice | _Repeat
_Kind = int | tuple[int, ...]


@dataclass(slots=True)
class _Step:
    """Takes a character of ``chars`` and goes on; without ``chars`` it goes on at once, every way."""

    chars: _Set | None
    then: list[int]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Raises BadPattern."""

    text: str
    _steps: list[_Step] = field(default_factory=list, repr=False)
    _moves: dict[tuple[frozenset[int], _Kind], frozenset[int]] = field(default_factory=dict, repr=False)
    _start: frozenset[int] = field(default=frozenset(), repr=False)
    _bounds: list[str] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        start = self._compile(_Reader(self.text).read(), _END)
        object.__setattr__(self, "_start", self._reached([start]))
        sets = {step.chars for step in self._steps if step.chars is not None}
        self._bounds.extend(sorted(set[str]().union(*(chars.bounds() for chars in sets))))

    def fits(self, text: str) -> bool:
        """Whether it fits all of ``text``."""
        at = self._start
        any_case = self.text.startswith("(?i)")
        for char in text:
            # Of a kind, not of a character: those of all the world's writing are more than can be remembered.
            kind = tuple(map(self._kind, (char, char.lower(), char.upper()))) if any_case else self._kind(char)
            after = self._moves.get((at, kind))
            if after is None:
                after = self._reached(
                    then for step in at if step != _END and char in self._chars(step) for then in self._steps[step].then
                )
                if len(self._moves) >= _MOST_MOVES:
                    self._moves.clear()
                self._moves[at, kind] = after
            if not after:
                return False
            at = after
        return _END in at

    def _kind(self, char: str) -> int:
        """The same for characters that no set of the pattern tells from each other."""
        at = bisect_left(self._bounds, char)
        return 2 * at + (at < len(self._bounds) and self._bounds[at] == char)

    def _chars(self, step: int) -> _Set:
        chars = self._steps[step].chars
        assert chars is not None
        return chars

    def _reached(self, steps: Iterable[int]) -> frozenset[int]:
        """The steps that take a character, and the end, as far as they are reached without taking any."""
        found, left, seen = set(), list(steps), set[int]()
        while left:
            step = left.pop()
            if step in seen:
                continue
            seen.add(step)
            if step == _END or self._steps[step].chars is not None:
                found.add(step)
            else:
                left += self._steps[step].then
        return frozenset(found)

    def _compile(self, node: _Node, then: int) -> int:
        """The step that ``node`` begins with, where ``then`` comes after it."""
        match node:
            case _Set():
                return self._add(node, [then])
            case _Row():
                for part in reversed(node.nodes):
                    then = self._compile(part, then)
                return then
            case _Choice():
                return self._add(None, [self._compile(part, then) for part in node.nodes])
            case _Repeat(part, least, most):
                start = then
                if most is None:
                    start = self._add(None, [then])
                    self._steps[start].then.append(self._compile(part, start))
                for _ in range((most or least) - least):
                    start = self._add(None, [self._compile(part, start), then])
                for _ in range(least):
                    start = self._compile(part, start)
                return start

    def _add(self, chars: _Set | None, then: list[int]) -> int:
        if len(self._steps) >= _MOST_STEPS:
            raise BadPattern("is too large")
        self._steps.append(_Step(chars, then))
        return len(self._steps) - 1


class _Reader:
    """Reads one pattern, from the left."""

    def __init__(self, text: str) -> None:
        self._any_case = text.startswith("(?i)")
        self._text = text[4:] if self._any_case else text
        self._at = 0
        self._depth = 0

    def read(self) -> _Node:
        node = self._choice()
        if self._at < len(self._text):
            raise BadPattern("has a ) too many")
        return node

    def _next(self, text: str) -> bool:
        """Whether ``text`` comes next; it is taken then."""
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _take(self, missing: str) -> str:
        if self._at >= len(self._text):
            raise BadPattern(missing)
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> _Node:
        ways = [self._row()]
        while self._next("|"):
            ways.append(self._row())
        return ways[0] if len(ways) == 1 else _Choice(tuple(ways))

    def _row(self) -> _Node:
        nodes: list[_Node] = []
        if self._depth == 0:
            self._next("^")  # it holds there anyway
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if (
                self._depth == 0
                and self._text[self._at] == "$"
                and self._text[self._at + 1 : self._at + 2] in ("", "|")
            ):
                self._at += 1  # it holds there anyway
                break
            nodes.append(self._repeated(self._atom()))
        return nodes[0] if len(nodes) == 1 else _Row(tuple(nodes))

    def _repeated(self, node: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return node
        self._next("?")  # rather little or rather much: the whole text fits or does not
        if self._bounds() is not None:
            raise BadPattern("repeats a repetition: put it in ( )")
        return _Repeat(node, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._next(sign):
                return bounds
        found = _REPEAT.match(self._text, self._at)
        if found is None or (found[3] and not found[2]):
            return None
        self._at = found.end()
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if max(least, most or 0) > _MOST_REPEATS or (most is not None and most < least):
            raise BadPattern(f"has a repetition {found[0]}, which must be from 0 to {_MOST_REPEATS} and rising")
        return least, most

    def _atom(self) -> _Node:
        char = self._take("ends too early")
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _Set((("\n", "\n"),), negated=True)
            case "\\":
                return self._escaped()
            case "*" | "+" | "?":
                raise BadPattern(f"has a {char} with nothing to repeat")
            case "^" | "$":
                raise BadPattern(
                    f"has a {char} inside: it always fits the whole label; for the sign itself write \\{char}"
                )
        return self._one(char)

    def _one(self, char: str) -> _Set:
        return _Set(((char, char),), any_case=self._any_case)

    def _group(self) -> _Node:
        if self._next("?") and not self._next(":"):
            raise BadPattern("has a (? that is not known here: only (?:...), and (?i) at the beginning")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadPattern(f"has more than {_DEEPEST} groups in each other")
        node = self._choice()
        self._depth -= 1
        if not self._next(")"):
            raise BadPattern("lacks a )")
        return node

    def _escaped(self) -> _Set:
        char = self._take("ends with a \\")
        if char.lower() in _CLASSES:
            return _Set(_CLASSES[char.lower()], negated=char.isupper())
        if char in _CONTROLS:
            return self._one(_CONTROLS[char])
        if char.isascii() and not char.isalnum():
            return self._one(char)
        raise BadPattern(f"has a \\{char}, which is not known here")

    def _class(self) -> _Set:
        negated = self._next("^")
        ranges: list[tuple[str, str]] = []
        parts: list[_Set] = []
        missing = "lacks a ]"
        first = True
        while first or not self._next("]"):
            if self._next("[:"):
                raise BadPattern("has a [: :] class, which is not known here")
            first = False
            low = self._member(self._take(missing))
            if isinstance(low, _Set):
                parts.append(low)
                continue
            high: str | _Set = low
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._member(self._take(missing))
            if isinstance(high, _Set) or high < low:
                raise BadPattern("has a range in [ ] that does not rise")
            ranges.append((low, high))
        return _Set(tuple(ranges), negated, self._any_case, tuple(parts))

    def _member(self, char: str) -> str | _Set:
        if char != "\\":
            return char
        escaped = self._escaped()
        return escaped.ranges[0][0] if len(escaped.ranges) == 1 and _is_one(escaped) else escaped


def _is_one(chars: _Set) -> bool:
    ((low, high),) = chars.ranges
    return low == high and not chars.negated
