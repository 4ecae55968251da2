"""``completion``: what shells are told, by the program itself and, where they are here, by the shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbq_exporter.cli.main import app


def script(shell: str) -> str:
    result = CliRunner().invoke(app, ["completion", shell], prog_name="cbq-exporter")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which the program is, by its own name."""
    program = tmp_path / "cbq-exporter"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cbq_exporter "$@"\n')
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_read_it(shell: str) -> None:
    text = script(shell)
    assert "_CBQ_EXPORTER_COMPLETE" in text
    found = shutil.which(shell)
    if found is not None:  # zsh and fish are not everywhere
        subprocess.run([found, "-n"], input=text, text=True, check=True, timeout=30)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("cbq-exporter heal", {"healthcheck"}),
        ("cbq-exporter dead re", {"retry"}),
        ("cbq-exporter status --inter", {"--interval"}),
        ("cbq-exporter init --mode d", {"dispatch"}),
        ("cbq-exporter recover -c two.yaml -q inv", {"invoices"}),
        ("cbq-exporter explain cbq_build_", {"cbq_build_info"}),
        ("cbq-exporter explain CbqTwo", {"CbqTwoLeaders"}),
    ],
)
def test_bash_completes(line: str, completed: set[str], path: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "two.yaml").write_text("queues: [{name: callbacks}, {name: invoices, prefix: i}]")
    words = line.split()
    ask = (
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_cbq_exporter_completion cbq-exporter; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "-c", f"{script('bash')}\n{ask}"],
        env={**os.environ, "PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == completed
