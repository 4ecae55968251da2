"""The container image, built by buildah from the Dockerfile and run as a container runtime would run it.

Its base is made by debootstrap: no registry of images is asked. The network is asked for Debian's packages and for
those of the lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
USER = 10001
NICELY = ("nice", "-n", "10")  # beside it run tests that look at the clock

# What a container runtime does: the arguments are the root, a folder for the volume, one for the configuration, then
# the environment and what enters the root with the command.
RUNTIME = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"
mount --bind "$2" "$1/var/lib/cbq-exporter" && mount --bind "$3" "$1/etc/cbq-exporter"
mount -t tmpfs tmpfs "$1/tmp" && mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc"
shift 3
exec env -i "$@"
"""


@dataclass(frozen=True)
class Image:
    root: Path
    about: dict[str, Any]

    def command(self, volume: Path, etc: Path, *words: str) -> list[str]:
        user, _, group = self.about["User"].partition(":")
        enter = [str(shutil.which("unshare")), f"--root={self.root}", f"--wd={self.about['WorkingDir']}"]
        enter += [f"--setgid={group}", f"--setuid={user}", *words]
        folders = [str(self.root), str(volume), str(etc)]
        return ["unshare", "--mount", "sh", "-euc", RUNTIME, "sh", *folders, *self.about["Env"], *enter]


@contextlib.contextmanager
def image(revision: str) -> Iterator[Image]:
    """The image of this repository; skipped where nothing can build it, since test_image_steps.py runs its steps.

    CBQ_TESTS_IMAGE_ARCHITECTURE=arm64 builds and runs it for another machine than this, if the kernel knows an
    emulator (on Debian: qemu-user-static).
    """
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: only the steps of the Dockerfile are tried")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a base can be made by root alone: only the steps of the Dockerfile are tried")
    folder = Path(tempfile.mkdtemp(prefix="cbq-image-"))
    try:
        yield _built(folder, revision, os.environ.get("CBQ_TESTS_IMAGE_ARCHITECTURE"))
    finally:
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            mounted = line.split()[1]
            if mounted.startswith(f"{folder}/"):
                subprocess.run(["umount", mounted], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _built(folder: Path, revision: str, architecture: str | None) -> Image:
    stores = ["--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", _driver(folder)]

    def buildah(*words: str) -> str:
        done = subprocess.run([*NICELY, "buildah", *stores, *words], capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    container = buildah("from", "scratch")
    base = buildah("mount", container)
    made_for = [f"--arch={architecture}"] if architecture else []
    debootstrap = [*NICELY, "debootstrap", *made_for, "--variant=minbase", "bookworm", base]
    done = subprocess.run(debootstrap, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:]
    # Where this machine trusts an authority of its own, the build has to trust it too. The image does not get it.
    trusted = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if trusted and Path(trusted).exists():
        buildah("copy", "-q", container, trusted, "/trusted.pem")
        buildah("config", "--env", "PIP_CERT=/trusted.pem", container)
    if made_for:
        buildah("config", *made_for, container)
    buildah("commit", "-q", "--rm", container, "base")
    how = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", *made_for]
    given = ["--build-arg", "BASE=localhost/base", "--build-arg", f"CBQ_REVISION={revision}"]
    buildah("bud", *how, *given, "-t", "it", str(ROOT))
    about = json.loads(buildah("inspect", "--type", "image", "it"))["Docker"]["config"]
    return Image(Path(buildah("mount", buildah("from", "--pull-never", "it"))), about)


def _driver(folder: Path) -> str:
    """The quick one where the file system can do it."""
    parts = [folder / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir()
    lower, upper, work, merged = parts
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    script = 'mount -t overlay overlay -o "$1" "$2" && umount "$2"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", options, str(merged)], capture_output=True)
    return "overlay" if done.returncode == 0 else "vfs"
