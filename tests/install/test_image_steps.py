"""The Dockerfile's steps, one by one and without a builder: so that a broken one is seen where nothing can build it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.install.dockerfile import Workshop, stages, words
from tests.support.daemons import until
from tests.support.skips import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]
OWN = ("/opt/cbq-exporter", "/src", "/root-of-image", "/etc/cbq-exporter", "/var/lib/cbq-exporter")
REVISION = "89abcdef0123456789abcdef0123456789abcdef"


def instead(step: str) -> str | None:
    """The packages are those of this machine. What takes the files of Debian's for the image's root is only read."""
    if "apt-get" in step:
        return None
    return step.replace("deploy/container/make-root.sh", "sh -n deploy/container/make-root.sh")


@pytest.mark.slow
def test_each_step_works_and_what_they_make_serves(tmp_path: Path) -> None:
    if shutil.which("strip") is None or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        skip_or_fail("Linux with GNU's C library and the strip program are needed")
    build, final = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert final.base == "scratch"
    workshop = Workshop(tmp_path, ROOT, OWN, instead)
    base_python = Path(sys.base_prefix) / "bin"
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith(("CBQ_", "PYTHON", "VIRTUAL"))
    }
    environment["PATH"] = f"{base_python}:{os.environ['PATH']}"
    try:
        for stage in (build, final):
            workshop.follow(stage, {"CBQ_REVISION": REVISION}, environment)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.cmd}: {error.stderr[-2000:]}")

    made = tmp_path / "opt/cbq-exporter"
    assert not (made / "bin/pip").exists()
    assert not [file for file in made.rglob("*") if file.suffix in (".pyx", ".c", ".h")]
    assert f'revision="{REVISION}"' in final.settings["LABEL"].replace(
        "${CBQ_REVISION}", final.environment["CBQ_REVISION"]
    )
    assert final.settings["USER"] == "10001:10001"

    etc, volume = tmp_path / "etc/cbq-exporter", Path(workshop.here(final.workdir))
    assert final.settings["VOLUME"] == final.workdir
    etc.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (etc / "config.yaml").write_text(json.dumps({"web": {"listen_address": address}}))
    known = {name: workshop.here(text) for name, text in final.environment.items()}
    before = sorted(path for path in made.rglob("*"))

    def command(*written: str) -> list[str]:
        program, *rest = (workshop.here(word) for word in written)
        return [str(made / "bin" / program), *rest]

    health = command(*words(final.settings["HEALTHCHECK"]))
    assert subprocess.run(health, cwd=volume, env=known, timeout=60).returncode == 1  # nothing serves yet
    serving = command(*words(final.settings["ENTRYPOINT"]), *words(final.settings["CMD"]))
    daemon = subprocess.Popen(serving, cwd=volume, env=known, stdout=subprocess.DEVNULL)
    try:
        until(lambda: subprocess.run(health, cwd=volume, env=known, timeout=60).returncode == 0, 60)
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            assert f'revision="{REVISION[:12]}"' in answer.read().decode()
    finally:
        daemon.terminate()  # STOPSIGNAL
        assert daemon.wait(60) == 0
    assert final.settings["STOPSIGNAL"] == "SIGTERM"
    assert sorted(path for path in made.rglob("*")) == before  # the root may be read-only
    assert {path.name for path in volume.iterdir()} == {"cbq-data"}
