"""The reference of all keys and rules, written from the models and from the rules' own words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from cbq_exporter.config import changes, outline, rules, schema
from cbq_exporter.config.example import written
from cbq_exporter.config.models import Config
from cbq_exporter.config.outline import Key
from cbq_exporter.config.section import Section

PATH = "docs/configuration.md"

_HEAD = f"""\
# Configuration

`cbq-exporter` reads one YAML file: the one given with `--config`, else the one that `CBQ_CONFIG` names, else
`config.yaml` in the current directory where it exists. Without a file every key has its default, and the daemon
works: it starts a private server for the queue. `CBQ_REDIS_URL` takes the place of `redis.url`, so that a password
need not stand in a file. A variable that is empty counts as not set.

`cbq-exporter check-config` names everything that is wrong at once, each with file, line, path, what was found and
what is allowed. Neither the Redis URL nor the value of a header is ever shown. Unknown keys are errors.

[`config.yaml`](../config.yaml) is an example with every key. Editors check and complete it with
[`{schema.PATH}`](../{schema.PATH}), which `cbq-exporter check-config --schema` prints: let the
first line name it, with a path or URL that reaches it.

The file is read as YAML 1.2 without aliases and tags, up to 1 MiB: `yes` and `on` are texts, not `true`, and a key
given twice is an error. Relative paths are relative to the current directory.

## Beside software that exists

To watch a queue that other workers send, without writing anything:

```yaml
redis:
  url: redis://localhost:6379/1
queues:
  - name: callbacks
    prefix: callback_queue
    mode: observe
```

To take over the sending with the rhythm that existing software has:

```yaml
redis:
  url: redis://localhost:6379/1
queues:
  - name: callbacks
    prefix: callback_queue
    mode: dispatch
    batch:
      size: 10
      max_delay: 5s
      min_interval: 500ms
      early:
        size: 3
        delay: 2s
      spread: 200ms
```

## Reload

SIGHUP (`systemctl reload`, where the unit has `ExecReload=kill -HUP $MAINPID`) and [`POST /-/reload`](api.md) read the
file again. All of it is taken over, or nothing: with anything wrong in it, the old configuration goes on,
`cbq_config_last_reload_successful` is 0, and the log (the answer, where it was asked for over HTTP) says what is wrong.
So does a file that is gone, empty, or no regular file.

- A queue that is as it was is not touched: it keeps its send lock, its connections and its batches.
- A queue with any other setting takes nothing more. Its sends in flight finish within `shutdown.grace`; what was not
  started goes back to the head in its order. Then it goes on with the new settings. The send lock is not free for
  others in between, and its counters go on.
- A queue that is new begins; one that is gone ends in the same way, frees its lock, and has no metrics any more. What
  is in its keys stays there.
- {" and ".join((", ".join(f"`{path}`" for path in changes.FIXED[:-1]), f"`{changes.FIXED[-1]}`"))} only count from a
  start on: a file with another value there is refused.

Several reloads follow each other. A reload is in the audit of each queue that it changes. The environment is that of
the start. Templates and secrets that a queue names are read again: where one holds something else, the queue is a
changed one. Other files are not compared: tokens are read for each request, `delivery.ca_file` and those of
`destinations[].tls` for new connections.

## Keys

`[]` stands for each entry of a list.

"""


def markdown() -> str:
    refused: list[Callable[..., object]] = [*rules.RULES, *rules.QUEUE_RULES]
    warned: list[Callable[..., object]] = [*rules.WARNINGS, *rules.QUEUE_WARNINGS]
    lines = [
        "| key | what it may be | default | meaning |",
        "|---|---|---|---|",
        *_rows(Config, ""),
        "",
        "## What is refused",
        "",
        *(_rule(rule) for rule in refused),
        "",
        "## What is warned about",
        "",
        *(_rule(rule) for rule in warned),
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _rows(section: type[Section], path: str) -> Iterator[str]:
    for key in outline.keys(section):
        here = f"{path}{key.name}"
        inner = f"{here}[]." if key.is_list else f"{here}."
        mapping = "a list of mappings" if key.is_list else "a mapping"
        kind = mapping if key.section else key.allowed
        if key.nullable:
            kind += ", or null"
        yield f"| `{here}` | {_cell(kind)} | {_default(key)} | {_cell(' '.join(key.meaning.split()))} |"
        if key.section:
            yield from _rows(key.section, inner)


def _default(key: Key) -> str:
    if key.required:
        return "required"
    if key.section is None or key.nullable:
        return f"`{written(key.default)}`"
    return "one named `callbacks`" if key.name == "queues" else "`[]`" if key.is_list else ""


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("`", "\\`").replace("_", "\\_")


def _rule(rule: Callable[..., object]) -> str:
    return f"- {' '.join((inspect.getdoc(rule) or '').split())}"
