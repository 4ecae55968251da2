"""What the daemon and its sending process say to each other: frames on a pair of sockets.

A frame is its length (four bytes, big-endian), its kind (one byte) and msgpack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

READ_AT_ONCE = 256 * 1024  # bytes
OPTIONS, REQUESTS, CANCEL, EXCHANGES, TROUBLE = b"o", b"r", b"c", b"x", b"t"  # the kinds

_HEAD = struct.Struct(">Ic")
_KEPT = 8 * 1024 * 1024  # bytes of space that is kept for the next large frame

_encode_into = msgspec.msgpack.Encoder().encode_into


def frame(kind: bytes, content: Any) -> bytearray:
    whole = bytearray(_HEAD.size)
    _encode_into(content, whole, _HEAD.size)
    _HEAD.pack_into(whole, 0, len(whole) - _HEAD.size, kind)
    return whole


class Frames:
    """Cuts what a socket brings into frames: receive into ``room``, then tell how much it was.

    A large frame is received where it stays, and its place is used again: it is to be read before the next ``room``.
    """

    def __init__(self) -> None:
        self._space = memoryview(bytearray(READ_AT_ONCE))
        self._buffer = bytearray()  # the beginning of a frame
        self._large = bytearray()
        self._length = self._filled = 0  # of the large frame that is coming
        self._kind = b""

    def room(self) -> memoryview:
        """Where to put what comes next."""
        return memoryview(self._large)[self._filled : self._length] if self._length else self._space

    def received(self, count: int) -> Iterator[tuple[bytes, bytes | memoryview]]:
        """The frames that are whole now: kind and content."""
        if self._length:
            self._filled += count
            if self._filled == self._length:
                content = memoryview(self._large)[: self._length]
                self._length = self._filled = 0
                yield self._kind, content
            return
        buffer = self._buffer
        buffer += self._space[:count]
        at = 0
        while len(buffer) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(buffer, at)
            begin = at + _HEAD.size
            at = begin + length
            if len(buffer) < at:
                if length > READ_AT_ONCE:
                    self._expect(kind, length, buffer[begin:])
                    at = len(buffer)
                else:
                    at = begin - _HEAD.size
                break
            yield kind, bytes(buffer[begin:at])
        if at:
            del buffer[:at]

    def _expect(self, kind: bytes, length: int, beginning: bytearray) -> None:
        if len(self._large) < length or len(self._large) > max(length, _KEPT):
            self._large = bytearray(length)
        self._kind, self._length, self._filled = kind, length, len(beginning)
        self._large[: self._filled] = beginning
