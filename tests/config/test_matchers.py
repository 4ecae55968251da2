"""Matchers and their patterns: read as Alertmanager reads them, and never slow."""

from __future__ import annotations

import contextlib
import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbq_exporter.config import Config, QueueConfig
from cbq_exporter.config.kinds import Wrong
from cbq_exporter.config.matchers import Match, Matcher, match
from cbq_exporter.config.patterns import BadPattern, Pattern
from tests.config.conftest import Load, Refused


def read(value: object) -> Match:
    found: Match = match().read(value, written=True)
    return found


@pytest.mark.parametrize(
    ("text", "matcher"),
    [
        ('alertname="CbqStuckCallbacks"', Matcher("alertname", "=", "CbqStuckCallbacks")),
        ("alertname=CbqStuckCallbacks", Matcher("alertname", "=", "CbqStuckCallbacks")),
        (' severity != "info" ', Matcher("severity", "!=", "info")),
        ('queue=~"a|b"', Matcher("queue", "=~", "a|b")),
        ("team!~x.*", Matcher("team", "!~", "x.*")),
        (r'a="say \"hi\" \\ \n"', Matcher("a", "=", 'say "hi" \\ \n')),
        (r'a=~"\d\.\\d"', Matcher("a", "=~", r"\d\.\d")),
    ],
)
def test_is_read_as_it_is_written(text: str, matcher: Matcher) -> None:
    beside = Matcher("needed", "=", "x")
    assert read([text, "needed=x"]) == Match((matcher, beside))
    assert read([str(matcher), str(beside)]) == Match((matcher, beside))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({}, "must be labels and their values"),
        ([], "must be labels and their values"),
        ("alertname=A", "must be labels and their values"),
        ({"alertname": 1}, "the value of label alertname must be a text"),
        ({"a b": "x"}, "a label's name must have letters"),
        ({"alertname": "A" * 501}, "the value of label alertname must be a text of 500"),
        (["a=b,c=d"], "a matcher must be written like"),
        (["{a=b}"], "a matcher must be written like"),
        (['a="b'], "a matcher must be written like"),
        (["a~b"], "a matcher must be written like"),
        ([1], "a matcher must be written like"),
        (['a=~"("'], "the pattern of label a lacks a )"),
        (['a=~"(?=x)"'], "the pattern of label a has a (? that is not known here"),
        ({"alertname": ""}, "fits every alert that lacks these labels"),
        (["severity!=info", "team=~.*"], "fits every alert that lacks these labels"),
    ],
)
def test_what_is_wrong_is_told(value: object, why: str) -> None:
    with pytest.raises(Wrong, match=re.escape(why)):
        read(value)


def test_all_matchers_of_a_route_must_fit_and_a_missing_label_is_empty() -> None:
    found = read(["alertname=A", "severity!=info", 'queue=~"a|b"', "team!~x.*"])
    assert found.fits({"alertname": "A", "queue": "a"})
    assert found.fits({"alertname": "A", "queue": "b", "severity": "warning", "team": "y", "more": "z"})
    assert not found.fits({"alertname": "A", "queue": "ab"})
    assert not found.fits({"alertname": "A", "queue": "a", "severity": "info"})
    assert not found.fits({"alertname": "A", "queue": "a", "team": "x"})
    assert not found.fits({"alertname": "A"})


def test_a_route_is_found_wrong_where_it_stands(loaded: Load, refused: Refused) -> None:
    text = "alerts: {{auth: {{bearer_token_file: t}}, routes: [{{match: {}, action: recover}}]}}"
    assert loaded(text.format("['a=~\"b.*\"']")).alerts.routes[0].match.fits({"a": "bc"})
    assert refused(text.format("['a=~\"*\"']")) == [
        "cbq.yaml:1: alerts.routes[0].match: found a list; the pattern of label a has a * with nothing to repeat"
    ]


def test_a_configuration_made_in_code_has_the_same() -> None:
    route = {"match": {"alertname": "A"}, "action": "pause", "queue": "q"}
    config = Config(queues=(QueueConfig(name="q"),), alerts={"routes": (route,)})
    assert str(config.alerts.routes[0].match) == 'alertname="A"'


# --- patterns ------------------------------------------------------------------------------------

