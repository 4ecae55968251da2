"""A machine whose first process is systemd: a container of systemd-nspawn over this machine's own files.

What is written in it is gone with it. It has a network of its own, with nothing in it, and starts no service of this
machine. The program is in /opt/cbq-exporter, as if installed there; /repository is this repository.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemons import until
from tests.support.skips import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "/opt/cbq-exporter"

# The arguments are an empty folder, one with files to lay over those of this machine, and options of systemd-nspawn.
BOOT = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp -a "$2/." "$1/root/"
root=$1/root; shift 2
exec systemd-nspawn --directory="$root" --boot "$@" systemd.unit=nothing.target
"""
_OPTIONS = ("--quiet", "--register=no", "--keep-unit", "--settings=no", "--link-journal=no", "--console=pipe")

_LIBRARIES = "LD_LIBRARY_PATH=/opt/python/lib"  # the interpreter's, where it has any: it is not where it was made for

_SCRIPT = f"""#!{PROGRAM}/bin/python
import runpy
runpy.run_module("cbq_exporter", run_name="__main__", alter_sys=True)
"""


class Machine:
    def __init__(self, manager: int) -> None:
        """``manager`` is the process of its systemd, as it is known here."""
        self._command = ["nsenter", f"--target={manager}", "--all", "env", "-i", "LANG=C.UTF-8", _LIBRARIES]
        self._command.append("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")

    def run(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def ask(self, *words: str, timeout: float = 60.0) -> str:
        """What it prints, which must work."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self._journal()}"
        return done.stdout.strip()

    def _journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--lines=20").stdout


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    for program in ("systemd-nspawn", "nsenter", "unshare", "pgrep"):
        if shutil.which(program) is None:
            skip_or_fail(f"the {program} program is needed")
    if os.geteuid() != 0:
        skip_or_fail("only root can start a container of systemd's here")
    folder = Path(tempfile.mkdtemp(prefix="cbq-machine-"))
    disk, files, said = folder / "disk", folder / "files", folder / "said"
    disk.mkdir()
    binds = _lay(files)
    name = folder.name.replace("_", "-")
    command = ["unshare", "--mount", "sh", "-euc", BOOT, "sh", str(disk), str(files)]
    command += [*_OPTIONS, "--private-network", f"--machine={name}", *binds]
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or _manager(process.pid), 60)
        if process.poll() is not None:
            skip_or_fail(f"no container of systemd's starts here: {said.read_text().strip()[-300:]}")
        inside = Machine(_manager(process.pid))
        until(lambda: inside.run("systemctl", "is-active", "nothing.target").returncode == 0, 60, said.read_text)
        yield inside
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _manager(nspawn: int) -> int:
    found = subprocess.run(["pgrep", "--parent", str(nspawn), "--exact", "systemd"], capture_output=True, text=True)
    return int(found.stdout or 0)


def _lay(files: Path) -> list[str]:
    """The files that the machine has beside those of this one, and what is shown there, for systemd-nspawn."""
    site = files / PROGRAM[1:] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for path in (site, files / PROGRAM[1:] / "bin", files / "etc/systemd/system", files / "usr/local/bin"):
        path.mkdir(parents=True)
    shown = {
        "/opt/python": sys.base_prefix,
        f"{PROGRAM}/borrowed": sysconfig.get_paths()["purelib"],
        f"{PROGRAM}/source/cbq_exporter": str(ROOT / "cbq_exporter"),
        "/repository": str(ROOT),
    }
    program = files / PROGRAM[1:]
    (program / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (program / "bin/python").symlink_to(f"/opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    (program / "bin/cbq-exporter").write_text(_SCRIPT)
    (program / "bin/cbq-exporter").chmod(0o755)
    # Only directories on the path: the editable installation in there is not followed.
    (site / "borrowed.pth").write_text(f"{PROGRAM}/source\n{PROGRAM}/borrowed\n")
    (files / "usr/local/bin/cbq-exporter").symlink_to(f"{PROGRAM}/bin/cbq-exporter")
    units = files / "etc/systemd/system"
    (units / "nothing.target").write_text("[Unit]\nDescription=Nothing of this machine's\nDefaultDependencies=no\n")
    drop_in = units / "cbq-exporter.service.d"
    drop_in.mkdir()
    (drop_in / "libraries.conf").write_text(f"[Service]\nEnvironment={_LIBRARIES}\n")
    (units / "network-online.target").symlink_to("/dev/null")  # it has no network to wait for
    return [f"--bind-ro={here}:{there}" for there, here in shown.items()]
