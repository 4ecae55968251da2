"""Whatever is typed, and whatever the keys hold: an exit code of the list, a few lines, never a traceback.

CBQ_TEST_EXAMPLES=5000 makes the run long and random; without it, it is short and always the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.cli.main import app
from cbq_exporter.store.keys import QueueKeys
from tests.cli.conftest import Cli, Corpse, item
from tests.support.servers import Server

T = TypeVar("T")

EXIT_CODES = {0, 1, 2, 3, 4, 5}
MOST_LINES = 12  # on standard error
KEYS = QueueKeys.of("q")
HOLDER = "worker_1764000000_4711"

# Commands that end by themselves. (serve and demo run; status --watch and audit --follow wait.)
READING = (
    *(["status"], ["audit"], ["doctor"], ["check-config"], ["dead", "list"], ["dead", "show"]),
    *(["alerts", "list"], ["alerts", "test"]),
)
CHANGING = (
    *(["unlock"], ["recover"], ["reset"], ["undo"], ["pause"], ["resume"]),
    *(["dead", "retry"], ["dead", "purge"], ["alerts", "pause"], ["alerts", "resume"]),
)
OPTIONS = (
    *("--queue", "-q", "--output", "-o", "--why", "--dry-run", "--force", "--all", "--older-than", "--trash"),
    *("--destination", "--reason", "--limit", "--offset", "--operation", "--actor", "--since", "--raw", "--url"),
    *("--data", "--task-id", "--status", "--prompt", "--stamp", "--strict", "--interval", "--config", "-c"),
    *("--help", "-h", "--version", "--", "-", "--nonsense", "-x"),
)
ODD = (
    *("", " ", "\n", "\x1b[31m", "\x7f", "\u202e", "\udcff", "a\ttab", "é", "💥", "x" * 5000, "-1", "0"),
    *("00", "1e9", "inf", "nan", "0s", "1s", "10m", "7d", "999999999d", "999999999.999d", "99999999999999999999"),
    *("9223372036854775807", "json", "table", "yaml", "callbacks", "Callbacks", "other", "q:pending", "*", "q:*"),
    *(
        "../../etc/passwd",
        "@/nonexistent",
        "@",
        "@.",
        "{}",
        "[",
        '{"a": 1}',
        "http://example.com/x",
        "http://[",
        "poison",
    ),
    *("rejected", "unlock", "example.com", "1-1-1", "0-0", "%s", "{0}", "[bold]", "$(id)", "'; --", "\\x1b"),
)
odd_words = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(ODD),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),  # as the system passes on
    st.integers(-(10**20), 10**20).map(str),
)


def _is_safe(words: list[str]) -> bool:
    """It ends by itself."""
    short = "".join(word[1:] for word in words if word[:1] == "-" and word[:2] != "--")
    waits = any(word.startswith(("--watch", "--follow", "--debug")) for word in words)
    return not (waits or set(short) & set("wf"))


def _options_of(command: list[str]) -> list[list[str]]:
    """Each of its own options; those that take a value with an empty place for it."""
    found: Any = app
    for name in command:
        found = found.get_command(click.Context(found), name)
    options = [one for one in found.params if isinstance(one, click.Option)]
    return [[name] if one.is_flag else [name, ""] for one in options for name in one.opts]


def _filled(words: list[str]) -> st.SearchStrategy[list[str]]:
    return odd_words.map(lambda odd: [word or odd for word in words])


def lines_of(commands: Sequence[list[str]]) -> st.SearchStrategy[list[str]]:
    """A command with options of its own and odd values; or with anything."""

    def own(command: list[str]) -> st.SearchStrategy[list[str]]:
        part = st.sampled_from(_options_of(command)).flatmap(_filled)
        return st.lists(part, max_size=3).map(lambda parts: [*command, *(word for part in parts for word in part)])

    names = st.sampled_from(list(commands))
    anything = st.tuples(names, words_after).map(lambda pair: [*pair[0], *pair[1]])
    return st.one_of(names.flatmap(own), names.flatmap(own), anything).filter(_is_safe)


words_after = st.lists(
    st.one_of(
        st.sampled_from(OPTIONS).map(lambda one: [one]),
        st.tuples(st.sampled_from(OPTIONS), odd_words).map(list),
        st.tuples(st.sampled_from(OPTIONS), odd_words).map(lambda pair: ["=".join(pair)]),
        odd_words.map(lambda one: [one]),
    ),
    max_size=4,
).map(lambda parts: [word for part in parts for word in part])

standard_inputs = st.sampled_from(
    [
        b"",
        item(1) + b"\n",
        b"\x00\xff\n[]\n",
        b'{"url": 1}\n{"url": "http://example.com/x", "data": 1}',
        b"y\n",
        b"callbacks\n",
    ]
)


class Program:
    """The program in this process, on a server; its configuration is found by the environment."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.redis: Any = cli.server.client
        self._environment = {"CBQ_REDIS_URL": None, "CBQ_CONFIG": str(cli.config_file)}

    def __call__(self, words: list[str], stdin: bytes = b"") -> Result:
        return CliRunner().invoke(app, words, input=stdin, env=self._environment)

    def contents(self) -> dict[bytes, bytes]:
        """Without the audit, where also what is refused is noted."""
        names = sorted(name for name in self.redis.keys("*") if name != KEYS.audit.encode())
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.dump(name)
            return dict(zip(names, pipe.execute(), strict=True))

    def image(self) -> dict[bytes, bytes]:
        return {name: self.redis.dump(name) for name in self.redis.keys("*")}

    def restore(self, image: dict[bytes, bytes]) -> None:
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.flushall()
            for name, dump in image.items():
                pipe.restore(name, 0, dump)
            pipe.execute()

    @contextlib.contextmanager
    def contents_kept(self) -> Iterator[None]:
        before = self.contents()
        yield
        assert self.contents() == before


