"""The wire format of one callback, as producers write it: a JSON object with at least a ``url``.

Reading never changes a byte: the values of the top level are slices of the payload, so that what is posted
is what the producer wrote, numbers of any length included.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import msgspec

from cbq_exporter.model import DeadReason

MAX_DEPTH = 64  # of arrays and objects within each other
_FEW = 6  # of one kind in one item

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_SPACES = re.compile(r"[ \t\n\r]*")
_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # or a whole one
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_read_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_any = msgspec.json.Decoder().decode
_read_number = msgspec.json.Decoder(float).decode


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value")


_read_value = json.JSONDecoder(parse_int=float, parse_float=float, parse_constant=_refuse).raw_decode


class ItemError(ValueError):
    """The payload is no callback; ``reason`` says which rule it breaks, the text is one line for people."""

    def __init__(self, reason: DeadReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def read(payload: bytes) -> dict[str, msgspec.Raw]:
    """The top level, each value as the bytes it was written in; raises ItemError.

    Refused: what is no JSON by RFC 8259 (NaN, trailing commas …) or no UTF-8, what is not an object, a key
    given twice (which of the two is meant?), and nesting deeper than MAX_DEPTH.
    """
    if not payload.isascii():  # the library takes the bytes of strings on trust
        try:
            str(payload, "utf-8")
        except UnicodeDecodeError as error:
            raise ItemError(DeadReason.INVALID_JSON, f"not UTF-8 at byte {error.start}") from None
    try:
        top = _read_top(payload)
    except msgspec.ValidationError:
        raise ItemError(DeadReason.INVALID_ITEM, "JSON, but not an object") from None
    except msgspec.DecodeError as error:
        if _HALF_A_PAIR.search(payload) is None:
            raise _no_json(error) from None
        top = {}  # the library refuses halves of surrogate pairs; producers that cut texts short write them
    except RecursionError:
        raise _too_deep() from None
    if _opens_many(payload) and _is_deep(payload):
        raise _too_deep()
    return top if _is_plain(top, payload) else _read_carefully(str(payload, "utf-8"))


def value(top: dict[str, msgspec.Raw], key: str) -> Any:
    """The value at ``key`` as a Python value; None where it is absent or null."""
    raw = top.get(key)
    if raw is None:
        return None
    try:
        return _read_any(raw)
    except msgspec.DecodeError:
        return _read_value(str(raw, "utf-8"))[0]


def queued_at(payload: bytes | None) -> float | None:
    """The producer's clock at enqueue, in epoch seconds; None where the item does not say."""
    if payload is None:
        return None
    try:
        return queued_at_of(_read_top(payload))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def queued_at_of(top: dict[str, msgspec.Raw]) -> float | None:
    raw = top.get("_queued_at")
    if raw is None:
        return None
    try:
        at = _read_number(raw)
    except msgspec.DecodeError:
        return None
    return at if 0 < at < 1e11 else None


def url_of(payload: bytes) -> str:
    """What stands at ``url``, for people; empty where nothing readable does."""
    url = _readable(payload, "url")
    return url if isinstance(url, str) else ""


def task_id_of(payload: bytes) -> str:
    """What stands at ``task_id``, for people; empty where no text or number does."""
    task_id = _readable(payload, "task_id")
    return str(task_id) if isinstance(task_id, str | int | float) else ""


def _readable(payload: bytes, key: str) -> Any:
    try:
        return value(_read_top(payload), key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_plain(top: dict[str, msgspec.Raw], payload: bytes) -> bool:
    """Whether the payload is what JSON writers usually make of these keys and values: then no key was lost.

    Anything else proves nothing. Nothing that has these in it is as short as what has no white space, and nothing but
    them. With Python's white space, something else could be as long: so that is put together and compared.
    """
    shortest, spaced = _around(tuple(top))
    length = len(payload) - sum(map(len, top.values()))
    if length == shortest:
        return True
    if length != shortest + 2 * len(spaced) - 1:
        return False
    parts: list[Any] = [b"}"] * (2 * len(top) + 1)
    parts[:-1:2] = spaced
    parts[1::2] = top.values()
    return payload == b"".join(parts)


@lru_cache(maxsize=256)
def _around(keys: tuple[str, ...]) -> tuple[int, list[bytes]]:
    """How many bytes stand around the values at least, and what Python's json writes in front of each.

    Producers write the same keys in the same order again and again.
    """
    names = [json.dumps(key, ensure_ascii=False).encode() for key in keys]
    spaced = [b"%b%b: " % (b", " if place else b"{", name) for place, name in enumerate(names)]
    return 2 + sum(map(len, names)) + max(0, 2 * len(names) - 1), spaced


def _read_carefully(text: str) -> dict[str, msgspec.Raw]:
    """The top level at a fraction of the speed, for what the fast way cannot vouch for or does not take."""
    top: dict[str, msgspec.Raw] = {}
    try:
        at = _after_spaces(text, _after("{", text, _after_spaces(text, 0)))
        more = text[at : at + 1] != "}"
        while more:
            key, at = _read_value(text, _after('"', text, at) - 1)
            if key in top:
                raise ItemError(DeadReason.INVALID_ITEM, "a key is given twice: which value is meant is unclear")
            start = _after_spaces(text, _after(":", text, _after_spaces(text, at)))
            end = _read_value(text, start)[1]
            top[key] = msgspec.Raw(text[start:end].encode())
            at = _after_spaces(text, end)
            more = text[at : at + 1] == ","
            if more:
                at = _after_spaces(text, at + 1)
        if _after_spaces(text, _after("}", text, at)) != len(text):
            raise ValueError("something follows the object")
    except RecursionError:
        raise _too_deep() from None
    except ItemError:
        raise
    except ValueError as error:
        raise _no_json(error) from None
    return top


def _after(expected: str, text: str, at: int) -> int:
    if text[at : at + 1] != expected:
        raise ValueError(f"{expected} expected at character {at}")
    return at + 1


def _after_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    assert found is not None
    return found.end()


def _opens_many(payload: bytes) -> bool:
    """Whether more than MAX_DEPTH arrays and objects begin in it, texts taken for such included.

    Few begin as a rule: finding these takes a fraction of counting, which looks at each byte.
    """
    for bracket in (b"[", b"{"):
        place, few = payload.find(bracket), _FEW
        while place >= 0:
            few -= 1
            if not few:
                return payload.count(b"[") + payload.count(b"{") > MAX_DEPTH
            place = payload.find(bracket, place + 1)
    return False


def _is_deep(payload: bytes) -> bool:
    brackets = _STRINGS.sub(b"", payload).translate(_BRACES_AS_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # takes off one level: the innermost
    return bool(brackets)


def _no_json(error: Exception) -> ItemError:
    return ItemError(DeadReason.INVALID_JSON, f"not JSON: {error}"[:200])


def _too_deep() -> ItemError:
    return ItemError(DeadReason.INVALID_ITEM, f"nested deeper than {MAX_DEPTH} levels")
