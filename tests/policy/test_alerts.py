"""Which alert causes what: tables, and what holds for any labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.config import Config, check
from cbq_exporter.config.models import AlertRouteConfig
from cbq_exporter.model import AlertAction, AlertOutcome, Mode
from cbq_exporter.policy.alerts import Act, Alert, Leave, decide, route_key, target_key

MODES = {"callbacks": Mode.DISPATCH, "invoices": Mode.SUPERVISE, "watched": Mode.OBSERVE}
ROUTES: tuple[AlertRouteConfig, ...] = Config(
    alerts={
        "routes": [
            {"match": ["alertname=CbqStuckCallbacks", "severity!=info"], "action": "recover"},
            {"match": {"alertname": "CbqStuckCallbacks"}, "action": "unlock"},
            {"match": ['alertname=~"Fixed.*"'], "action": "pause", "queue": "invoices"},
            {"match": {"alertname": "Down"}, "action": "pause", "scope": "destination"},
            {"match": {"alertname": "FixedWatched"}, "action": "pause", "queue": "watched"},
        ]
    }
).alerts.routes


def alert(*, firing: bool = True, started: str = "s", fingerprint: str = "f", **labels: Any) -> Alert:
    return Alert(fingerprint, started, firing, labels)


def act(place: int, queue: str, destination: str | None = None) -> Act:
    return Act(ROUTES[place], place, queue, destination)


STUCK = {"alertname": "CbqStuckCallbacks"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({**STUCK, "queue": "callbacks", "severity": "warning"}, act(0, "callbacks")),
        ({**STUCK, "queue": "invoices"}, act(0, "invoices")),
        ({**STUCK, "queue": "callbacks", "severity": "info"}, act(1, "callbacks")),
        ({"alertname": "FixedIt", "queue": "callbacks"}, act(2, "invoices")),  # its label does not count
        ({"alertname": "FixedWatched"}, act(2, "invoices")),  # the first that fits
        (
            {"alertname": "Down", "queue": "callbacks", "destination": "A.Example:8080"},
            act(3, "callbacks", "a.example:8080"),
        ),
    ],
)
def test_the_first_route_that_fits_acts(labels: dict[str, Any], expected: Act) -> None:
    assert decide(alert(**labels), ROUTES, MODES) == expected
    assert decide(alert(firing=False, **labels), ROUTES, MODES) == Leave(
        AlertOutcome.RESOLVED, "it is resolved, which never causes anything"
    )


@pytest.mark.parametrize(
    ("labels", "outcome", "place"),
    [
        ({}, AlertOutcome.UNMATCHED, None),
        ({"alertname": "Other", "queue": "callbacks"}, AlertOutcome.UNMATCHED, None),
        ({"alertname": "cbqstuckcallbacks", "queue": "callbacks"}, AlertOutcome.UNMATCHED, None),
        (STUCK, AlertOutcome.UNKNOWN_QUEUE, 0),
        ({**STUCK, "queue": "callback_queue:pending"}, AlertOutcome.UNKNOWN_QUEUE, 0),
        ({**STUCK, "queue": "callbacks\n"}, AlertOutcome.UNKNOWN_QUEUE, 0),
        ({**STUCK, "queue": "watched"}, AlertOutcome.OBSERVED, 0),
        ({"alertname": "Down", "queue": "callbacks"}, AlertOutcome.INVALID, 3),
        ({"alertname": "Down", "queue": "callbacks", "destination": "other"}, AlertOutcome.INVALID, 3),
        ({"alertname": "Down", "queue": "callbacks", "destination": "a b"}, AlertOutcome.INVALID, 3),
        ({"alertname": "Down", "queue": "callbacks", "destination": "a\nb"}, AlertOutcome.INVALID, 3),
        ({"alertname": "Down", "queue": "callbacks", "destination": "a" * 301}, AlertOutcome.INVALID, 3),
    ],
)
def test_what_causes_nothing_says_why(labels: dict[str, Any], outcome: AlertOutcome, place: int | None) -> None:
    left = decide(alert(**labels), ROUTES, MODES)
    assert isinstance(left, Leave)
    assert (left.outcome, left.place) == (outcome, place)
    assert left.why


@given(
    st.dictionaries(
        st.sampled_from(["alertname", "queue", "destination", "severity", "action", "prefix"]),
        st.one_of(st.text(max_size=20), st.sampled_from([*MODES, *STUCK.values(), "Down", "Fixed", "reset", "other"])),
    ),
    st.booleans(),
)
def test_any_labels_choose_only_among_what_is_configured(labels: dict[str, str], firing: bool) -> None:
    decided = decide(alert(firing=firing, **labels), ROUTES, MODES)
    if isinstance(decided, Act):
        assert firing
        assert decided.route is ROUTES[decided.place]
        assert decided.route.match.fits(labels)
        assert not any(route.match.fits(labels) for route in ROUTES[: decided.place])
        assert MODES[decided.queue] is not Mode.OBSERVE
        assert decided.queue == (decided.route.queue or labels["queue"])
        assert decided.destination in (None, labels.get("destination", "").lower())
    else:
        assert decided.why


def test_an_alert_is_told_by_its_fingerprint_and_the_beginning_of_its_firing() -> None:
    one = alert(queue="a")
    assert one.id == alert(queue="b", firing=False).id
    assert len({one.id, alert(fingerprint="g").id, alert(started="t").id, alert(fingerprint="fs", started="").id}) == 4


def test_limits_stay_with_what_a_route_does() -> None:
    def route(**changes: Any) -> AlertRouteConfig:
        written = {"match": {"alertname": "Down"}, "action": "pause", "scope": "destination", **changes}
        return Config(alerts={"routes": [written]}).alerts.routes[0]

    assert route_key(route()) == route_key(route(cooldown=1.0, max_per_hour=2, dry_run=True))
    others: list[dict[str, Any]] = [{"match": {"alertname": "Up"}}, {"action": "resume"}, {"scope": "queue"}]
    assert len({route_key(route(**changes)) for changes in [*others, {}]}) == 4
    targets = [target_key(Act(route(), 0, "q", destination)) for destination in ("a", "b")]
    assert len({*targets, target_key(Act(route(), 1, "r", "a"))}) == 2  # each queue has keys of its own


def test_the_page_for_operators_tells_every_action_and_outcome_and_its_example_holds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    told = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert told == {"action", *AlertAction, *AlertOutcome}
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example is not None
    assert check(Config(**yaml.safe_load(example[1].replace("5m", "300.0")) | {"redis": {"url": "redis://x"}})) == ()
