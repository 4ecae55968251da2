"""The help of every command: it is there, fits a terminal of 80 columns, and is what the documentation shows."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from cbq_exporter.cli import reference
from cbq_exporter.cli.main import app
from tests.generated import DOCUMENTS, ROOT

PATHS = [context.command_path.split()[1:] for context in reference.contexts()]


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_help_is_there_and_fits(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="cbq-exporter", terminal_width=reference.COLUMNS)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {' '.join(['cbq-exporter', *words])} ")
    assert max(len(line) for line in result.stdout.splitlines()) <= reference.COLUMNS
    undescribed = re.findall(r"^  -\S.*\n(?=  -|\n|$)", re.sub(r"\n {5,}", " ", result.stdout), re.MULTILINE)
    assert [line for line in undescribed if not re.search(r"  +[A-Z$]", line.strip())] == []
    assert f"## {' '.join(['cbq-exporter', *words])}\n\n```text\n{result.stdout}```\n" in reference.markdown()


def test_the_page_is_as_the_code_writes_it() -> None:
    assert (ROOT / reference.PATH).read_text() == DOCUMENTS[reference.PATH](), "run `make docs`"
    assert len(PATHS) > 10
