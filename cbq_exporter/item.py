"""The wire format of one callback, as producers write it: a JSON object with at least a ``url``.

Reading never changes a byte: the values of the top level are slices of the payload, so that what is posted
is what the producer wrote, numbers of any length included.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from cbq_exporter.model import DeadReason

MAX_DEPTH = 64  # of arrays and objects within each other

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_read_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_any = msgspec.json.Decoder().decode


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
    try:
        text = str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise ItemError(DeadReason.INVALID_JSON, f"not UTF-8 at byte {error.start}") from None
    try:
        top = _read_top(text)
    except msgspec.ValidationError:
        raise ItemError(DeadReason.INVALID_ITEM, "JSON, but not an object") from None
    except msgspec.DecodeError as error:
        raise ItemError(DeadReason.INVALID_JSON, f"not JSON: {error}"[:200]) from None
    except RecursionError:
        raise _too_deep() from None
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _depth(payload) > MAX_DEPTH:
        raise _too_deep()
    if not _is_plain(top, payload):
        _refuse_repeated_keys(text)
    return top


def value(top: dict[str, msgspec.Raw], key: str) -> Any:
    """The value at ``key`` as a Python value; None where it is absent or null."""
    raw = top.get(key)
    return None if raw is None else _read_any(raw)


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
        at = float(bytes(raw))
    except ValueError:
        return None
    return at if 0 < at < 1e11 else None


def url_of(payload: bytes) -> str:
    """What stands at ``url``, for people; empty where nothing readable does."""
    try:
        url = value(_read_top(payload), "url")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return url if isinstance(url, str) else ""


def _is_plain(top: dict[str, msgspec.Raw], payload: bytes) -> bool:
    """Whether the writing proves that no key was lost, at the price of a copy at most.

    An object without white space is as long as its parts. One as Python's json writes it is put together
    again. Anything else proves nothing.
    """
    length = 1
    for key, raw in top.items():
        length += len(key) + 4 + len(memoryview(raw))
    if len(payload) == length:
        return True
    if len(payload) != length + 2 * len(top) - 1:
        return False
    return payload == b"{" + b", ".join(b'"%b": %b' % (key.encode(), raw) for key, raw in top.items()) + b"}"


def _refuse_repeated_keys(text: str) -> None:
    lost = False

    def note(pairs: list[tuple[str, Any]]) -> None:
        nonlocal lost
        lost = len({key for key, _ in pairs}) < len(pairs)  # the outermost object is handed over last

    json.loads(text, object_pairs_hook=note, parse_int=str, parse_float=str)
    if lost:
        raise ItemError(DeadReason.INVALID_ITEM, "a key is given twice: which value is meant is unclear")


def _depth(payload: bytes) -> int:
    deepest = depth = 0
    for bracket in _STRINGS.sub(b"", payload).translate(None, _NO_BRACKETS):
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _too_deep() -> ItemError:
    return ItemError(DeadReason.INVALID_ITEM, f"nested deeper than {MAX_DEPTH} levels")
