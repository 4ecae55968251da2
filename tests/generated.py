"""The generated documents: ``python -m tests.generated`` says which are out of date, ``--write`` writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cbq_exporter.cli import reference as commands
from cbq_exporter.config import example, reference, schema
from cbq_exporter.metrics import page
from cbq_exporter.store import keys_page as keys
from cbq_exporter.web import openapi
from monitoring import dashboards
from monitoring import write as rule_files

ROOT = Path(__file__).resolve().parent.parent

DOCUMENTS: Mapping[str, Callable[[], str]] = {
    example.PATH: example.example,
    schema.PATH: schema.schema,
    reference.PATH: reference.markdown,
    page.PATH: page.markdown,
    keys.PATH: keys.markdown,
    commands.PATH: commands.markdown,
    openapi.PATH: openapi.json,
    openapi.PAGE: openapi.markdown,
    rule_files.RECORDING_RULES: rule_files.recording_rules,
    rule_files.ALERTING_RULES: rule_files.alerting_rules,
    rule_files.KUBERNETES_RULES: rule_files.kubernetes_rules,
    **dashboards.FILES,
}


def stale() -> list[str]:
    """The documents, relative to the root, that are not what the code would write."""
    return [name for name, text in DOCUMENTS.items() if _current(ROOT / name) != text()]


def write() -> list[str]:
    """Bring all up to date; returns those that were not."""
    written = stale()
    for name in written:
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOCUMENTS[name](), encoding="utf-8")
    return written


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        for name in write():
            print(f"wrote {name}")
        return 0
    if arguments:
        print("usage: python -m tests.generated [--write]", file=sys.stderr)
        return 2
    outdated = stale()
    for name in outdated:
        print(f"{name} is out of date: run `make docs`", file=sys.stderr)
    return 1 if outdated else 0


def _current(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
