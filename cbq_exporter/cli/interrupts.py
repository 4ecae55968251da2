"""Ctrl-C, wherever the program is when it comes: one line, and 130.

Three stretches of a run differ. Until the command line is read there is nothing to tidy up, and an exception out of
the middle of an import may come out of it as another one: the process ends at once. While a command works,
KeyboardInterrupt is raised right where the program is, so that what it has begun is ended; a key that is held down
does not interrupt that too, and whoever presses it again a while later ends the process at once. When all is done,
Ctrl-C comes too late to change anything, and is ignored.

What comes before the first line of the program, while Python itself starts, is out of its reach.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing would take a third of the time until the first line below can run
if TYPE_CHECKING:
    import signal
    from types import FrameType, TracebackType
    from typing import NoReturn
else:
    # Before it has anything else, signal imports enum, and that a dozen more: as long as Python itself takes to start,
    # and in all that time Ctrl-C would be a traceback. What it is made of is there already.
    import _signal as signal

INTERRUPTED = 130  # 128 + SIGINT
LINE = "interrupted"

_TIDYING = 1.0  # seconds that a command has for its end

_at: float | None = None  # when the first one came


def end_at_once() -> None:
    """From the first moment of the program on."""
    _handle(lambda _number, _frame: _end())


def raise_from_now_on() -> None:
    """While a command works."""
    _handle(raise_here)
    # In the last line of whoever catches it, or after that.
    sys.excepthook = _say_uncaught
    sys.unraisablehook = _swallow


def ignore_from_now_on() -> None:
    """When nothing is left to do but to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def raise_here(_number: int, _frame: FrameType | None) -> None:
    """The first time; soon after that it does nothing."""
    global _at
    import time

    now = time.monotonic()
    if _at is None:
        _at = now
        raise KeyboardInterrupt
    if now - _at > _TIDYING:
        _end()


def seen() -> bool:
    """Whether one came while a command worked: code of others may swallow it, or make another exception of it."""
    return _at is not None


def _handle(handler: signal._HANDLER) -> None:
    # A shell has it ignored by what it starts in the background.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end()
    sys.__excepthook__(kind, error, trace)


def _swallow(unraisable: sys.UnraisableHookArgs) -> None:
    """In a destructor nothing can be interrupted: the next one may."""
    global _at
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _at = None
    else:
        sys.__unraisablehook__(unraisable)


def _end() -> NoReturn:
    after_echo = "\n" if os.isatty(2) else ""  # the terminal has shown ^C
    try:
        os.write(2, f"{after_echo}cbq-exporter: {LINE}\n".encode())
    finally:
        os._exit(INTERRUPTED)
