"""From a file and the environment to a configuration that holds, or to everything that is wrong with it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cbq_exporter.config import document, rules
from cbq_exporter.config.document import Document, DocumentError
from cbq_exporter.config.kinds import WRITTEN, WRONG
from cbq_exporter.config.models import Config
from cbq_exporter.config.places import Finding, Place, is_within, shown, shown_value
from cbq_exporter.errors import ConfigError, Problem

USUAL_FILE = Path("config.yaml")

_REDIS_URL: Place = ("redis", "url")
_MOST_PROBLEMS = 100  # what is shown of a file that is no configuration at all
_MOST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """``source`` is the file that was read; None where there is none and the defaults hold."""

    config: Config
    source: Path | None


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """``path``, else the file that CBQ_CONFIG names, else ./config.yaml where it exists, else the defaults.

    CBQ_REDIS_URL takes the place of ``redis.url``. An empty variable counts as none. Raises ConfigError.
    """
    source = path or _usual_source(environ)
    written = Document({}) if source is None else _read(source)
    # Secrets that come from files end with a newline more often than not.
    return Loaded(_validated(written, source, environ.get("CBQ_REDIS_URL", "").strip()), source)


def from_mapping(written: Mapping[str, Any], shown_as: str) -> Config:
    """What a program has in the place of a file, in the same words; ``shown_as`` names it in messages.

    Raises ConfigError.
    """
    return _validated(Document(_plain(written)), Path(shown_as), "")


def _plain(value: Any) -> Any:
    """As a file would have it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _usual_source(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("CBQ_CONFIG", "")
    if named:
        return Path(named)
    return USUAL_FILE if os.path.lexists(USUAL_FILE) else None


def _read(source: Path) -> Document:
    try:
        with source.open("rb") as file:
            return document.read(file.read(document.MAX_BYTES + 1))
    except DocumentError as error:
        problem = Problem(_file(source, error.line), "YAML", str(error), "must be YAML that can be read")
    except FileNotFoundError:
        problem = Problem(str(source), "file", "nothing there", "must be the path of a YAML file")
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(
            str(source), "file", f"an error when reading it ({reason})", "must be a file that can be read"
        )
    raise ConfigError((problem,))


def _validated(written: Document, source: Path | None, override: str) -> Config:
    data = _with_redis_url(written.data, override) if override else written.data
    config, details = _try(data)
    wrong = [_finding(detail, with_hint=count < _MOST_PROBLEMS) for count, detail in enumerate(details)]
    # An alias was read as null; that it is not allowed has been said.
    unread = {finding.place for finding in written.findings}
    found = [*written.findings, *(one for one in wrong if one.place not in unread or one.found != "null")]
    faulty = {finding.place for finding in found}
    judged = config or _usable_part(data)
    broken = rules.findings(judged) if judged else ()
    found += [one for one in broken if not any(is_within(place, faulty) for place in (one.place, *one.others))]
    if config is None or found:
        raise ConfigError(_problems(found, written, source, override))
    return config


def _with_redis_url(data: Any, url: str) -> Any:
    if not isinstance(data, dict):
        return data
    section = data.get("redis")
    if section is not None and not isinstance(section, dict):
        return data
    return {**data, "redis": {**(section or {}), "url": url}}


# --- from pydantic's errors to ours --------------------------------------------------------------


def _try(data: Any) -> tuple[Config | None, list[Any]]:
    """The configuration, or pydantic's details of what is wrong in the fields of ``data``."""
    try:
        return Config.model_validate(data, context=WRITTEN), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    # A list whose entries are all wrong is called too short as well.
    return None, [detail for detail in details if detail["type"] != "too_short" or not detail["input"]]


def _place(detail: Any) -> Place:
    return tuple(part for part in detail["loc"] if part != "[key]")


def _finding(detail: Any, *, with_hint: bool) -> Finding:
    place = _place(detail)
    kind, value = detail["type"], detail["input"]
    if kind == WRONG:
        return Finding(place, shown_value(value, place), detail["msg"])
    if kind == "extra_forbidden":
        return Finding(place, "an unknown key", _hint(place) if with_hint else "leave it out")
    from cbq_exporter.config import outline  # only where something is wrong: commands are to be quick

    key = outline.find(place)
    if key is None:
        allowed = f"a mapping with keys out of: {', '.join(Config.model_fields)}"
    else:
        allowed = key.allowed_entry if place and isinstance(place[-1], int) else key.allowed
    if kind == "missing":
        return Finding(place, "nothing", f"must be given: {allowed}")
    if kind == "too_short":
        return Finding(place, "an empty list", "must have at least one entry")
    return Finding(place, shown_value(value, place), f"must be {allowed}")


def _hint(place: Place) -> str:
    """What may have been meant by an unknown key."""
    import difflib

    from cbq_exporter.config import outline

    around, name = place[:-1], str(place[-1])
    known = tuple(outline.section_at(around).model_fields)
    near = difflib.get_close_matches(name[:60].lower().replace("-", "_"), known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    elsewhere = [path for path in outline.paths() if path.rpartition(".")[2] == name]
    if 0 < len(elsewhere) <= 3:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"known here: {', '.join(known)}"


# --- rules are checked on what is left when wrong values are taken out ---------------------------


def _usable_part(data: Any) -> Config | None:
    """``data`` with defaults in the place of what is wrong, so that the rest can be judged as well."""
    data = copy.deepcopy(data) if isinstance(data, dict) else {}
    for _ in range(_MOST_ROUNDS):
        config, details = _try(data)
        if config is not None:
            return config
        holders = [_holder(data, _place(detail)) for detail in details]  # all are found before one is taken out
        for holder, name in holders:
            holder.pop(name, None)
        _name_all_queues(data)
    return None


def _holder(data: dict[str, Any], place: Place) -> tuple[dict[str, Any], str]:
    """The mapping and the key in it to take out. A list goes as a whole, except that of the queues."""
    holder, name = data, ""
    at: Any = data
    for part in place:
        if isinstance(at, dict) and part in at:
            holder, name, at = at, str(part), at[part]
        elif isinstance(at, list) and isinstance(part, int):
            at = at[part]
            if holder is data and name == "queues":
                holder, name = (at, "") if isinstance(at, dict) else ({}, "")
        else:
            break
    return holder, name


def _name_all_queues(data: dict[str, Any]) -> None:
    """Stands in for queues that are no mapping or have no name; what is found there is not shown."""
    queues = data.get("queues")
    if isinstance(queues, list):
        for position, queue in enumerate(queues):
            stand_in = {"name": f"queue-{position}"}
            queues[position] = {**stand_in, **queue} if isinstance(queue, dict) else stand_in


# --- from findings to problems -------------------------------------------------------------------


def _problems(found: Iterable[Finding], written: Document, source: Path | None, override: str) -> tuple[Problem, ...]:
    """In the order of the file."""
    lined = [(written.line(finding.place) or 0, finding) for finding in found]
    lined.sort(key=lambda pair: pair[0])
    problems = []
    for line, finding in lined[:_MOST_PROBLEMS]:
        if override and finding.place == _REDIS_URL:
            problems.append(Problem("environment", "CBQ_REDIS_URL", finding.found, finding.allowed))
        else:
            problems.append(Problem(_file(source, line), shown(finding.place), finding.found, finding.allowed))
    if len(lined) > _MOST_PROBLEMS:
        more = f"{len(lined) - _MOST_PROBLEMS} more problems"
        problems.append(Problem(_file(source, None), "top level", more, "must be a configuration of cbq-exporter"))
    return tuple(problems)


def _file(source: Path | None, line: int | None) -> str:
    if source is None:
        return "defaults"
    return f"{source}:{line}" if line else str(source)
