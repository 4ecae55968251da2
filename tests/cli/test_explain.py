"""``explain`` knows everything that the program prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbq_exporter import errors, model
from cbq_exporter.cli import words
from cbq_exporter.cli.interrupts import INTERRUPTED
from cbq_exporter.cli.main import PIPE_CLOSED, app
from cbq_exporter.config import outline
from cbq_exporter.metrics import instruments
from cbq_exporter.metrics.catalogue import CATALOGUE
from cbq_exporter.store.connections import ERROR_KINDS
from monitoring.rules import ALERTS

# The closed sets that the program prints words of, and what explains each.
SETS: tuple[tuple[words.Words, Iterable[str]], ...] = (
    (words.MODE, model.Mode),
    (words.STATE, model.State),
    (words.FAILURE, model.FailureKind),
    (words.DEAD, model.DeadReason),
    (words.TRIGGER, model.Trigger),
    (words.OPERATION, model.OperationName),
    (words.RESULT, model.Result),
    (words.ALERT, model.AlertOutcome),
    (words.FLUSH, model.FlushReason),
    (words.RELEASE, model.ReleaseReason),
    (words.FENCED, instruments.OPERATIONS),
    (words.REDIS, ERROR_KINDS),
)


def explain(*words: str) -> Result:
    return CliRunner().invoke(app, ["explain", *words], prog_name="cbq-exporter")


@pytest.mark.parametrize(("explained", "printed"), SETS, ids=lambda one: getattr(one, "what", ""))
def test_every_word_of_a_closed_set_is_explained(explained: words.Words, printed: Iterable[str]) -> None:
    assert sorted(explained.meanings) == sorted(map(str, printed))


def test_no_closed_set_is_left_out() -> None:
    assert [one for one in words.SETS if one is not words.EXIT] == [explained for explained, _ in SETS]
    classes: list[type[errors.CbqError]] = [errors.CbqError, *_descendants(errors.CbqError)]
    codes = {0, INTERRUPTED, PIPE_CLOSED, *(one.exit_code for one in classes)}
    assert {int(code) for code in words.EXIT.meanings} == codes


def test_all_that_is_listed_is_explained_and_nothing_is_left_out() -> None:
    listed: Mapping[str, list[str]] = json.loads(explain("-o", "json").stdout)
    assert listed["metric"] == [one.full_name for one in CATALOGUE]
    assert set(listed["alert"]) == {one.name for one in ALERTS}
    assert listed["key of the configuration"] == [path.replace("[]", "") for path in outline.paths()]
    lines = explain().stdout.splitlines()
    for kind, topics in listed.items():
        assert kind in lines
        for topic in topics:
            assert f"  {topic}" in lines
            found = json.loads(explain(topic, "-o", "json").stdout)
            assert [one for one in found if one["kind"] == kind and one["topic"] == topic and one["text"]], topic


def test_pages_that_the_program_refers_to_can_be_shown() -> None:
    package = Path(words.__file__).parents[1]
    texts = (file.read_text(encoding="utf-8") for file in package.rglob("*.py"))
    named = {name for text in texts for name in re.findall(r"cbq-exporter explain ([\w-]+\.md)", text)}
    assert {"redis-acl.md", "configuration.md"} <= named
    for name in named:
        assert explain(name).stdout.startswith("# "), name


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("cbq_delivery_lag_seconds_bucket", "From the producer's enqueue to the delivery."),
        ("stuck_callbacks", "cbq_stuck_callbacks (metric)"),
        ("CbqStuckItems", "## How to fix"),
        ("stuckitems", "# CbqStuckItems"),
        ("docs/redis-acl.md", "user cbq-observe on"),
        ("queues[0].recovery.stuck_after", "The default is 5m."),
        ("stuck_after", "queues.recovery.stuck_after (key of the configuration)"),
        ("poison", "It got stuck more often than recovery.max_recoveries"),
        ("timeout", "kind of an error of Redis"),
        ("a:b:lock", "the send lock, with a TTL"),
        ("cb:answers:4711", "callback_queue:answers:<answer id> (key in Redis)"),
        ("adopting", "# "),
    ],
)
def test_a_topic_may_be_written_as_it_is_found(topic: str, says: str) -> None:
    result = explain(topic)
    assert (result.exit_code, result.stderr) == (0, "")
    assert says in result.stdout


@pytest.mark.parametrize("word", ["OOM", "WRONGTYPE", "NOREPLICAS", "MISCONF", "READONLY", "NOAUTH", "NOPERM"])
def test_the_words_of_redis_as_its_errors_write_them(word: str) -> None:
    result = explain(word)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "kind of an error of Redis" in result.stdout


def test_what_is_unknown_is_one_line_with_what_may_be_meant() -> None:
    result = explain("cbq_stuck_calbacks")
    assert (result.exit_code, result.stdout) == (2, "")
    line = "cbq-exporter: nothing is known about 'cbq_stuck_calbacks'; did you mean cbq_stuck_callbacks"
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert explain("\x1b[31m").stderr.count("\n") == 1


def _descendants(kind: type[errors.CbqError]) -> list[type[errors.CbqError]]:
    return [one for child in kind.__subclasses__() for one in (child, *_descendants(child))]
