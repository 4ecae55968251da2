"""Whatever is written: it loads or it is told what is wrong, in bounded time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cbq_exporter.config import Config, document, load, outline, rules, schema, warnings
from cbq_exporter.config.document import DocumentError
from cbq_exporter.errors import ConfigError
from tests.generated import ROOT

LOADERS = [yaml.SafeLoader] + ([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])
SCHEMA = jsonschema.Draft202012Validator(json.loads(schema.schema()))
SHIPPED = (ROOT / "config.yaml").read_text()
quickly = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.sampled_from(
    [
        *{key.rpartition(".")[2] for key in outline.paths()},
        *(
            "null",
            "true",
            "1",
            "-1",
            "0.5",
            "1e999",
            ".nan",
            "10s",
            "0",
            "0s",
            "1MiB",
            "5/s",
            "data",
            "item",
            "observe",
        ),
        *(
            "redis://h",
            "rediss://:p@h:1/0?db=1",
            "unix:///s",
            "redis://[::1",
            ":0",
            "127.0.0.1:1",
            "10.0.0.0/8",
            "::/0",
        ),
        *("!!python/object:os.system", "&a", "*a", "<<", "2024-99-99", "1:1:1:1", "0o17", "010", "%YAML 1.1", "---"),
    ]
)
text = st.one_of(words, st.text(max_size=12))
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)


def section(of: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings of the right keys to values that are often right."""

    def value(key: outline.Key) -> st.SearchStrategy[Any]:
        usual: st.SearchStrategy[Any] = st.just(key.example if key.required else key.default)
        if key.section:
            usual = section(key.section)
            usual = st.lists(usual, max_size=2) if key.is_list else usual
        elif key.name == "name":
            usual = st.sampled_from(["a", "b"])
        return st.integers(0, 19).flatmap(lambda die: words if die == 0 else values if die == 1 else usual)

    keys = outline.keys(of)
    return st.fixed_dictionaries(
        {key.name: value(key) for key in keys if key.required},
        optional={key.name: value(key) for key in keys if not key.required},
    )


def attempt(content: bytes, directory: Path, environ: Mapping[str, str]) -> Config | None:
    source = directory / "any.yaml"
    source.write_bytes(content)
    try:
        return load(source, environ).config
    except ConfigError as error:
        told = [str(problem) for problem in error.problems]
    assert told
    assert all(line.isprintable() and len(line) < 1000 for line in told)
    return None


@quickly
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.one_of(text, st.sampled_from(list("[]{},:-?|>'\"#&*! \n\t")))).map(
            lambda parts: " ".join(parts).encode(errors="replace")
        ),
    ),
    st.one_of(st.just(""), text),
)
@example(b'"\\ud800"', "")
@example(b'"\\UFFFFFFFF": 1', "")
@example(b"%YAML 1." + b"9" * 5000 + b"\n--- a", "")
@example(b"a: " + b"9" * 5000, "")
@example(b"data_dir: \x00", "\ud800")
def test_any_bytes(tmp_path: Path, content: bytes, url: str) -> None:
    attempt(content, tmp_path, {"CBQ_REDIS_URL": url})
    for loader in LOADERS:
        with contextlib.suppress(DocumentError):
            json.dumps(document.read(content, loader=loader).data, ensure_ascii=False).encode()


@quickly
@given(section(Config))
def test_any_configuration(tmp_path: Path, data: dict[str, Any]) -> None:
    """What the program accepts, editors accept as well, and it breaks no rule."""
    config = attempt(yaml.safe_dump(data, allow_unicode=True).encode(errors="replace"), tmp_path, {})
    if config is not None:
        assert rules.check(config) == ()
        assert isinstance(warnings(config), tuple)
        assert 0 <= config.web.port <= 65535
        SCHEMA.validate(document.read((tmp_path / "any.yaml").read_bytes()).data)


@quickly
@given(st.data())
def test_any_damage_to_the_shipped_file(tmp_path: Path, data: st.DataObject) -> None:
    lines = SHIPPED.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["drop", "double", "value", "indent"]))
        line = lines[position]
        if kind == "drop":
            lines[position] = ""
        elif kind == "double":
            lines.insert(position, line)
        elif kind == "value":
            lines[position] = f"{line.partition(':')[0]}: {data.draw(words)}"
        else:
            lines[position] = f"  {line}"
    attempt("\n".join(lines).encode(), tmp_path, {})


BOMBS = {
    "laughs": "a: &a [x]\n"
    + "".join(f"{c}: &{c} [*{p},*{p},*{p}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True)),
    "deep flow": "[" * 500_000,
    "deep blocks": "- " * 500_000,
    "deep keys": "? " * 500_000,
    "deep mappings": "{a: " * 200_000,
    "many values": "[" + "a," * 500_000 + "]",
    "many unknown keys": "".join(f"key{number}: 1\n" for number in range(20_000)),
    "many wrong queues": "queues: [" + "{mode: x},\n" * 10_000 + "]",
    "many equal queues": "queues: [" + "{name: q},\n" * 10_000 + "]",
    "many wrong networks": "queues: [{name: q, delivery: {egress: {allow: [" + "x," * 40_000 + "]}}}]",
    "long number": "a: " + "9" * 1_000_000,
    "long sexagesimal": "a: " + "1:" * 500_000 + "1",
    "long name": "a" * 1_000_000 + ": 1",
    "long value": "data_dir: " + "a" * 1_000_000,
    "long url": "redis: {url: 'redis://" + "a" * 1_000_000 + "'}",
    "long quote": "'" * 1_000_001,
    "long tag": "!" * 1_000_000 + " a",
    "long fold": "a: >\n" + "\n" * 1_000_000 + " a",
    "zeros": "\0" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_takes_long(tmp_path: Path, name: str) -> None:
    before = time.process_time()
    attempt(BOMBS[name].encode(), tmp_path, {})
    assert time.process_time() - before < 5
