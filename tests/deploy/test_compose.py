"""``deploy/compose.yaml`` as far as it can be checked without containers: what it mounts is there, is accepted by the
program that reads it, and all of them agree about names, ports and tokens.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cbq_exporter.config.loading import load
from monitoring.places import GRAFANA, JOB
from monitoring.rules import ALERTS
from tests.support.prometheus import program
from tests.support.servers import Server

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DAEMON = load(DEPLOY / "compose/cbq-exporter.yaml", environ={}).config


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def mounts(service: str) -> dict[str, str]:
    """What is mounted, by the path inside."""
    split = [one.split(":") for one in SERVICES[service]["volumes"]]
    return {parts[1]: parts[0] for parts in split}


def volume_with(service: str, file: str) -> str:
    """The volume that ``file`` is in, as ``service`` sees it."""
    folder, _, name = file.rpartition("/")
    assert name == "token"  # what make-tokens.sh writes
    return mounts(service)[folder]


def meet(asker: str, answerer: str) -> bool:
    """Whether they share a network, so that the name of one is known to the other."""
    return bool(set(SERVICES[asker]["networks"]) & set(SERVICES[answerer]["networks"]))


# --- the file itself ---------------------------------------------------------------------------------


def test_what_it_mounts_is_in_the_repository() -> None:
    for name in SERVICES:
        for source in mounts(name).values():
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        assert set(SERVICES[name].get("networks", ())) <= set(COMPOSE["networks"])


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_one_release_and_may_do_little(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    else:
        assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"])
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_what_the_image_copies_is_there_and_is_not_ignored() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert copied
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert source in allowed


# --- what the programs read --------------------------------------------------------------------------


def test_the_daemon_accepts_its_configuration() -> None:
    command = [sys.executable, "-m", "cbq_exporter", "check-config", "-c", str(DEPLOY / "compose/cbq-exporter.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_store_accepts_its_configuration_and_loses_nothing() -> None:
    options: list[str] = []
    for line in (DEPLOY / "compose/valkey.conf").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "dir ")):
            name, *values = line.split()
            options += [f"--{name}", *values]
    with Server("valkey", *options) as server:
        client: Any = server.client
        kept = client.config_get("append*", "maxmemory-policy")
    assert (kept["appendonly"], kept["appendfsync"], kept["maxmemory-policy"]) == ("yes", "always", "noeviction")


def test_tokens_are_made_once_and_are_random(tmp_path: Path) -> None:
    script = DEPLOY / "compose/make-tokens.sh"
    inside = [path for path in mounts("tokens") if path.startswith("/tokens/")]
    files = [tmp_path / Path(path).name / "token" for path in inside]
    for file in files:
        file.parent.mkdir()
    made = []
    for _ in range(2):
        subprocess.run(["sh", str(script), str(tmp_path)], check=True, timeout=30)
        made.append([file.read_text() for file in files])
    assert made[0] == made[1]
    assert len(set(made[0])) == len(files) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in made[0])


def test_promtool_accepts_what_prometheus_reads() -> None:
    assert mounts("prometheus")["/etc/prometheus"] == "./prometheus"
    command = [program("promtool"), "check", "config", str(DEPLOY / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# --- whether they agree ------------------------------------------------------------------------------


def test_they_find_each_other() -> None:
    prometheus = read("deploy/prometheus/prometheus.yml")
    scrapes = {one["job_name"]: one["static_configs"][0]["targets"] for one in prometheus["scrape_configs"]}
    assert scrapes[JOB] == [f"cbq-exporter:{DAEMON.web.port}"]
    (manager,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert manager == "alertmanager:9093"
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    # $__rate_interval is made of it: too short, and every rate is empty.
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert urlsplit(GRAFANA).port == 3000
    assert DAEMON.redis.url is not None
    assert urlsplit(DAEMON.redis.url.get_secret_value()).hostname == "valkey"
    for asker, answerer in (
        ("prometheus", "cbq-exporter"),
        ("prometheus", "alertmanager"),
        ("alertmanager", "cbq-exporter"),
        ("grafana", "prometheus"),
        ("cbq-exporter", "valkey"),
    ):
        assert meet(asker, answerer)
    assert not meet("grafana", "valkey")


def test_grafana_finds_the_dashboards() -> None:
    assert mounts("grafana")["/etc/grafana/provisioning"] == "../grafana/provisioning"
    (provider,) = read("grafana/provisioning/dashboards/cbq-exporter.yaml")["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "../grafana/dashboards"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/queues.json"
    assert (ROOT / "grafana/dashboards/queues.json").is_file()


def test_alertmanager_and_the_daemon_share_a_token_that_nobody_else_has() -> None:
    receivers = {one["name"]: one for one in read("deploy/alertmanager/alertmanager.yml")["receivers"]}
    (hook,) = receivers["cbq-exporter"]["webhook_configs"]
    theirs = volume_with("alertmanager", hook["http_config"]["authorization"]["credentials_file"])
    assert DAEMON.alerts.auth.bearer_token_file is not None
    assert volume_with("cbq-exporter", str(DAEMON.alerts.auth.bearer_token_file)) == theirs
    assert {name for name in SERVICES if theirs in mounts(name).values()} == {"tokens", "alertmanager", "cbq-exporter"}
    assert volume_with("cbq-exporter", str(DAEMON.web.bearer_token_file)) != theirs


def test_the_daemon_acts_on_what_is_routed_to_it() -> None:
    routes = read("deploy/compose/cbq-exporter.yaml")["alerts"]["routes"]
    acts = {route["match"]["alertname"]: route["action"] for route in routes}
    assert acts == {alert.name: alert.action for alert in ALERTS if alert.action}


def test_receivers_on_their_network_pass_the_egress_guard() -> None:
    (pool,) = COMPOSE["networks"]["receivers"]["ipam"]["config"]
    assert [str(one) for one in DAEMON.queues[0].delivery.egress.allow] == [pool["subnet"]]
    assert "receivers" in SERVICES["cbq-exporter"]["networks"]
