"""The container image, built by buildah and run as it is shipped: as nobody in particular, on a read-only root.

Its base is made by debootstrap: no registry of images is asked. The network is asked for Debian's packages and for
those of the lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import until
from tests.support.skips import skip_or_fail

# Minutes, a builder's rights and Debian's mirrors: asked for by name, not in every run.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("CBQ_TESTS_BUILD_IMAGE") != "1", reason="CBQ_TESTS_BUILD_IMAGE=1 builds the image"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/debian:bookworm-slim"
MOST_BYTES = 150 * 1000 * 1000
USER = 10001
REVISION = "0123456789abcdef0123456789abcdef01234567"

# What a container runtime does: the arguments are the root, a folder for the volume, one for the configuration, and
# the command.
RUNTIME = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"
mount --bind "$2" "$1/var/lib/cbq-exporter" && mount --bind "$3" "$1/etc/cbq-exporter"
mount -t tmpfs tmpfs "$1/tmp" && mount --rbind /dev "$1/dev"
root=$1; shift 3
exec env -i PATH=/opt/cbq-exporter/bin:/usr/bin LANG=C.UTF-8 "$(command -v unshare)" \
    --root "$root" --wd /var/lib/cbq-exporter --setgid 10001 --setuid 10001 "$@"
"""


@dataclass(frozen=True)
class Image:
    root: Path
    about: dict[str, Any]

    def command(self, volume: Path, etc: Path, *words: str) -> list[str]:
        return ["unshare", "--mount", "sh", "-euc", RUNTIME, "sh", str(self.root), str(volume), str(etc), *words]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    for program in ("buildah", "debootstrap", "unshare"):
        if shutil.which(program) is None:
            skip_or_fail(f"the {program} program is needed")
    if os.geteuid() != 0:
        skip_or_fail("only root can make the image's base here")
    folder = Path(tempfile.mkdtemp(prefix="cbq-image-"))
    try:
        yield _built(folder)
    finally:
        for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
            mounted = line.split()[1]
            if mounted.startswith(f"{folder}/"):
                subprocess.run(["umount", mounted], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _built(folder: Path) -> Image:
    stores = ["--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", _driver(folder)]

    def buildah(*words: str) -> str:
        done = subprocess.run(["buildah", *stores, *words], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    container = buildah("from", "scratch")
    base = buildah("mount", container)
    debootstrap = ["debootstrap", "--variant=minbase", "bookworm", base]
    done = subprocess.run(debootstrap, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    # Where this machine trusts an authority of its own, the build has to trust it too. The image does not get it.
    trusted = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if trusted and Path(trusted).exists():
        buildah("copy", "-q", container, trusted, "/trusted.pem")
        buildah("config", "--env", "PIP_CERT=/trusted.pem", container)
    buildah("commit", "-q", "--rm", container, BASE)
    network = ["--isolation", "chroot", "--network", "host", "--pull-never"]
    buildah("bud", *network, "--format", "docker", "--build-arg", f"CBQ_REVISION={REVISION}", "-t", "it", str(ROOT))
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


def test_it_is_small_and_says_what_it_is(image: Image) -> None:
    files = [path.lstat() for path in image.root.rglob("*")]
    assert sum(file.st_blocks * 512 for file in {file.st_ino: file for file in files}.values()) < MOST_BYTES
    about = image.about
    assert about["User"] == f"{USER}:{USER}"
    assert about["StopSignal"] == "SIGTERM"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in about["Labels"].items()}
    assert labels["revision"] == REVISION
    assert {"title", "description", "licenses", "source", "documentation"} <= set(labels)
    for program in ("sh", "bash", "apt-get", "pip"):  # nothing to go on with for whoever gets in
        for place in ("usr/bin", "opt/cbq-exporter/bin"):
            assert not (image.root / place / program).exists()
    assert not (image.root / "trusted.pem").exists()
    assert len(list((image.root / "var/lib/dpkg/status.d").iterdir())) > 10


def test_it_runs_on_a_read_only_root_and_keeps_what_it_has(image: Image, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    volume, etc = tmp_path / "volume", tmp_path / "etc"
    volume.mkdir(mode=0o700)
    os.chown(volume, USER, USER)
    etc.mkdir()
    (etc / "config.yaml").write_text(json.dumps({"web": {"listen_address": f"127.0.0.1:{_free_port()}"}}))

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        command = image.command(volume, etc, *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    config = ["-c", "/etc/cbq-exporter/config.yaml"]
    version = ask("cbq-exporter", "--version")
    assert version.stdout.endswith(f"(revision {REVISION[:12]})\n"), version.stderr
    assert ask("cbq-exporter", "enqueue", "--url", "https://x.invalid/", *config).returncode == 0
    health = image.about["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    assert ask(*health[1:]).returncode == 1  # nothing serves yet
    for _ in range(2):  # the second finds what the first has kept
        serving = image.command(volume, etc, *image.about["Entrypoint"], *image.about["Cmd"])
        with _running(serving) as daemon:
            until(lambda: ask(*health[1:]).returncode == 0, 60)
            shown = json.loads(ask("cbq-exporter", "status", "-o", "json", *config).stdout)
            lengths = shown["queues"][0]["lengths"]
            assert sum(lengths.values()) == 1, shown
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
    written = {path.name for path in volume.iterdir()}
    assert written == {"cbq-data"}


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
