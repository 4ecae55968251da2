"""A receiver that answers each POST so many seconds after it was read (``python -m benchmarks.patient_receiver 0.02``).

It prints its port. A GET is answered with what came so far: requests, bytes of bodies, and when the first and the last
were answered, by time.monotonic.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Tally:
    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.requests = self.bytes = 0
        self.first = self.last = 0.0

    def count(self, size: int) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.requests += 1
        self.bytes += size


class Receiver(asyncio.Protocol):
    """Of one connection: a request is read, and the next comes when it has been answered."""

    def __init__(self, tally: Tally, loop: asyncio.AbstractEventLoop) -> None:
        self._tally = tally
        self._loop = loop
        self._head = b""
        self._size = self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport by birth

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head = b""
            if head.startswith(b"GET"):
                self._report()
                return
            self._size = _length(head)
            self._missing = self._size - len(rest)
        if self._missing <= 0:
            self._missing = 0
            if self._tally.delay:
                self._loop.call_later(self._tally.delay, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        self._tally.count(self._size)
        self._transport.write(_ANSWER)

    def _report(self) -> None:
        body = json.dumps([self._tally.requests, self._tally.bytes, self._tally.first, self._tally.last]).encode()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _length(head: bytes) -> int:
    lower = head.lower()
    return int(lower[lower.index(b"\r\ncontent-length:") + 17 :].split(b"\r\n", 1)[0])


async def main(delay: float) -> None:
    loop = asyncio.get_running_loop()
    tally = Tally(delay)
    server = await loop.create_server(lambda: Receiver(tally, loop), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