_CLASS_MEMBERS = st.sampled_from(["a", "b", "a-c", r"\d", r"\W", "-", ".", r"\-", r"\n"])
_SETS = st.builds(
    lambda sign, inner: f"[{sign}{''.join(inner)}]",
    st.sampled_from(["", "^"]),
    st.lists(_CLASS_MEMBERS, min_size=1, max_size=3),
)
_ATOMS = st.one_of(st.sampled_from([*"abcé-,", ".", r"\d", r"\w", r"\S", r"\.", r"\n", r"\\", "{", "}"]), _SETS)
_REPEATS = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{1,}", "{0,2}"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.builds(
        lambda kind, text, repeat: f"({kind}{text}){repeat}", st.sampled_from(["", "?:"]), inner, _REPEATS
    )
    return st.one_of(
        st.lists(st.one_of(inner, group), max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
    )


_PATTERNS = st.recursive(st.builds(lambda atom, repeat: atom + repeat, _ATOMS, _REPEATS), _larger, max_leaves=6)


@settings(max_examples=400)
@given(_PATTERNS, st.text("abcd1é_-.,{}\\ \n", max_size=8), st.booleans())
def test_a_pattern_fits_what_pythons_fits(pattern: str, text: str, any_case: bool) -> None:
    if any_case:
        pattern, text = f"(?i){pattern}", text.swapcase()
    try:
        warnings.simplefilter("ignore", FutureWarning)  # of a -- inside [ ]
        python = re.compile(pattern, re.ASCII if not any_case else re.NOFLAG)
    except re.error:
        return
    if re.search(r"[*+?}][+]", pattern) or (any_case and not text.isascii()):
        return  # possessive, which RE2 does not know; and Python has no ASCII classes with Unicode's cases
    try:
        ours = Pattern(pattern)
    except BadPattern:
        assert re.search(r"[*+?}]\{|\{[0-9,]+\}[*+]", pattern)
        return
    assert ours.fits(text) == (python.fullmatch(text) is not None)


@settings(max_examples=300)
@given(st.text(r"ab()[]{}^$|*+?.\-,:i12dwb", max_size=20), st.text(max_size=10))
def test_any_text_is_a_pattern_or_is_refused(pattern: str, text: str) -> None:
    with contextlib.suppress(BadPattern):
        Pattern(pattern).fits(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b",
        "(a|a)*b",
        "(a|aa)+b",
        "a?" * 100 + "a" * 100 + "b",
        ".*.*.*.*.*.*b",
        "(a{1,15}){1,15}b",
        "(?:(?:a+)+)+b",
    ],
)
def test_what_takes_others_years_is_quick(pattern: str) -> None:
    began = time.monotonic()
    found = Pattern(pattern)
    assert not found.fits("a" * 20_000)
    assert found.fits("a" * 120 + "b")
    assert time.monotonic() - began < 5


def test_every_writing_of_the_world_is_quick() -> None:
    """So many characters that moves cannot be remembered by each of them."""
    found = Pattern(".*(foo|bar)[a-z]{1,30}x.*y.*[à-ü].*")
    text = "".join(map(chr, range(0x4E00, 0x9000))) * 5
    began = time.process_time()
    assert not found.fits(text)
    assert found.fits(f"{text}barcx{text}y{text}ö{text}")
    assert time.process_time() - began < 1  # it was 3 s where they were


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("^a|b$", "b", "ab"),
        ("a.c", "axc", "a\nc"),
        ("", "", "a"),
        ("(?i)ÄB[c-d]", "äbD", "äb"),
        ("[]a]", "]", "b"),
        ("a{,2}", "a{,2}", "aa"),
        (r"\$\^", "$^", ""),
    ],
)
def test_patterns_by_example(pattern: str, fits: str, does_not: str) -> None:
    assert Pattern(pattern).fits(fits)
    assert not Pattern(pattern).fits(does_not)


@pytest.mark.parametrize(
    "pattern",
    ["(a{1000}){1000}", "(" * 60 + ")" * 60, "a{1001}", "a{3,2}", r"\b", r"\pL", r"\1", "[[:alpha:]]", "a$b", "(^a)"],
)
def test_what_is_not_known_or_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        Pattern(pattern)
