"""What the pages say to type is typed, and what they show is what comes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.console import Console
from tests.docs.pages import read, steps
from tests.generated import ROOT
from tests.support.prometheus import free_port
from tests.support.servers import Server
from tests.support.skips import skip_or_fail

USUAL_URL = "redis://localhost:6379/1"


def test_the_tutorial(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        skip_or_fail("the curl program is needed")
    web, receiver = free_port(), free_port()
    shipped = (ROOT / "config.yaml").read_text("utf-8")
    (tmp_path / "config.yaml").write_text(shipped.replace("127.0.0.1:9847", f"127.0.0.1:{web}"))
    here = {
        "make run": "cbq-exporter serve",
        "127.0.0.1:9847": f"127.0.0.1:{web}",
        "127.0.0.1:8000": f"127.0.0.1:{receiver}",
        "'127.0.0.1', 8000": f"'127.0.0.1', {receiver}",
    }
    with Console(tmp_path, here) as console:
        console.follow(read(ROOT / "docs" / "tutorial.md"))


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_rescue_of_a_broken_queue(name: str, broken: Server, tmp_path: Path) -> None:
    with Console(tmp_path, {USUAL_URL: broken.url}) as console:
        console.follow(read(ROOT / name))


def test_adopting(broken: Server, tmp_path: Path) -> None:
    page = read(ROOT / "docs" / "adopting.md")
    for block in page.of("console"):
        for step in steps(block):
            if shown := re.fullmatch(r"cat (\S+)", step.command):
                (tmp_path / shown[1]).write_text("".join(f"{line}\n" for line in step.output))
    before = broken.client.keys()
    with Console(tmp_path, {USUAL_URL: broken.url}) as console:
        console.follow(page)
    assert broken.client.keys() == before


def test_the_backup(tmp_path: Path) -> None:
    with Console(tmp_path, {}) as console:
        console.follow(read(ROOT / "docs" / "operations.md"))