@pytest.fixture
def program(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(Cli(server, tmp_path))


def fill(program: Program) -> None:
    """Something in every place, the trash included."""
    program.cli.bury([Corpse(item(1)), Corpse(b"\xff")])
    program.redis.rpush(KEYS.pending, item(2))
    assert program(["reset", "--yes", "--queue", "callbacks"]).exit_code == 0
    program.cli.bury([Corpse(item(3)), Corpse(b"\x1b[31m")])
    program.redis.rpush(KEYS.processing, item(4), b"\x00")
    program.redis.rpush(KEYS.pending, item(5))
    program.redis.set(KEYS.lock, HOLDER)
    assert program(["pause", "--yes", "--destination", "example.com"]).exit_code == 0


def ends_well(words: list[str], result: Result) -> None:
    said = f"{words!r}: {result.exit_code}\n{result.stderr}"
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert result.exit_code in EXIT_CODES, said
    assert "Traceback" not in result.output, said
    assert "run it again with --debug" not in result.stderr, said
    lines = result.stderr.split("\n")
    assert len(lines) <= MOST_LINES, said
    assert all(line.isprintable() for line in lines), said
    if not {"--raw", "--body", "completion"}.intersection(words):
        assert all(line.isprintable() for line in result.stdout.split("\n")), f"{words!r}: {result.stdout!r}"
    assert all(len(line) < 8000 for line in lines), said


def repeat(examples: int) -> Callable[[T], T]:
    at_random = int(os.environ.get("CBQ_TEST_EXAMPLES", "0"))
    return settings(
        max_examples=at_random or examples,
        derandomize=not at_random,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_any_arguments(program: Program) -> None:
    fill(program)
    image = program.image()

    @repeat(700)
    @given(line=lines_of([*READING, *CHANGING]), stdin=standard_inputs)
    def run(line: list[str], stdin: bytes) -> None:
        if {"--yes", "-y"} & set(line):
            ends_well(line, program(line, stdin))
            program.restore(image)
        else:
            with program.contents_kept():
                ends_well(line, program(line, stdin))

    run()


def test_any_arguments_of_enqueue(program: Program) -> None:
    @repeat(200)
    @given(line=lines_of([["enqueue"]]), stdin=standard_inputs)
    def run(line: list[str], stdin: bytes) -> None:
        ends_well(line, program(line, stdin))
        assert set(program.contents()) <= {KEYS.pending.encode(), KEYS.stats_queued.encode()}

    run()


def test_any_command(program: Program) -> None:
    @repeat(50)
    @given(words=st.lists(odd_words, max_size=3).filter(_is_safe))
    def run(words: list[str]) -> None:
        ends_well(words, program(words)) if words else None

    run()


@pytest.mark.parametrize("line", [["dead", "show"], ["pause", "--yes", "--destination"], ["undo", "--trash"]])
def test_what_is_not_utf_8_is_no_argument(program: Program, line: list[str]) -> None:
    result = program([*line, os.fsdecode(b"\xff")])
    assert (result.exit_code, result.stderr) == (2, "cbq-exporter: '\\udcff' is not UTF-8 (see app --help)\n")


def test_a_yes_is_all_that_is_needed_and_nothing_less(program: Program) -> None:
    fill(program)
    for command in CHANGING:
        line = [*command, *(["--all"] if command[0] == "dead" else []), "--queue", "callbacks"]
        with program.contents_kept():
            for words in (line, [*line, "--dry-run"], [*line, "--yes", "--dry-run"]):
                ends_well(words, program(words, b"y\n"))
        before = program.contents()
        if command[-1] != "resume":  # nothing is paused
            assert program([*line, "--yes"]).exit_code == 0, command
            assert program.contents() != before, command
            program.redis.flushall()
            fill(program)


# --- what the keys hold --------------------------------------------------------------------------

garbage = st.one_of(
    st.sampled_from([b"", b"\x00", b"\xff\xfe", b"{}", b"[]", b"null", b'{"at": "x"}', b"1", b"-1", b"1e400"]),
    st.sampled_from([b"\x1b[31m", b"\xc2\x9b31m"]),
    st.sampled_from([b"1|2|3|4", b"a|b|c|d", b"9" * 400, b"-9223372036854775808", b"{" * 2000, b"0" * 40 + b"#0"]),
    st.sampled_from([b"1764000000000-1-1|" + b"a" * 40 + b"|0|0|1764000000000", b'{"at_ms": 1e300, "until_ms": -1}']),
    st.sampled_from([b'{"url": "http://example.com/\\ud800", "attempts": 1e308, "size": -1, "at_ms": 1e308}']),
    st.sampled_from(
        [b'{"at_ms": 9223372036854775807, "counts": {"pending": 9223372036854775807}}', b'{"counts": {"x": -5}}']
    ),
    st.sampled_from(
        [b"value", b"first_ms", b"untouched_ms", b"expires_ms", b"trigger", b"result", b"before", b"1-1-1"]
    ),
    st.binary(max_size=20),
)
scores = st.sampled_from([0, 1, -1, 1e308, -1e308, float("inf"), float("-inf"), 1.5, 1764000000000, 9e15, 1e20])
pairs = st.dictionaries(garbage, garbage, min_size=1, max_size=4)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "string": garbage,
    "list": st.lists(garbage, min_size=1, max_size=5),
    "hash": pairs,
    "sorted set": st.dictionaries(garbage, scores, min_size=1, max_size=4),
    "stream": st.lists(pairs, min_size=1, max_size=3),
    "set": st.sets(garbage, min_size=1, max_size=2),
}
OURS = {
    "string": ("lock", "last_send", "stats_queued", "stats_sent", "stats_failed", "fence", "alerts_paused"),
    "list": ("pending", "processing"),
    "hash": ("records", "payloads", "returned", "lock_seen", "trash_notes", "paused", "alerts"),
    "sorted set": ("leases", "retry", "dead", "sightings", "daemons", "trash", "alert_times"),
    "stream": ("audit",),
}
of_the_right_type = st.sampled_from([(kind, part) for kind, parts in OURS.items() for part in parts])
of_any_type = st.tuples(st.sampled_from(list(KINDS)), st.sampled_from([field.name for field in fields(QueueKeys)]))


def put(redis: Any, kind: str, key: str, value: Any) -> None:
    redis.delete(key)
    match kind:
        case "string":
            redis.set(key, value)
        case "list":
            redis.rpush(key, *value)
        case "hash":
            redis.hset(key, mapping=value)
        case "sorted set":
            redis.zadd(key, value)
        case "stream":
            for entry in value:
                redis.xadd(key, entry)
        case "set":
            redis.sadd(key, *value)


@pytest.mark.parametrize("places", [of_the_right_type, of_any_type], ids=["garbage", "foreign types"])
def test_any_contents_of_the_keys(program: Program, places: st.SearchStrategy[tuple[str, str]]) -> None:
    fill(program)
    image = program.image()

    @repeat(500)
    @given(
        command=st.sampled_from([*READING, *CHANGING]),
        extra=st.sampled_from([["--yes"], ["--yes", "-o", "json"], ["--dry-run"], []]),
        where=st.lists(places, min_size=1, max_size=3, unique_by=lambda place: place[1]),
        data=st.data(),
    )
    def run(command: list[str], extra: list[str], where: list[tuple[str, str]], data: st.DataObject) -> None:
        program.restore(image)
        for kind, part in where:
            put(program.redis, kind, getattr(KEYS, part), data.draw(KINDS[kind], label=part))
        line = [*command, "--queue", "callbacks"] if command != ["check-config"] else command
        if command in CHANGING:
            line = [*line, *extra, *(["--all"] if command[0] == "dead" else [])]
        elif "json" in extra:
            line = [*line, "-o", "json"]
        if command == ["dead", "show"]:
            line = [*line, "1-1-1"]
        if "--yes" in line:
            ends_well(line, program(line))
        else:
            with program.contents_kept():
                ends_well(line, program(line))

    run()
