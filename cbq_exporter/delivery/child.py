"""The sending process: ``python -m cbq_exporter.delivery.child DESCRIPTOR``, started by ``own_process``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from cbq_exporter.clock import SYSTEM_CLOCK
from cbq_exporter.delivery.exchange import Exchange, Request
from cbq_exporter.delivery.frames import EXCHANGES, OPTIONS, REQUESTS, TROUBLE, Frames, frame
from cbq_exporter.delivery.poller import Poller
from cbq_exporter.delivery.surroundings import SendingOptions, Surroundings
from cbq_exporter.delivery.transfers import Transfers

_READS_AT_ONCE = 4  # then what has come begins, before more is read

_options = msgspec.msgpack.Decoder(SendingOptions).decode
_requests = msgspec.msgpack.Decoder(list[Request]).decode


class DaemonPort:
    """The daemon, at the other end of ``connection``. Writing may wait, reading never does."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = Frames()
        self._early: list[Request] = []
        self._cancelled_of_taken: int | None = None
        self.closing = False

    def options(self) -> SendingOptions:
        """The first that comes; waits for it."""
        found: SendingOptions | None = None
        while found is None:
            count = self._connection.recv_into(self._frames.room())
            if not count:
                os._exit(0)
            for kind, content in self._frames.received(count):
                if kind == OPTIONS:
                    found = _options(content)
                else:
                    self._read(kind, content, self._early)
        return found

    def take(self) -> Sequence[Request]:
        taken, self._early = self._early, []
        for _ in range(_READS_AT_ONCE):
            room = self._frames.room()
            try:
                count = self._connection.recv_into(room, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                self.closing = True
                break
            for kind, content in self._frames.received(count):
                self._read(kind, content, taken)
            if count < len(room):
                break
        return taken

    def _read(self, kind: bytes, content: bytes | memoryview, taken: list[Request]) -> None:
        if kind == REQUESTS:
            taken += _requests(content)
        else:
            self._cancelled_of_taken = len(taken)

    def take_cancel(self) -> int | None:
        cancelled, self._cancelled_of_taken = self._cancelled_of_taken, None
        return cancelled

    def give(self, exchanges: list[Exchange]) -> None:
        self._send(frame(EXCHANGES, exchanges))

    def tell(self, text: str) -> None:
        self._send(frame(TROUBLE, text))

    def close(self) -> Sequence[Request]:
        return ()

    def _send(self, data: bytearray) -> None:
        try:
            self._connection.sendall(data)
        except OSError:
            os._exit(1)  # nobody is left to work for


class _ToDaemon(logging.Handler):
    """The daemon has the log; its format is no business of ours."""

    def __init__(self, port: DaemonPort) -> None:
        super().__init__(logging.WARNING)
        self._port = port

    def emit(self, record: logging.LogRecord) -> None:
        self._port.tell(self.format(record))


def main() -> None:
    # A signal to the whole group is the daemon's to heed: it lets sends finish, then closes the connection.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.setblocking(True)
    port = DaemonPort(connection)
    logging.basicConfig(handlers=[_ToDaemon(port)])
    options = port.options()
    around = Surroundings(options, Poller(connection))
    Transfers(around, port, options, SYSTEM_CLOCK).run()
    os._exit(0)


if __name__ == "__main__":
    main()
