"""Ctrl-C, wherever the program is when it comes: one line, and 130.

Three stretches of a run differ. Until the command line is read there is nothing to tidy up, and an exception out of
the middle of an import may come out of it as another one: the process ends at once. While a command works,
KeyboardInterrupt is raised right where the program is, so that what it has begun is ended. When all is done, Ctrl-C
comes too late to change anything, and is ignored.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # importing typing would take a third of the time until the first line below can run
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT
LINE = "interrupted"

_seen = False


def end_at_once() -> None:
    """From the first moment of the program on."""
    _handle(lambda _number, _frame: _end())


def raise_from_now_on() -> None:
    """While a command works."""
    _handle(raise_here)


def ignore_from_now_on() -> None:
    """When nothing is left to do but to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_here(_number: int, _frame: FrameType | None) -> NoReturn:
    global _seen
    _seen = True
    raise KeyboardInterrupt


def seen() -> bool:
    """Whether one came while a command worked: code of others may swallow it, or make another exception of it."""
    return _seen


def _handle(handler: signal._HANDLER) -> None:
    # A shell has it ignored by what it starts in the background.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _end() -> NoReturn:
    after_echo = "\n" if os.isatty(2) else ""  # the terminal has shown ^C
    try:
        os.write(2, f"{after_echo}cbq-exporter: {LINE}\n".encode())
    finally:
        os._exit(INTERRUPTED)
