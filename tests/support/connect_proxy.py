"""A real HTTP proxy for tests: what a ``Receiver(raw=Way(port))`` does with each connection."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.receiver import Connection


class Way:
    """To whichever receiver a CONNECT asks, the way leads to ``port`` on loopback."""

    def __init__(self, port: int, answer: bytes = b"200 Fine", *, silent: bool = False) -> None:
        self._port = port
        self._answer = answer
        self._silent = silent
        self.heads: list[list[str]] = []

    async def __call__(self, connection: Connection) -> None:
        self.heads.append((await connection.head()).split("\r\n"))
        if self._silent:
            await connection.gone()
        if not self._answer.startswith(b"200"):
            await connection.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % self._answer)
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        await connection.write(b"HTTP/1.1 %s\r\nVia: test\r\n\r\n" % self._answer)

        async def there() -> None:
            while data := await connection.read(1 << 14):
                writer.write(data)
                await writer.drain()

        async def back() -> None:
            while data := await reader.read(1 << 14):
                await connection.write(data)

        tasks = [asyncio.create_task(there()), asyncio.create_task(back())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(OSError):
            writer.close()
