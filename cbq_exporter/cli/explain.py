"""``explain``: the documentation of anything that the program prints."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbq_exporter.cli import options, output
from cbq_exporter.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cbq_exporter.metrics.catalogue import Definition

_LINE = 80  # columns at most: longer lines are hard to read
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)\Z")


@dataclass(frozen=True, slots=True)
class Explanation:
    """``kind`` is what the topic is. ``text`` is Markdown where it is a page, else lines to be shown."""

    topic: str
    kind: str
    text: str


def _complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(topic) for _, topics in _topics() for topic in topics if topic.startswith(begun)]


@click.command
@click.argument("topic", required=False, shell_complete=_complete)
@options.output
@options.debug
def explain(topic: str | None, as_json: bool) -> int:
    """Explain a metric, an alert, a reason, a key of the configuration or of Redis, or any other word that the program
    prints; or show a page of the documentation.

    \b
    cbq-exporter explain cbq_stuck_callbacks
    cbq-exporter explain CbqStuckItems
    cbq-exporter explain max_attempts
    cbq-exporter explain queues.recovery.stuck_after
    cbq-exporter explain redis-acl.md

    Without TOPIC it lists all that can be explained.
    """
    if topic is None:
        _list(as_json)
        return 0
    # Redis writes its words in capitals, and messages quote them: (OOM command not allowed …).
    name = topic.strip()
    found = _find(name) or _find(name.lower()) or list(_documents(f"{name}.md"))
    if not found:
        raise UsageError(f"nothing is known about {output.text(topic)!r}{_meant(topic)}")
    if as_json:
        output.print_json([{"topic": one.topic, "kind": one.kind, "text": one.text} for one in found])
    else:
        click.echo("\n\n".join(_render(one) for one in found))
    return 0


def _list(as_json: bool) -> None:
    topics = list(_topics())
    if as_json:
        output.print_json(dict(topics))
        return
    click.echo("\n\n".join("\n  ".join([output.paint(kind, bold=True), *names]) for kind, names in topics))


def _render(one: Explanation) -> str:
    if one.kind in (_ALERT, _PAGE):
        return one.text.strip()
    width = min(output.columns(), _LINE)
    lines = [output.paint(f"{one.topic} ({one.kind})", bold=True)]
    for line in one.text.splitlines():
        lines += textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


# --- what there is -------------------------------------------------------------------------------

_METRIC, _ALERT, _PAGE = "metric", "alert", "page of the documentation"
_KEY, _STORED = "key of the configuration", "key in Redis"


def _topics() -> Iterator[tuple[str, list[str]]]:
    """Of each kind, in the order of its own documentation."""
    from cbq_exporter.cli import words
    from cbq_exporter.config import outline
    from cbq_exporter.metrics import catalogue
    from cbq_exporter.store import keys_page

    yield _METRIC, [one.full_name for one in catalogue.CATALOGUE]
    yield _ALERT, sorted(_runbooks())
    for one in words.SETS:
        yield one.what, list(one.meanings)
    yield _KEY, [path.replace("[]", "") for path in outline.paths()]
    yield _STORED, [one.name for one in keys_page.described()]
    yield _PAGE, sorted(_pages())


def _find(topic: str) -> list[Explanation]:
    """All that is called so: a word may have several meanings."""
    return [*_metrics(topic), *_alerts(topic), *_words(topic), *_keys(topic), *_stored(topic), *_documents(topic)]


def _meant(topic: str) -> str:
    import difflib

    known = [name for _, names in _topics() for name in names]
    near = difflib.get_close_matches(topic[:100], known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "; cbq-exporter explain lists what is"


def _metrics(topic: str) -> Iterator[Explanation]:
    from cbq_exporter.metrics import catalogue

    name = topic.removeprefix(catalogue.PREFIX)
    for one in catalogue.CATALOGUE:
        if name == one.name or (one.buckets and _OF_HISTOGRAMS.sub("", name) == one.name):
            yield Explanation(one.full_name, _METRIC, _metric_text(one))


def _metric_text(one: Definition) -> str:
    lines = [one.help, one.why, f"Type: {one.type}."]
    if one.labels:
        lines.append(f"Labels: {', '.join(one.labels)}.")
    if one.buckets:
        lines.append(f"Buckets: {', '.join(f'{bound:g}' for bound in one.buckets)}.")
    return "\n".join(lines)


def _alerts(topic: str) -> Iterator[Explanation]:
    for name, page in _runbooks().items():
        if name.lower() in (topic.lower(), f"cbq{topic.lower()}"):
            yield Explanation(name, _ALERT, page.read_text("utf-8"))


def _runbooks() -> dict[str, Traversable]:
    """The page of each alert."""
    return {name.removesuffix(".md"): page for name, page in _markdown("runbooks", "docs/runbooks").items()}


def _documents(topic: str) -> Iterator[Explanation]:
    """By the name of the file, as it is written where the program or a page refers to it."""
    name = topic.removeprefix("docs/").partition("#")[0]
    if name in (pages := _pages()):
        yield Explanation(name, _PAGE, pages[name].read_text("utf-8"))


def _pages() -> dict[str, Traversable]:
    return _markdown("pages", "docs")


def _markdown(package: str, repository: str) -> dict[str, Traversable]:
    """By their names. A build puts them into the package; in the repository they are documents."""
    folder = resources.files("cbq_exporter") / package
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[2] / repository
    if not folder.is_dir():
        return {}
    return {page.name: page for page in folder.iterdir() if page.name.endswith(".md")}


def _words(topic: str) -> Iterator[Explanation]:
    from cbq_exporter.cli import words

    for one in words.SETS:
        word = words.SAID_BY_REDIS.get(topic, topic) if one is words.REDIS else topic
        if word in one.meanings:
            yield Explanation(word, one.what, f"{one.meanings[word]}\nSeen in: {one.seen}.")


def _keys(topic: str) -> Iterator[Explanation]:
    """By its path, with or without positions, or by the end of it where that is at most two keys' and no other word."""
    from cbq_exporter.config import outline
    from cbq_exporter.config.example import written

    wanted = re.sub(r"\[\d*\]", "", topic)
    for path in outline.paths():
        plain = path.replace("[]", "")
        if plain != wanted and not plain.endswith(f".{wanted}"):
            continue
        key = outline.find(tuple(plain.split(".")))
        assert key is not None
        lines = [" ".join(key.meaning.split()), f"It may be {key.allowed}{', or null' if key.nullable else ''}."]
        if key.required:
            lines.append("It is required.")
        elif key.section is None:
            lines.append(f"The default is {written(key.default)}.")
        yield Explanation(plain, _KEY, "\n".join(lines))


def _stored(topic: str) -> Iterator[Explanation]:
    """By its name, whatever the prefix and the parts that stand in angle brackets are."""
    from cbq_exporter.store import keys_page

    for one in keys_page.described():
        ending = re.sub("<[^>]+>", ".+", re.escape(one.name.partition(":")[2]))
        if re.fullmatch(f".+:{ending}", topic):
            yield Explanation(one.name, _STORED, f"{one.meaning.rstrip('.')}.\nType: {one.kind}.")
