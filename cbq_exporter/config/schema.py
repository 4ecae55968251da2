"""The JSON schema of the file, for editors, written from the models."""

from __future__ import annotations

import inspect
import json
from typing import Any

from cbq_exporter.config import outline
from cbq_exporter.config.models import Config
from cbq_exporter.config.outline import Key
from cbq_exporter.config.section import Section

PATH = "docs/config.schema.json"


def schema() -> str:
    """Not stricter than the program, and without the rules between keys."""
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cbq-exporter configuration",
        **_section(Config),
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _section(section: type[Section]) -> dict[str, Any]:
    known = outline.keys(section)
    required = [key.name for key in known if key.required]
    return {
        # A section without any key left in it is null, and means its defaults.
        "type": "object" if required else ["object", "null"],
        "description": inspect.getdoc(section),
        "properties": {key.name: _key(key) for key in known},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _key(key: Key) -> dict[str, Any]:
    entry = _section(key.section) if key.section else dict(key.kinds[0].schema)
    if key.is_map:
        entry = {"type": "object", "additionalProperties": dict(key.kinds[1].schema)}
        entry["propertyNames"] = dict(key.kinds[0].schema)
    if key.is_list:
        entry = {"type": "array", "items": entry, **({"minItems": 1} if key.name == "queues" else {})}
    if key.nullable:
        entry = {"anyOf": [entry, {"type": "null"}]}
    described = {**entry, "description": key.meaning}
    if key.section is None and not key.required:
        described["default"] = key.default
    return described
