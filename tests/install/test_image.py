"""The container image, built and run as it is shipped: as nobody in particular, on a read-only root."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbq_exporter import __version__
from cbq_exporter.config import load
from tests.install.image import ROOT, USER, Image, image
from tests.support.daemons import until

MOST_BYTES = 150 * 1000 * 1000
REVISION = "0123456789abcdef0123456789abcdef01234567"
SLOWLY = 600.0  # seconds: an emulated machine takes its time


@pytest.mark.slow
def test_the_image(tmp_path: Path) -> None:
    with image(REVISION) as built:
        _is_small_and_says_what_it_is(built)
        _runs_on_a_read_only_root_and_keeps_what_it_has(built, tmp_path)


def _is_small_and_says_what_it_is(image: Image) -> None:
    files = [path.lstat() for path in image.root.rglob("*")]
    assert sum(file.st_blocks * 512 for file in {file.st_ino: file for file in files}.values()) < MOST_BYTES
    about = image.about
    assert about["User"] == f"{USER}:{USER}"
    assert about["StopSignal"] == "SIGTERM"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in about["Labels"].items()}
    assert labels["revision"] == REVISION
    assert {"title", "description", "licenses", "source", "documentation"} <= set(labels)
    shipped = load(image.root / "etc/cbq-exporter/config.yaml", {}).config.web
    assert shipped.host == ""  # reached from outside of the container
    assert about["ExposedPorts"].keys() == {f"{shipped.port}/tcp"}
    for program in ("sh", "bash", "apt-get", "pip"):  # nothing to go on with for whoever gets in
        for place in ("usr/bin", "opt/cbq-exporter/bin"):
            assert not (image.root / place / program).exists()
    assert not (image.root / "trusted.pem").exists()
    # What scanners go by.
    assert len(list((image.root / "var/lib/dpkg/status.d").iterdir())) > 10
    (site,) = (image.root / "opt/cbq-exporter/lib").glob("python3.*/site-packages")
    lock = (ROOT / "requirements/run.lock").read_text(encoding="utf-8")
    named = {f"{name.replace('-', '_')}-{version}" for name, version in re.findall(r"^([\w-]+)==([\w.]+)", lock, re.M)}
    described = {folder.name.lower().removesuffix(".dist-info") for folder in site.glob("*.dist-info")}
    assert described - named == {f"cbq_exporter-{__version__}"}


def _runs_on_a_read_only_root_and_keeps_what_it_has(image: Image, folder: Path) -> None:
    folder.chmod(0o755)
    volume, etc = folder / "volume", folder / "etc"
    volume.mkdir(mode=0o700)
    os.chown(volume, USER, USER)
    etc.mkdir()
    address = f"127.0.0.1:{_free_port()}"
    (etc / "config.yaml").write_text(json.dumps({"web": {"listen_address": address}}))

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        command = image.command(volume, etc, *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=SLOWLY, check=False)

    version = ask("cbq-exporter", "--version")
    assert version.stdout.endswith(f"(revision {REVISION[:12]})\n"), version.stderr
    enqueued = ask("cbq-exporter", "enqueue", "--url", "https://x.invalid/")
    assert enqueued.returncode == 0, enqueued.stderr
    health = image.about["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    assert ask(*health[1:]).returncode == 1  # nothing serves yet
    for _ in range(2):  # the second finds what the first has kept
        serving = image.command(volume, etc, *image.about["Entrypoint"], *image.about["Cmd"])
        with _running(serving) as daemon:
            until(lambda: ask(*health[1:]).returncode == 0, SLOWLY)
            shown = json.loads(ask("cbq-exporter", "status", "-o", "json").stdout)
            lengths = shown["queues"][0]["lengths"]
            assert sum(lengths.values()) == 1, shown
            with urllib.request.urlopen(f"http://{address}/metrics") as answer:
                assert f'revision="{REVISION[:12]}"' in answer.read().decode()
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(SLOWLY) == 0
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
