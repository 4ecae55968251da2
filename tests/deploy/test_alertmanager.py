"""The shipped configuration of Alertmanager, on the real program: what goes where, and what is inhibited by what."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cbq_exporter.config.loading import load
from loop.shipped import seconds
from monitoring.rules import ALERTS, Alert
from tests.support.daemons import Daemon, merged, queue, until
from tests.support.prometheus import Alertmanager, program
from tests.support.servers import Server

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FILE = DEPLOY / "alertmanager/alertmanager.yml"

DAEMON, PEOPLE = "cbq-exporter", "people"
PREFIX = "callback_queue"

_ONLY_LOOKS: dict[str, Any] = {
    "mode": "supervise",
    "delivery": {"timeout": "500ms", "connect_timeout": "500ms", "lease": "2s"},
    "recovery": {"auto": False, "every": "100ms", "stuck_after": "1s"},
    "lock": {"check_every": "100ms", "stale": {"auto": False, "no_ttl_after": "1s"}},
}
_CALLBACKS = {"job": "cbq-exporter", "queue": "callbacks"}


def test_amtool_accepts_it() -> None:
    assert "SUCCESS" in _amtool("check-config", str(FILE))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_people_are_told_all_and_the_daemon_only_what_it_may_heal(alert: Alert) -> None:
    labels = [f"alertname={alert.name}", f"severity={alert.severity}", "job=cbq-exporter"]
    said = _amtool("config", "routes", "test", f"--config.file={FILE}", *labels)
    assert said.strip() == (f"{DAEMON},{PEOPLE}" if alert.action else PEOPLE)


def test_the_daemon_has_a_route_for_each_alert_it_is_sent_and_repeats_come_after_its_cooldown(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"alerts": _alerts_of_the_readme()}))
    routes = load(config).config.alerts.routes
    said = {route["match"]["alertname"]: route["action"] for route in _alerts_of_the_readme()["routes"]}
    assert said == {alert.name: alert.action for alert in ALERTS if alert.action}
    (route,) = [one for one in _config()["route"]["routes"] if one["receiver"] == DAEMON]
    repeat = re.fullmatch(r"(\d+)m", route["repeat_interval"])
    assert repeat
    assert int(repeat[1]) * 60 > max(one.cooldown for one in routes)


def test_people_are_told_only_when_what_the_daemon_healed_would_have_ended() -> None:
    intervals = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["global"]
    _, people, *_ = _config()["route"]["routes"]
    healed = {alert.name for alert in ALERTS if alert.action}
    assert set(re.findall(r"Cbq\w+", people["matchers"][0])) == healed
    assert people["receiver"] == PEOPLE
    ends_within = seconds(intervals["scrape_interval"]) + seconds(intervals["evaluation_interval"])
    assert seconds(people["group_wait"]) > ends_within


def test_what_alertmanager_posts_is_healed_once(tmp_path: Path, server: Server) -> None:
    """Both files as shipped, but for names and the token; the daemon does nothing of this by itself."""
    token = tmp_path / "token"
    token.write_text("a-token-of-32-characters-or-more")
    token.chmod(0o600)
    alerts = merged(_alerts_of_the_readme(), {"auth": {"bearer_token_file": str(token)}})
    client: Any = server.client
    client.set(f"{PREFIX}:lock", "worker_1764000000_1234")
    client.rpush(f"{PREFIX}:processing", '{"url": "http://127.0.0.1:9/", "data": {}}')
    with Daemon(server.url, queue(_ONLY_LOOKS), alerts=alerts) as daemon:
        config = _config()
        (receiver,) = [one for one in config["receivers"] if one["name"] == DAEMON]
        webhook = receiver["webhook_configs"][0]
        webhook["url"] = daemon.url + urlsplit(webhook["url"]).path
        webhook["http_config"]["authorization"]["credentials_file"] = str(token)
        until(lambda: daemon.metrics().get("cbq_stuck_callbacks") == 1 == daemon.metrics().get("cbq_lock_stale"))
        with Alertmanager(config) as running:
            # Only alerts that inhibit no other: with Redis unreachable, say, nothing would be posted.
            posted = ["CbqTaskStale", "CbqReloadFailed", "CbqBacklogTooDeep"]
            posted += [alert.name for alert in ALERTS if alert.action]
            running.post(*({"alertname": name, "severity": "warning", **_CALLBACKS} for name in posted))
            until(lambda: client.llen(f"{PREFIX}:pending") == 1, what=lambda: (running.log(), daemon.log()))
            until(lambda: not client.exists(f"{PREFIX}:lock"), what=lambda: (running.log(), daemon.log()))
        assert daemon.metrics().get("cbq_alerts_received_total") == 2
        assert daemon.metrics().get("cbq_alerts_received_total", outcome="accepted") == 2


def test_the_token_comes_from_a_file() -> None:
    (receiver,) = [one for one in _config()["receivers"] if one["name"] == DAEMON]
    (webhook,) = receiver["webhook_configs"]
    assert set(webhook["http_config"]["authorization"]) == {"type", "credentials_file"}


@pytest.fixture(scope="module")
def alertmanager() -> Any:
    """As shipped, but nothing is sent: its receivers are empty."""
    config = _config()
    config["receivers"] = [{"name": DAEMON}, {"name": PEOPLE}]
    with Alertmanager(config) as running:
        yield running


@pytest.mark.parametrize(
    ("job", "source", "inhibited", "left"),
    [
        (
            "redis",
            {"alertname": "CbqRedisUnreachable", "severity": "critical"},
            ["CbqTaskStale", "CbqNoLeader", "CbqTaskSkipping", "CbqStuckItems"],
            ["CbqReplicaDown"],
        ),
        ("one", {"alertname": "CbqRedisUnreachable", "severity": "warning"}, [], ["CbqTaskStale", "CbqStuckItems"]),
        (
            "down",
            {"alertname": "CbqExporterDown", "severity": "critical"},
            ["CbqReplicaDown", "CbqFailureRatioHigh", "CbqRedisUnreachable"],
            [],
        ),
        (
            "stalled",
            {"alertname": "CbqDeliveryStalled", "severity": "critical", "queue": "callbacks"},
            ["CbqOldestPendingTooOld", "CbqOldestRetryTooLate", "CbqBacklogTooDeep", "CbqNoLeader"],
            ["CbqLockWithoutExpiry", "CbqStuckItems"],
        ),
        (
            "circles",
            {"alertname": "CbqRecoveryIneffective", "severity": "warning", "queue": "callbacks"},
            ["CbqStuckItems"],
            ["CbqLockWithoutExpiry"],
        ),
        (
            "locks",
            {"alertname": "CbqLocksForcedOften", "severity": "warning", "queue": "callbacks"},
            ["CbqLockWithoutExpiry"],
            ["CbqStuckItems"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_follows_from_something_worse_is_inhibited(
    alertmanager: Alertmanager, job: str, source: dict[str, str], inhibited: list[str], left: list[str]
) -> None:
    """Each case has a job of its own, so that cases do not inhibit each other; another job is never touched."""
    fired = [{"alertname": name, "severity": "warning", **_CALLBACKS, "job": job} for name in (*inhibited, *left)]
    alertmanager.post({**source, "job": job}, *fired)
    alertmanager.post(*({**one, "job": f"not-{job}"} for one in fired))

    def suppressed(of: str) -> set[str]:
        found = [one for one in alertmanager.alerts() if one["labels"]["job"] == of]
        return {one["labels"]["alertname"] for one in found if one["status"]["inhibitedBy"]}

    until(lambda: suppressed(job) >= set(inhibited), what=lambda: suppressed(job))
    assert suppressed(job) == set(inhibited)
    assert suppressed(f"not-{job}") == set()


def test_the_worse_of_two_of_one_name_inhibits_the_other(alertmanager: Alertmanager) -> None:
    both = [{"alertname": "CbqFailureRatioHigh", "severity": one, **_CALLBACKS} for one in ("critical", "warning")]
    alertmanager.post(*both, {**both[1], "queue": "invoices"})

    def muted() -> list[tuple[str, str]]:
        found = [one for one in alertmanager.alerts() if one["status"]["inhibitedBy"]]
        found = [one for one in found if one["labels"]["alertname"] == "CbqFailureRatioHigh"]
        return [(one["labels"]["severity"], one["labels"]["queue"]) for one in found if "queue" in one["labels"]]

    until(lambda: ("warning", "callbacks") in muted())
    assert ("critical", "callbacks") not in muted()
    assert ("warning", "invoices") not in muted()


def _alerts_of_the_readme() -> dict[str, Any]:
    snippet = re.search(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert snippet
    found: dict[str, Any] = yaml.safe_load(snippet[1])["alerts"]
    return found


def _config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def _amtool(*arguments: str) -> str:
    done = subprocess.run(
        [program("amtool"), *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=DEPLOY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
