"""The tests of this folder with the other Djangos that are supported, each in an environment of its own.

The environments are kept in pytest's cache: the first time takes some ten seconds each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import django
import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
OLDEST = "4.2"
PYTHONS_OF_THE_NEWEST = ("3.14", "3.13", "3.12")

pytestmark = pytest.mark.slow


@pytest.fixture
def environments(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    return request.config.cache.mkdir("djangos")


def test_the_oldest(environments: Path) -> None:
    """It stands in front of the one that is installed; everything else is the same."""
    folder = environments / f"{OLDEST}-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "django").exists():
        install(sys.executable, f"django~={OLDEST}.0", "--no-deps", "--target", str(folder))
    assert version_in_tests(sys.executable, folder).startswith(f"{OLDEST}.")


def test_the_newest(environments: Path) -> None:
    """It needs a newer Python than ours may be, and then all that we need once more."""
    if django.VERSION >= (6,):
        return  # all the other tests run with it
    python = next(pythons(), None)
    if python is None:
        pytest.skip(f"the newest Django needs one of Python {', '.join(PYTHONS_OF_THE_NEWEST)}")
    folder = environments / f"newest-{Path(python).name}"
    own = str(folder / "bin" / "python")
    constraints, complete = folder / "constraints.txt", folder / "complete"
    locked = (REQUIREMENTS / "dev.lock").read_text("utf-8")
    if not complete.exists() or complete.read_text("utf-8") != locked:
        shutil.rmtree(folder, ignore_errors=True)
        run(python, "-m", "venv", str(folder))
        constraints.write_text("\n".join(re.findall(r"^[a-z0-9-]+==[^\\\n]+", locked, re.MULTILINE)))
        install(own, "--require-hashes", "-r", str(REQUIREMENTS / "run.lock"))
        install(own, "--constraint", str(constraints), "django", "django-redis", "pytest", "hypothesis")
        complete.write_text(locked)
    assert int(version_in_tests(own, ROOT).partition(".")[0]) >= 6


def pythons() -> Iterator[str]:
    """Those at hand that run the newest Django, the newest first: on the path, or installed beside ours."""
    for version in PYTHONS_OF_THE_NEWEST:
        beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}*/bin/python{version}"))
        for found in (shutil.which(f"python{version}"), *map(str, beside)):
            if (
                found is not None
                and subprocess.run([found, "-c", "import venv, sqlite3"], capture_output=True).returncode == 0
            ):
                yield found


def install(python: str, *what: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)


def version_in_tests(python: str, first_on_path: Path) -> str:
    """That of the Django with which all of the others in this folder pass."""
    environment = {"PYTHONPATH": str(first_on_path)}
    run(python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "tests/django", **environment)
    return run(python, "-c", "import django; print(django.__version__)", **environment).strip()


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-8000:]
    return done.stdout
