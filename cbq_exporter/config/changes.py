"""What differs between two configurations, and what of that a running daemon cannot take over."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from cbq_exporter.config.models import Config
from cbq_exporter.model import Mode

# The way to the store, and the sockets, on which everything hangs that runs; and series, which cannot be taken back.
FIXED = ("redis.url", "data_dir", "web.listen_address", "web.config_file", "metrics.destination_series_limit")


@dataclass(frozen=True, slots=True)
class Changes:
    """Queues by name; paths as in the file, without values, which may be secret.

    ``changed`` has the paths within each queue, "destinations" where a queue that sends has other receivers, and
    "files" where a template or a secret that it names holds something else now;
    ``settings`` those outside of queues.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    settings: tuple[str, ...]

    @property
    def need_restart(self) -> tuple[str, ...]:
        """The settings that only count from a start on."""
        return tuple(path for path in self.settings if path in FIXED)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.settings)


def between(old: Config, new: Config, other_files: Collection[str] = ()) -> Changes:
    """In the order of ``new``, in which the order of the queues is no change.

    ``other_files`` names queues whose templates or secrets hold something else.
    """
    before = {queue.name: queue for queue in old.queues}
    after = {queue.name: queue for queue in new.queues}
    of_all = ("destinations",) if old.destinations != new.destinations else ()

    def paths(name: str) -> tuple[str, ...]:
        own = (*_paths(before[name], after[name]), *(("files",) if name in other_files else ()))
        return (*own, *of_all) if after[name].mode is Mode.DISPATCH else own

    changed = {name: paths(name) for name in after if name in before}
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed={name: found for name, found in changed.items() if found},
        settings=tuple(path for path in _paths(old, new) if path != "queues"),
    )


def _paths(old: BaseModel, new: BaseModel, at: str = "") -> Iterator[str]:
    for name in type(new).model_fields:
        one, other = getattr(old, name), getattr(new, name)
        if one == other:
            continue
        if isinstance(one, BaseModel) and isinstance(other, BaseModel) and type(one) is type(other):
            yield from _paths(one, other, f"{at}{name}.")
        else:
            yield f"{at}{name}"
