"""All pages: links lead somewhere, configurations are valid, queries and commands can be read by who reads them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml

from cbq_exporter.cli import options
from cbq_exporter.cli.main import app
from cbq_exporter.config import load
from cbq_exporter.config.models import Config
from tests.docs.pages import Block, Page, read, steps
from tests.generated import ROOT
from tests.support.prometheus import program

PAGES = [
    read(path)
    for path in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")],
        key=lambda path: path.relative_to(ROOT),
    )
]
# Those that other tests do not read line by line.
HERE = [
    page
    for page in PAGES
    if page.name in {"README.md", "README.zh-CN.md"}
    or page.path.stem in {"tutorial", "adopting", "operations", "guarantees", "comparison", "index"}
]

# Our commands of a line in a shell: at its beginning, after settings for the environment, or after a pipe.
_OURS = re.compile(r"(?:^|\| )(?:sudo (?:-u \S+ )?)?(?:\w+=\S+ )*(?:\S*/)?cbq-exporter ([^|;<>]+)")


def of(*languages: str, pages: Sequence[Page] = HERE) -> list[Block]:
    return [block for page in pages for block in page.blocks if block.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    wrong = [f"{page.name}:{line}: {target}" for line, target in page.links() if not _leads_somewhere(page, target)]
    assert wrong == []


def test_the_index_has_every_page() -> None:
    index = next(page for page in PAGES if page.name == "docs/index.md")
    linked = {target.partition("#")[0] for _, target in index.links()}
    assert {page.path.name for page in PAGES if page.path.parent == index.path.parent} - linked == {"index.md"}


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_configurations_are_valid(block: Block, tmp_path: Path) -> None:
    text: Mapping[str, Any] = yaml.safe_load(block.text.replace("…", "x"))
    assert text.keys() <= Config.model_fields.keys()
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(text))
    load(file, {})


def test_queries_can_be_read(tmp_path: Path) -> None:
    queries = [line for block in of("promql") for line in block.text.splitlines() if line]
    assert queries
    rules = [{"record": f"documented:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "documented", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", of("sh", "console", pages=PAGES), ids=lambda block: block.place)
def test_commands_exist(block: Block) -> None:
    text = block.text if block.language == "sh" else "\n".join(step.command for step in steps(block))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for line in text.splitlines():
        for command in _OURS.findall(line):
            _parse(shlex.split(command, comments=True))
        if target := re.match(r"make (\w+)", line):
            assert f"\n{target[1]}:" in (ROOT / "Makefile").read_text()


def test_commands_in_the_prose_exist() -> None:
    for page in HERE:
        for number, line in page.prose:
            for command in re.findall(r"`cbq-exporter ([^`…<]+)`", line):
                try:
                    _parse([word for word in shlex.split(command) if not word.isupper()])
                except click.MissingParameter:
                    pass
                except click.UsageError as error:
                    pytest.fail(f"{page.name}:{number}: {command}: {error}")


def test_the_readme_in_chinese_has_the_same_structure() -> None:
    english, chinese = (next(page for page in PAGES if page.name == name) for name in ("README.md", "README.zh-CN.md"))
    assert [level for level, _ in english.headings()] == [level for level, _ in chinese.headings()]
    assert [_without_comments(block) for block in english.blocks] == [_without_comments(one) for one in chinese.blocks]
    assert _targets(english) - {"README.zh-CN.md"} == _targets(chinese) - {"README.md"}
    assert _rows(english) == _rows(chinese)
    words = " ".join(line for _, line in chinese.prose)
    assert len(re.findall(r"[一-鿿]", words)) > 800


def _leads_somewhere(page: Page, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True
    name, _, anchor = unquote(target).partition("#")
    path = (page.path.parent / name).resolve() if name else page.path
    if not path.is_relative_to(ROOT) or not path.exists():
        return False
    return not anchor or (path.suffix == ".md" and anchor in read(path).anchors())


def _parse(words: list[str]) -> None:
    """Raises click.UsageError where there is no such command or option."""
    command: click.Command = app
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no command {name}")
        command = found
    try:
        command.make_context(command.name, words, obj=options.Run())
    except click.BadParameter as error:
        if "No such file" not in error.message:
            raise


def _without_comments(block: Block) -> tuple[str, str]:
    return block.language, re.sub(r" *#.*", "", block.text)


def _targets(page: Page) -> set[str]:
    return {target for _, target in page.links()}


def _rows(page: Page) -> int:
    """How many rows its tables have together."""
    return sum(line.startswith("|") for _, line in page.prose)
