"""The example file, written from the models: every key with its default and its meaning."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from cbq_exporter.config import outline, schema
from cbq_exporter.config.models import Config
from cbq_exporter.config.outline import Key
from cbq_exporter.config.section import Section

PATH = "config.yaml"

_WIDTH = 110
_BARE = re.compile(
    r"[A-Za-z./][A-Za-z0-9_./-]*"  # words and paths
    r"|[0-9]+(\.[0-9]+)?(ms|s|m|h|d|B|KiB|MiB|GiB)"
    r"|([0-9]{1,3}\.){3}[0-9]{1,3}/[0-9]+"  # networks
)
_WORDS_OF_YAML = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})

# The first line of the shipped file. Whoever has only the program has no docs beside it.
_WITH_SCHEMA = f"# yaml-language-server: $schema={schema.PATH}"
_WITHOUT_SCHEMA = """\
# For an editor to check and complete this file, write its schema beside it, and as its first line the second of these:
#   cbq-exporter check-config --schema > config.schema.json
#   # yaml-language-server: $schema=config.schema.json"""

_HEAD = """\
#
# The configuration of cbq-exporter: every key, with its default. A key that is left out has the same default.
# Durations are written like 500ms, 1.5s, 5m, 24h or 30d, sizes like 64KiB or 16MiB.
#
#   cbq-exporter check-config               says what is wrong with this file, all at once
#   cbq-exporter explain configuration.md   is the reference: what each key may be, and which rules hold between them
#
# CBQ_CONFIG names another file, CBQ_REDIS_URL takes the place of redis.url.
"""

_Said = Mapping[str, tuple[Any, str]]  # by path: a value, and why

# What the shipped file says in other words than the defaults do.
_WRITTEN: _Said = {
    "queues[].name": (Config().queues[0].name, ""),
    "queues[].delivery.egress.allow": (
        ["127.0.0.0/8", "::1/128"],
        """The default is []. These two let receivers on this machine be reached, to try things out:
        remove them in production.""",
    ),
}


def example(answers: Mapping[str, Any] | None = None) -> str:
    """The shipped file; or one for somebody whose ``answers`` take the place of what that says, by path, such as
    ``queues[].mode``.
    """
    said = {**_WRITTEN, **{path: (value, "") for path, value in (answers or {}).items()}}
    lines = [f"{_WITH_SCHEMA if answers is None else _WITHOUT_SCHEMA}\n{_HEAD}"]
    for line in _section(Config, "", 0, said):
        if line or lines[-1]:
            lines.append(line)
    return "\n".join(lines) + "\n"


def written(value: Any) -> str:
    """A value as YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(written(entry) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(name)}: {written(entry)}' for name, entry in value.items())}}}"
    text = str(value)
    if isinstance(value, int | float) or (_BARE.fullmatch(text) and text.lower() not in _WORDS_OF_YAML):
        return text
    return json.dumps(text)


def _section(section: type[Section], path: str, depth: int, said: _Said) -> Iterator[str]:
    """Blank lines set off what is more than one line, and stand nowhere at the beginning."""
    after_block = False
    for position, key in enumerate(outline.keys(section)):
        is_block = key.section is not None
        if position and (depth == 0 or is_block or after_block):
            yield ""
        yield from _key(key, f"{path}{key.name}", depth, said)
        after_block = is_block


def _key(key: Key, path: str, depth: int, said: _Said) -> Iterator[str]:
    indent = "  " * depth
    yield from _comment(_explained(key), indent)
    if key.section is None:
        value, why = said.get(path, (key.default, ""))
        yield from _comment(why, indent)
        yield f"{indent}{key.name}: {written(value)}"
    elif path == "queues":
        yield f"{indent}{key.name}:"
        first, *rest = _section(key.section, f"{path}[].", depth + 2, said)
        yield f"{indent}  - {first.lstrip()}"
        yield from rest
    elif key.nullable or key.is_list:
        yield f"{indent}{key.name}: {'null' if key.nullable else '[]'}"
        yield from _absent(key.section, indent, dash="- " if key.is_list else "  ")
    else:
        yield f"{indent}{key.name}:"
        yield from _section(key.section, f"{path}.", depth + 1, said)


def _absent(section: type[Section], indent: str, dash: str) -> Iterator[str]:
    """The keys of what is not there by default, behind comment signs."""
    rows = list(_rows(section, ""))
    width = max(len(text) for text, _ in rows)
    for text, key in rows:
        yield f"{indent}# {dash}{text.ljust(width)}   # {_explained(key)}"
        dash = "  "


def _rows(section: type[Section], indent: str) -> Iterator[tuple[str, Key]]:
    for key in outline.keys(section):
        if key.section is None:
            yield f"{indent}{key.name}: {written(key.example or key.default)}", key
        else:
            yield f"{indent}{key.name}:", key
            yield from _rows(key.section, f"{indent}  ")


def _explained(key: Key) -> str:
    """The meaning, and what may be written where the default does not show it."""
    if key.section or " yet" in key.meaning:
        return key.meaning
    words = key.kinds[0].schema.get("enum", ())
    if not all(str(word) in key.meaning for word in words):
        return f"{key.meaning} One of {', '.join(words)}."
    if key.nullable and "such as" in key.kinds[0].allowed:
        return f"{key.meaning} Or {key.kinds[0].allowed}."
    return key.meaning


def _comment(text: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=lead, subsequent_indent=lead)
