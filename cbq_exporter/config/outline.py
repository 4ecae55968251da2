"""All keys that a configuration can have, read off the models: for hints, for the example file and for the docs."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo

from cbq_exporter.config.kinds import Kind
from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Place
from cbq_exporter.config.section import Section


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``kinds`` are those of its values: one, two in a mapping (of name and value), none in a section.

    ``default`` is as a file would have it; ``example`` stands in for the default of a required key.
    """

    name: str
    meaning: str
    kinds: tuple[Kind, ...]
    section: type[Section] | None
    is_list: bool
    is_map: bool
    nullable: bool
    required: bool
    default: Any
    example: Any

    @property
    def allowed(self) -> str:
        """What may stand here, such as ``a whole number from 1 to 5``."""
        if self.is_list:
            return f"a list, each entry {self.allowed_entry}"
        return self.allowed_entry

    @property
    def allowed_entry(self) -> str:
        """What one entry of the list may be; the same as ``allowed`` where it is no list."""
        if self.section is not None:
            return f"a mapping with keys out of: {', '.join(self.section.model_fields)}"
        if self.is_map:
            return f"a mapping of {self.kinds[0].allowed}, to {self.kinds[1].allowed}"
        return self.kinds[0].allowed


@cache
def keys(section: type[Section]) -> tuple[Key, ...]:
    """In the order of the file."""
    return tuple(_key(name, field) for name, field in section.model_fields.items())


def find(place: Place) -> Key | None:
    """The key at ``place``, or the one whose entry stands there; None where no such key is known."""
    key = None
    section: type[Section] | None = Config
    for part in place:
        if isinstance(part, int):
            continue
        if section is None:
            break
        key = next((known for known in keys(section) if known.name == part), None)
        section = key.section if key else None
    return key


def section_at(place: Place) -> type[Section]:
    """The section at ``place``; the whole file where there is none."""
    key = find(place)
    return key.section if key and key.section else Config


@cache
def paths(section: type[Section] = Config, prefix: str = "") -> tuple[str, ...]:
    """Every path below, such as ``queues[].delivery.timeout``; those of sections before those in them."""
    found = []
    for key in keys(section):
        path = f"{prefix}{key.name}"
        found.append(path)
        if key.section:
            found += paths(key.section, f"{path}[]." if key.is_list else f"{path}.")
    return tuple(found)


def _key(name: str, field: FieldInfo) -> Key:
    parts = (field.annotation, *field.metadata)
    kinds = tuple(part for part in _leaves(parts) if isinstance(part, Kind))
    sections = [part for part in _leaves(parts) if isinstance(part, type) and issubclass(part, Section)]
    section = None if kinds else sections[0]
    origins = {typing.get_origin(part) for part in (field.annotation, *typing.get_args(field.annotation))}
    default = None if field.is_required() or section else field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        default = [kinds[0].write(value) for value in default]
    elif default is not None and not isinstance(default, dict):
        default = kinds[0].write(default)
    return Key(
        name=name,
        meaning=field.description or inspect.getdoc(section) or "",
        kinds=kinds,
        section=section,
        is_list=tuple in origins,
        is_map=dict in origins,
        nullable=type(None) in _leaves(parts),
        required=field.is_required(),
        default=default,
        example=field.examples[0] if field.examples else None,
    )


def _leaves(parts: tuple[Any, ...]) -> list[Any]:
    found = []
    for part in parts:
        inner = typing.get_args(part)
        found += _leaves(inner) if inner else [part]
    return found
