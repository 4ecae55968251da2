"""Loading what a test writes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cbq_exporter.config import Config, load
from cbq_exporter.errors import ConfigError

Load = Callable[..., Config]
Refused = Callable[..., list[str]]

NOTHING: Mapping[str, str] = {}


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """The configuration that a text gives."""

    def load_text(text: str, environ: Mapping[str, str] = NOTHING) -> Config:
        source = tmp_path / "cbq.yaml"
        source.write_text(textwrap.dedent(text), encoding="utf-8")
        return load(source, environ).config

    return load_text


@pytest.fixture
def refused(loaded: Load, tmp_path: Path) -> Refused:
    """The lines that an operator reads about a text that is wrong, without the directory."""

    def problems(text: str, environ: Mapping[str, str] = NOTHING) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            loaded(text, environ)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in raised.value.problems]

    return problems
