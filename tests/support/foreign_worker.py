"""A worker of the existing software, as a process of its own: stopped before each of its commands, and killable there.

It does exactly what design §1 says of it, flaws included: it frees the lock with a plain ``DEL``, acknowledges by
writing the item anew, and moves items in two commands, so that a kill between them loses one.

As a program: ``foreign_worker URL PREFIX``, which reads orders from stdin and answers on stdout, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

BATCH = 3  # items; that of the existing software is a setting too
ATTEMPTS = 3  # the first, and after 30 s and after 60 s
STUCK_AFTER = 300.0  # seconds since it was queued
_PATIENCE = 30.0  # seconds
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Command:
    """What the worker has just done: a Redis command without the prefix of its key, and the answer.

    ``task`` tells why it did it.
    """

    task: str
    words: tuple[bytes, ...]
    answer: bytes | int | list[bytes] | None


class ForeignWorker:
    """Use as a context manager. ``begin`` gives it a task, ``go_on`` lets it do some commands of it."""

    def __init__(self, url: str, prefix: str) -> None:
        self._command = [sys.executable, "-m", "tests.support.foreign_worker", url, prefix]
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.busy = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
        self.pid = int(self._read()["pid"])
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # both processes end by this
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def begin(self, task: str, failures: Sequence[int] = ()) -> None:
        """``task`` is one of TASKS; of a batch, each send fails so many times."""
        self._ask({"task": task, "failures": list(failures)})
        self.busy = True

    def go_on(self, most: int) -> list[Command]:
        """Up to ``most`` commands; afterwards it is ``busy`` as long as there are more."""
        answer = self._ask({"most": most})
        self.busy = answer["busy"]
        return [Command(one["task"], tuple(map(_bytes, one["words"])), _answer(one["answer"])) for one in answer["did"]]

    def kill(self) -> None:
        """SIGKILL, wherever it is; another takes its place, with nothing to do."""
        os.kill(self.pid, signal.SIGKILL)
        self.pid = int(self._read()["pid"])
        self.busy = False

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise TimeoutError("the worker does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


# --- the program ---------------------------------------------------------------------------------


class _Worker:
    """Its tasks; each is stopped before every command."""

    def __init__(self, url: str, prefix: str) -> None:
        self._redis: Any = redis.Redis.from_url(url)
        self._prefix = prefix
        self.done: list[dict[str, Any]] = []
        self._task = ""

    def tasks(self) -> dict[str, Callable[[Sequence[int]], Iterator[None]]]:
        return {
            "batch": self._batch,
            "queue": self._queue,
            "clean up": lambda _: self._clean_up(),
            "recover": lambda _: self._recover(),
            "reset": lambda _: self._reset(),
        }

    def begin(self, task: str, failures: Sequence[int]) -> Iterator[None]:
        self._task = task
        return self.tasks()[task](failures)

    def _do(self, *words: str | bytes | float) -> Any:
        """One command; its second word is the name of a key."""
        command, key, *rest = words
        answer = self._redis.execute_command(command, f"{self._prefix}:{key!s}", *rest)
        self.done.append({"task": self._task, "words": [_text(word) for word in words], "answer": _shown(answer)})
        return answer

    def _batch(self, failures: Sequence[int]) -> Iterator[None]:
        """Take the lock and some items, send each, and free the lock."""
        yield
        value = f"worker_{int(time.time())}_{random.randint(1000, 9999)}"
        if self._do("SET", "lock", value, "NX", "EX", 30) is None:
            return
        taken = []
        for _ in range(BATCH):
            yield
            item = self._do("LPOP", "pending")
            if item is None:
                break
            yield
            self._do("RPUSH", "processing", item)
            taken.append(item)
        yield
        self._do("SET", "last_send_time", time.time(), "EX", 60)
        for number, item in enumerate(taken):
            yield from self._send(item, failures[number % len(failures)] if failures else 0)
        yield
        self._do("DEL", "lock")

    def _send(self, item: bytes, failed: int) -> Iterator[None]:
        """What it cannot read it leaves where it is."""
        read = _read_item(item)
        if read is None:
            return
        for _ in range(failed):
            yield from self._count("failed")
        if failed < ATTEMPTS:
            yield from self._count("sent")
        yield
        self._do("LREM", "processing", 1, json.dumps(read))  # the flaw: not what it took

    def _queue(self, _: Sequence[int]) -> Iterator[None]:
        yield
        item = {"url": "http://c.example", "task_id": "7", "_queued_at": time.time()}
        self._do("RPUSH", "pending", json.dumps(item))
        yield from self._count("queued")

    def _clean_up(self) -> Iterator[None]:
        """The five-minute task: by the time of queueing, sent or not."""
        yield
        for item in self._do("LRANGE", "processing", 0, -1):
            read = _read_item(item)
            if read is not None and time.time() - read.get("_queued_at", 0) > STUCK_AFTER:
                yield
                self._do("LREM", "processing", 1, item)
                yield
                self._do("RPUSH", "pending", item)

    def _recover(self) -> Iterator[None]:
        """The operators' tool: all of processing."""
        yield
        while (item := self._do("LPOP", "processing")) is not None:
            yield
            self._do("RPUSH", "pending", item)
            yield

    def _reset(self) -> Iterator[None]:
        for key in ("pending", "processing", "lock", "last_send_time", "stats:queued", "stats:sent", "stats:failed"):
            yield
            self._do("DEL", key)

    def _count(self, stat: str) -> Iterator[None]:
        yield
        self._do("INCR", f"stats:{stat}")
        yield
        self._do("EXPIRE", f"stats:{stat}", 86_400)


TASKS = ("batch", "queue", "clean up", "recover", "reset")


def _read_item(item: bytes) -> dict[str, Any] | None:
    try:
        read = json.loads(item)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _serve(url: str, prefix: str) -> None:
    """One worker, until stdin ends."""
    worker = _Worker(url, prefix)
    task: Iterator[None] = iter(())
    _say({"pid": os.getpid()})
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if "task" in order:
            task = worker.begin(order["task"], order["failures"])
            next(task)
            _say({})
            continue
        busy = True
        for _ in range(order["most"]):
            busy = next(task, "over") != "over"
            if not busy:
                break
        _say({"busy": busy, "did": worker.done})
        worker.done = []


def main(url: str, prefix: str) -> None:
    """A worker, and another wherever one is killed: forked, because starting Python each time would take too long."""
    while True:
        pid = os.fork()
        if pid == 0:
            _serve(url, prefix)
            return
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _text(word: str | bytes | float) -> str:
    """Bytes keep their values as characters."""
    return word.decode("latin-1") if isinstance(word, bytes) else str(word)


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _shown(answer: Any) -> Any:
    """What JSON can carry of an answer."""
    if isinstance(answer, list):
        return [_shown(one) for one in answer]
    if isinstance(answer, bool):
        return "OK"
    return _text(answer) if isinstance(answer, bytes) else answer


def _answer(shown: Any) -> bytes | int | list[bytes] | None:
    if isinstance(shown, list):
        return [_bytes(one) for one in shown]
    return _bytes(shown) if isinstance(shown, str) else shown


if __name__ == "__main__":
    main(*sys.argv[1:])
