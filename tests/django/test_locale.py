"""The translations that are shipped: every message has one, and what Django reads is made from what people edit."""

from __future__ import annotations

import gettext
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import cbq_exporter.django
from tests.support.skips import skip_or_fail

FOLDER = Path(cbq_exporter.django.__file__).parent
LANGUAGES = ("en", "zh_Hans")
KEYWORDS = ("--keyword=_", "--keyword=ngettext:1,2", "--keyword=pgettext:1c,2")


@pytest.fixture(params=LANGUAGES)
def catalog(request: pytest.FixtureRequest) -> Path:
    """Without the suffix."""
    if shutil.which("msgfmt") is None:
        skip_or_fail("GNU gettext is needed")
    return FOLDER / "locale" / str(request.param) / "LC_MESSAGES" / "django"


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_message_is_translated(catalog: Path, tmp_path: Path) -> None:
    sources = [path for path in FOLDER.rglob("*.py") if "django.utils.translation" in path.read_text("utf-8")]
    run("xgettext", "-L", "Python", "--from-code", "UTF-8", *KEYWORDS, "-o", tmp_path / "now.pot", *sources)
    run("msgcmp", f"{catalog}.po", tmp_path / "now.pot")  # fails for what has no translation, or a fuzzy one
    assert identifiers(Path(f"{catalog}.po")) == identifiers(tmp_path / "now.pot")


def test_what_is_read_is_made_from_what_is_edited(catalog: Path, tmp_path: Path) -> None:
    """Otherwise: msgfmt -o django.mo django.po."""
    run("msgfmt", "--check-format", "-o", tmp_path / "now.mo", f"{catalog}.po")
    assert messages(Path(f"{catalog}.mo")) == messages(tmp_path / "now.mo")


def identifiers(catalog: Path) -> set[str]:
    """Whatever way their lines are wrapped."""
    text = re.sub(r'"\n"', "", catalog.read_text("utf-8"))
    return set(re.findall(r'^msgid "(.+)"$', text, re.MULTILINE))


def messages(catalog: Path) -> dict[object, str]:
    with catalog.open("rb") as file:
        found: dict[object, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return {name: text for name, text in found.items() if name}
