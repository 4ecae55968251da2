"""A receiver that notes when it saw which callback. It prints its port, then a line ``id nanoseconds`` for each.

The nanoseconds are those of time.monotonic_ns, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receiver(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at = time.monotonic_ns()
        self._received += data
        while True:
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not separator or length is None or len(rest) < int(length[1]):
                return
            size = int(length[1])
            self._received = rest[size:]
            self._transport.write(_ANSWER)
            print(json.loads(rest[:size])["id"], at, flush=True)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
