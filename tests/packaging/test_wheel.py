"""What is built: a wheel and a source distribution that work anywhere, and hold all that the program reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.daemons import until

ROOT = Path(__file__).resolve().parents[2]
REVISION = "fedcba9876543210fedcba9876543210fedcba98"
SOURCES = ("cbq_exporter", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def build(tree: Path, into: Path, kind: str, revision: str = "") -> Path:
    """By the same calls that pip makes, without the network."""
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    environment = {**os.environ, "CBQ_REVISION": revision}
    done = subprocess.run(
        [sys.executable, "-c", code, str(into)], cwd=tree, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that was built from it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    sdist = build(tree, out, "sdist", REVISION)
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    return sdist, build(out / sdist.name.removesuffix(".tar.gz"), out, "wheel")


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, as the wheel installs it into an environment of its own; what it depends on is borrowed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(built[1])], check=True, timeout=120)
    # Only a directory on the path: the editable installation in there is not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin/cbq-exporter"


def run(program: Path, *words: str) -> str:
    """From the root directory."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("CBQ_", "PYTHONPATH"))}
    done = subprocess.run([program, *words], cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_that_the_program_reads_is_in_the_wheel(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    package = ROOT / "cbq_exporter"
    read = [
        file for file in package.rglob("*") if file.is_file() and file.suffix not in (".pyc", ".pyi", ".po", ".pot")
    ]
    for file in read:
        assert str(file.relative_to(ROOT)) in names
    for shipped, folder in {"pages": "docs", "runbooks": "docs/runbooks"}.items():
        for page in (ROOT / folder).glob("*.md"):
            assert f"cbq_exporter/{shipped}/{page.name}" in names
    assert not [name for name in names if not name.startswith(("cbq_exporter/", "cbq_exporter-"))]


def test_the_revision_goes_from_the_source_into_the_wheel(installed: Path) -> None:
    assert run(installed, "--version").endswith(f"(revision {REVISION[:12]})\n")


def test_it_serves_from_any_directory(installed: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"data_dir: {tmp_path}/data\nweb: {{listen_address: '127.0.0.1:0'}}\n")
    assert "# CbqStuckItems" in run(installed, "explain", "CbqStuckItems")
    assert "user cbq-observe on" in run(installed, "explain", "redis-acl.md")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("CBQ_", "PYTHONPATH"))}
    said = tmp_path / "out"
    with said.open("wb") as out:
        command = [str(installed), "serve", "-c", str(config)]
        daemon = subprocess.Popen(command, cwd="/", env=environment, stdout=out, stderr=subprocess.DEVNULL)
    try:
        until(lambda: re.search(r"Metrics: http", said.read_text()), 60)
        run(installed, "enqueue", "--url", "https://x.invalid/", "-c", str(config))  # a script in Lua runs
        assert '"queue"' in run(installed, "status", "-o", "json", "-c", str(config))
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0
