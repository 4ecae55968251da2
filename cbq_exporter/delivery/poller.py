"""Waiting for sockets without ``select``, which cannot see descriptors past 1,023."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

_READY_AT_ONCE = 512
_BSD: Any = select  # the stubs know only the platform they are read on


class Poller:
    """Waits for any watched descriptor, or a wake-up: by another thread, or by what can be read from ``waker``.

    Edge-triggered, so what is ready and not of interest (the end of an idle connection) does not
    spin. A descriptor that is closed is forgotten by the kernel.
    """

    def __init__(self, waker: socket.socket | None = None) -> None:
        self._writer: socket.socket | None = None
        if waker is None:
            waker, self._writer = socket.socketpair()
            waker.setblocking(False)
            self._writer.setblocking(False)
        self._reader = waker
        self._epoll: Any = None
        self._kqueue: Any = None
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(self._reader.fileno(), select.EPOLLIN)
        else:
            self._kqueue = _BSD.kqueue()
            self._kqueue.control([_BSD.kevent(self._reader.fileno(), _BSD.KQ_FILTER_READ)], 0)

    def watch(self, descriptor: int) -> None:
        if self._epoll is not None:
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
            return
        flags = _BSD.KQ_EV_ADD | _BSD.KQ_EV_CLEAR
        self._kqueue.control(
            [
                _BSD.kevent(descriptor, _BSD.KQ_FILTER_READ, flags),
                _BSD.kevent(descriptor, _BSD.KQ_FILTER_WRITE, flags),
            ],
            0,
        )

    def wait(self, seconds: float | None) -> None:
        if self._epoll is not None:
            self._epoll.poll(seconds, _READY_AT_ONCE)
        else:
            self._kqueue.control(None, _READY_AT_ONCE, seconds)

    def wake(self) -> None:
        assert self._writer is not None
        # Full means that a wake-up is waiting already.
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def hush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(64)

    def close(self) -> None:
        (self._epoll or self._kqueue).close()
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
