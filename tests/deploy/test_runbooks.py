"""Each alert has a page, each page an alert; what a page says to type can be typed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from cbq_exporter.cli import options
from cbq_exporter.cli.main import app
from monitoring.places import RUNBOOKS
from monitoring.rules import ALERTS
from tests.support.prometheus import Alertmanager, program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/runbooks"
PAGES = sorted(FOLDER.glob("*.md"))

HEADINGS = [
    "What it means",
    "What the user sees",
    "What the daemon does by itself",
    "How to look",
    "How to fix",
    "How to silence",
]


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert {page.stem for page in PAGES} == {alert.name for alert in ALERTS}
    assert {alert.runbook_url for alert in ALERTS} == {f"{RUNBOOKS}/{page.name}" for page in PAGES}


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/systemd/cbq-exporter.service"])
def test_other_addresses_of_the_repository_are_the_same(file: str) -> None:
    """Whoever publishes it elsewhere finds all of them by the first one."""
    repository = RUNBOOKS.removesuffix("/blob/main/docs/runbooks")
    addresses = re.findall(r"https://github\.com/[^\s\"]+", (ROOT / file).read_text())
    assert addresses
    for address in addresses:
        assert address.startswith(repository)
        assert (ROOT / address.removeprefix(repository).removeprefix("/blob/main").lstrip("/")).exists()


def test_the_command_in_each_alert_prints_its_page() -> None:
    """Also where the address leads nowhere: from a clone, or a private network."""
    for alert in ALERTS:
        program_name, *words = shlex.split(alert.runbook_command)
        assert program_name == "cbq-exporter"
        printed = CliRunner().invoke(app, words)
        assert (printed.exit_code, printed.stdout) == (0, (FOLDER / f"{alert.name}.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_pages_are_alike_and_their_commands_exist(page: Path) -> None:
    text = page.read_text()
    title, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    assert title == f"# {page.stem}\n\n"
    assert [section.partition("\n")[0] for section in rest] == HEADINGS
    assert all(section.partition("\n")[2].strip() for section in rest)
    for line in blocks(text, "sh"):
        program_name, *words = shlex.split(line)
        if program_name == "cbq-exporter":
            _parse(words)
        else:
            assert program_name == "amtool"
            assert f"alertname={page.stem}" in words
    for name in re.findall(r"\bCbq\w+", text):
        assert (FOLDER / f"{name}.md").exists()


def test_every_alert_can_be_silenced_as_its_page_says() -> None:
    lines = [line for page in PAGES for line in blocks(page.read_text(), "sh") if line.startswith("amtool ")]
    assert len(lines) == len(PAGES)
    with Alertmanager(yaml.safe_load("{route: {receiver: people}, receivers: [{name: people}]}")) as alertmanager:
        alertmanager.post(*(_fired(name) for name in {alert.name for alert in ALERTS}))
        assert len(alertmanager.alerts()) == len(PAGES)
        for line in lines:
            words = shlex.split(line.replace("http://localhost:9093", alertmanager.url))
            subprocess.run([program("amtool"), *words[1:]], check=True, capture_output=True, timeout=60)
        assert [one["labels"] for one in alertmanager.alerts() if not one["status"]["silencedBy"]] == []


def blocks(text: str, language: str) -> list[str]:
    """The lines of all code blocks of a language."""
    return [line for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def _fired(name: str) -> dict[str, str]:
    """An alert with the labels that the pages take for examples."""
    examples = {
        "job": "cbq-exporter",
        "queue": "callbacks",
        "instance": "cbq-exporter:9847",
        "task": "recover:callbacks",
        "destination": "api.example.com",
    }
    scope = min((alert.scope for alert in ALERTS if alert.name == name), key=len)
    return {"alertname": name} | {label: examples[label] for label in scope}


def _parse(words: list[str]) -> None:
    """Raises click.UsageError where there is no such command or option."""
    command: click.Command = app
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"no command {name}"
        command = found
    command.make_context(command.name, words, obj=options.Run())
