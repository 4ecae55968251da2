"""The image for linux/arm64: each package that it installs is there as a wheel, so that nothing has to be compiled.

It was built and run emulated, by hand: CBQ_TESTS_IMAGE_ARCHITECTURE, see image.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "requirements/run.lock"
PYTHON = "3.11"  # Debian 12's
GLIBC = 36  # 2.36, Debian 12's
OLDEST_GLIBC = 17  # the oldest that wheels for this machine are built for


def test_all_that_the_lock_names_is_there_as_a_wheel(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(GLIBC, OLDEST_GLIBC - 1, -1)]
    python = [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:"]
    nothing_is_installed = ["--dry-run", "--ignore-installed", f"--target={tmp_path}/none", f"--report={report}"]
    command = [sys.executable, "-m", "pip", "install", "-q", *platforms, *python, *nothing_is_installed]
    done = subprocess.run(
        [*command, "--require-hashes", "-r", str(LOCK)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = [one["download_info"]["url"].rpartition("/")[2] for one in json.loads(report.read_text())["install"]]
    compiled = [file for file in files if not file.endswith("-none-any.whl")]
    assert len(compiled) > 10
    assert all(file.endswith("_aarch64.whl") for file in compiled)
