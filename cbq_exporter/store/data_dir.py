"""``data_dir`` and what stands in it: who has it in use, where its server is, and what goes wrong with it.

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

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from cbq_exporter.errors import EmbeddedStoreError
from cbq_exporter.store import disk

DAEMON, COMMAND = "daemon", "command"

_LONGEST_SOCKET_PATH = 103  # bytes: what macOS allows; Linux allows four more
_LOG_KEPT = 1024 * 1024  # bytes: a longer log is put aside when the server starts
_OURS = frozenset(
    {
        *("holder.lock", "server.lock", "server.json", "server.json.new", "server.sock", "server.log", "server.log.1"),
        *("appendonlydir", "dump.rdb"),
    }
)
_MANIFEST = "appendonly.aof.manifest"  # names the files of the data
# What the server says of damaged data, and its advice: a program that comes with no wheel, and fails on the file named.
_DAMAGED, _ADVICE = "Bad file format", ": make a backup of your AOF file"
_FIRST_BASE = "appendonly.aof.1.base.rdb"  # of a store that began empty


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a ``data_dir`` in use. ``url`` is its server, where others may use it: a daemon's, once it answers."""

    pid: int
    role: str
    url: str | None


def holder(data_dir: Path) -> Holder | None:
    """Who has ``data_dir`` in use now, if anybody."""
    folder = DataDir(data_dir)
    try:
        descriptor = os.open(folder.holder_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if try_lock(descriptor, fcntl.LOCK_SH):
            return None
        pid, role = holder_named(descriptor)
    finally:
        os.close(descriptor)
    running = folder.running() if role == DAEMON else None
    return Holder(pid, role, socket_url(running.socket) if running is not None and running.answers else None)


def running_url(data_dir: Path) -> str | None:
    """The server of the daemon that runs on ``data_dir``; None where there is none, or it does not answer yet."""
    held = holder(data_dir)
    return None if held is None else held.url


class Running(msgspec.Struct, frozen=True):
    """The content of server.json."""

    pid: int
    socket: str
    answers: bool = False  # it has loaded its data, and others may use it


class DataDir:
    """The files in it, by what they are for."""

    def __init__(self, data_dir: Path) -> None:
        self.path = Path(os.path.abspath(data_dir))
        self.holder_lock = self.path / "holder.lock"
        self.log = self.path / "server.log"
        self._server_lock = self.path / "server.lock"
        self._server_json = self.path / "server.json"

    def make(self, role: str) -> None:
        """Private to its owner. A folder with other things in it keeps its permissions: it may be anybody's, and what
        is ours in it is private by itself.
        """
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
            if all(one.name in _OURS for one in self.path.iterdir()):
                with contextlib.suppress(PermissionError):
                    self.path.chmod(0o700)

    def why_not_ours(self, holding: int) -> str | None:
        """What to tell whoever has removed, moved or replaced the folder whose lock is ``holding``; else None."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.fstat(holding), os.stat(self.holder_lock)):
                return None
        return (
            f"data_dir {self.path}, or holder.lock in it, was removed, moved or replaced while it was in use: put back "
            "what was there, or restart the daemon to use what is there now"
        )

    def remove_drafts(self) -> None:
        """What servers have left that were killed while they wrote their file anew: up to all of the data each time."""
        for draft in self.path.glob("temp-rewriteaof-*.aof"):
            draft.unlink(missing_ok=True)

    def check_data(self) -> None:
        """Raises EmbeddedStoreError where the server would begin anew beside data that it does not find, and write over
        it later. A start that was cut off leaves nothing but the first files without a manifest, with nothing in them.
        """
        folder = self.path / "appendonlydir"
        if (folder / _MANIFEST).exists():
            return
        lost = [one.name for one in folder.glob("*.incr.aof") if one.stat().st_size]
        lost += [one.name for one in folder.glob("*.base.*") if one.name != _FIRST_BASE]
        if lost:
            raise EmbeddedStoreError(
                f"{folder} has data ({min(lost)}) and no {_MANIFEST}, without which the server would begin anew: put "
                "that file back, from a backup as well, or move the folder away"
            )

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

    def running(self) -> Running | None:
        try:
            return msgspec.json.decode(self._server_json.read_bytes(), type=Running)
        except (OSError, msgspec.MsgspecError):
            return None

    def note(self, running: Running) -> None:
        """Replaced in one step: others read it at any time."""
        draft = self._server_json.with_suffix(".json.new")
        draft.unlink(missing_ok=True)
        with open(draft, "xb", opener=private) as file:
            file.write(msgspec.json.encode(running) + b"\n")
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

    def why_it_ended(self, what: str, exit_code: int | None, log_began: int) -> str:
        """One line that begins with ``what`` the server did. A full disk has no room for the server's log either.

        ``exit_code`` is negative where a signal ended it; its own lines in the log are from ``log_began`` on.
        """
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
        reason = f"{serious[-1].partition(_ADVICE)[0][:300]}: " if serious else ""
        if _DAMAGED in reason:
            reason += "cbq-exporter explain operations.md has what to do about damaged data: "
        if exit_code is not None and exit_code < 0:
            hint = ", as the kernel does it where memory runs out" if exit_code == -signal.SIGKILL else ""
            reason = f"{signal.strsignal(-exit_code)} by signal {-exit_code}{hint}: "
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
                raise EmbeddedStoreError(disk.full(self.path)) from error
            raise EmbeddedStoreError(
                f"data_dir {self.path} cannot be used: {error.strerror or error}: set another data_dir"
            ) from error


def private(path: str, flags: int) -> int:
    """For ``open``: a new file is its owner's alone, whatever the umask."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def socket_url(path: str) -> str:
    return f"unix://{quote(path)}"


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether it is ours now; does not wait."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder_named(descriptor: int) -> tuple[int, str]:
    """The process id and the role in holder.lock."""
    pid, _, role = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip().partition(" ")
    return (int(pid), role) if pid.isdigit() and role in (DAEMON, COMMAND) else (0, "process")


def listener(socket_path: str) -> int | None:
    """The process that listens there, also one that hangs; None where none does."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        probe.connect(socket_path)
        if sys.platform == "darwin":
            return int(probe.getsockopt(0, 2))  # SOL_LOCAL, LOCAL_PEERPID
        return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    return None
