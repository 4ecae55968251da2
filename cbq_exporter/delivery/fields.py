"""An item's values as templates see them: opened level by level, and only where a template looks.

An array or object that is written as JSON again is the bytes that the producer wrote: numbers keep every digit, and a
megabyte of them is not parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

import msgspec

# What JSON is made of. Written as a Union, because ``|`` does not take names in quotes.
Value = Union[None, bool, int, float, str, "JsonObject", "JsonArray", dict[str, Any], list[Any]]

_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_any = msgspec.json.Decoder().decode
_OBJECT, _ARRAY = b"{["


def opened(raw: msgspec.Raw) -> Value:
    """Raises ValueError for a number beyond what Python can hold; ``raw`` is JSON."""
    first = memoryview(raw)[0]
    if first == _OBJECT:
        return JsonObject(raw)
    if first == _ARRAY:
        return JsonArray(raw)
    return _read(raw, _read_any)  # type: ignore[no-any-return]


def _read(raw: msgspec.Raw, read: Any) -> Any:
    try:
        return read(raw)
    except msgspec.ValidationError:
        raise ValueError("a number of the item is out of range") from None
    except msgspec.DecodeError:
        return json.loads(bytes(raw))  # the library refuses halves of surrogate pairs


class JsonObject(Mapping[str, Value]):
    """``raw`` is the object as it was written."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: msgspec.Raw, fields: dict[str, msgspec.Raw] | None = None) -> None:
        """``fields`` is its top level where that was read already."""
        self.raw = raw
        self._values: dict[str, Any] | None = None if fields is None else dict(fields)

    def __getitem__(self, key: str) -> Value:
        values = self._open()
        value = values[key]
        if type(value) is msgspec.Raw:
            value = values[key] = opened(value)
        return value  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def _open(self) -> dict[str, Any]:
        if self._values is None:
            self._values = _read(self.raw, _read_object)
        return self._values


class JsonArray(Sequence[Value]):
    """``raw`` is the array as it was written."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: msgspec.Raw) -> None:
        self.raw = raw
        self._values: list[Any] | None = None

    def __getitem__(self, place: Any) -> Any:
        values = self._open()
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(values)))]
        value = values[place]
        if type(value) is msgspec.Raw:
            value = values[place] = opened(value)
        return value

    def __len__(self) -> int:
        return len(self._open())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | JsonArray) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _open(self) -> list[Any]:
        if self._values is None:
            self._values = _read(self.raw, _read_array)
        return self._values


def to_json(value: object) -> str:
    """``value`` as JSON, in one line where it was made here. Raises TypeError or ValueError for what has none."""
    if isinstance(value, JsonObject | JsonArray):
        return str(memoryview(value.raw), "utf-8")
    try:
        return str(msgspec.json.encode(value, enc_hook=_as_written), "utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can escape it
        return _spelt(value)


def _as_written(value: object) -> object:
    if isinstance(value, JsonObject | JsonArray):
        return value.raw
    if isinstance(value, bytes):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _spelt(value: object) -> str:
    """Like ``to_json``, piece by piece: what the producer wrote stays as it is here too."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        return f"{{{','.join(f'{_spelt(str(key))}:{_spelt(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spelt, value))}]"
    return to_json(value)
