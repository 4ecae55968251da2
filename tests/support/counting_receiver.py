"""A receiver for many requests: it counts how each body was answered, and keeps nothing else.

with CountingReceiver(lambda body, nth: 200) as receiver:
    ... send to receiver.url ...
    assert receiver.accepted[b"…"] == 1
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

RESET = -1  # instead of a status: the connection is reset without an answer

Behaviour = Callable[[bytes, int], "int | tuple[int, float]"]


class CountingReceiver:
    """Use as a context manager.

    ``behaviour`` is called with the body and how many times it has come, this time included; it returns a status
    or RESET, or that and the seconds to wait before it. It runs in the receiver's thread. At ``host`` 0.0.0.0 it is
    many receivers, one at each address of 127/8.
    """

    def __init__(self, behaviour: Behaviour = lambda body, nth: 200, *, host: str = "127.0.0.1") -> None:
        self.behaviour = behaviour
        self.arrived: Counter[bytes] = Counter()  # bodies, however they were answered
        self.accepted: Counter[bytes] = Counter()  # bodies that were answered with 200
        self.order: list[bytes] = []  # bodies in the order of arrival
        self.port = 0
        self._host = host
        self._open: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counting-receiver", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def requests(self) -> int:
        return len(self.order)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the receiver did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self, self._open), self._host, 0, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for transport in list(self._open):
            transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: CountingReceiver, open_ones: set[asyncio.Transport]) -> None:
        self._receiver = receiver
        self._open = open_ones
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, rest = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        # One request at a time: nobody here pipelines.
        self._data = rest[length:]
        self._answer(rest[:length])

    def _answer(self, body: bytes) -> None:
        receiver = self._receiver
        receiver.arrived[body] += 1
        receiver.order.append(body)
        answer = receiver.behaviour(body, receiver.arrived[body])
        status, delay = answer if isinstance(answer, tuple) else (answer, 0.0)
        if delay:
            asyncio.get_running_loop().call_later(delay, self._write, status, body)
        else:
            self._write(status, body)

    def _write(self, status: int, body: bytes) -> None:
        if self._transport.is_closing():
            return
        if status == RESET:
            self._transport.abort()
            return
        if status == 200:
            self._receiver.accepted[body] += 1
        self._transport.write(b"HTTP/1.1 %d Said\r\nContent-Length: 0\r\n\r\n" % status)
