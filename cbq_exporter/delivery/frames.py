"""What the daemon and its sending process say to each other: frames on a pair of sockets.

A frame is its length (four bytes, big-endian), its kind (one byte) and msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

READ_AT_ONCE = 256 * 1024  # bytes
OPTIONS, REQUESTS, EXCHANGES, TROUBLE = b"o", b"r", b"x", b"t"  # the kinds

_HEAD = struct.Struct(">Ic")

_encode = msgspec.msgpack.Encoder().encode


def frame(kind: bytes, content: Any) -> bytes:
    body = _encode(content)
    return _HEAD.pack(len(body), kind) + body


class Frames:
    """Cuts what a socket brings into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are whole now: kind and content."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(buffer, at)
            end = at + _HEAD.size + length
            if len(buffer) < end:
                break
            yield kind, bytes(buffer[at + _HEAD.size : end])
            at = end
        if at:
            del buffer[:at]
