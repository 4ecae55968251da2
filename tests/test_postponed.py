"""A module that is postponed is run when it is asked for something, once, and is then what it always is."""

from __future__ import annotations

import subprocess
import sys

import pytest

POSTPONED = """
import sys
from cbq_exporter import postponed
postponed.postpone("importlib.metadata", functions=["entry_points"])
from importlib import metadata
from importlib.metadata import entry_points
assert "email" not in sys.modules
"""
ASKED = {
    "a function of it": "assert metadata.version('cbq-exporter')",
    "one that was taken out of it": "assert entry_points(group='console_scripts').names",
    "its name for something": "from importlib.metadata import PackageNotFoundError",
}
THE_SAME = """
import importlib.metadata
assert "email" in sys.modules and importlib.metadata is metadata
assert metadata.entry_points(group="console_scripts") == entry_points(group="console_scripts")
try:
    metadata.nothing
except AttributeError:
    print("as it always is")
"""


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_it_is_run_when_it_is_asked(asked: str) -> None:
    assert _said(f"{POSTPONED}\n{asked}\n{THE_SAME}") == "as it always is\n"


def test_what_is_imported_already_stays_as_it_is() -> None:
    program = POSTPONED.replace("import sys\n", "import sys, importlib.metadata as metadata\n", 1)
    program = program.replace("""assert "email" not in sys.modules""", "")
    assert _said(f"{program}\n{THE_SAME}") == "as it always is\n"


def test_a_command_leaves_it_alone() -> None:
    program = """
import sys
from cbq_exporter.cli.running import configured
sys.modules.pop("importlib.metadata", None)  # an installation for development has it already
configured(None)
assert type(sys.modules["importlib.metadata"]).__name__ == "_Postponed"
print("left alone")
"""
    assert _said(program) == "left alone\n"


def _said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
