"""The Kubernetes manifests: valid by the API's own schemas, and in agreement with each other and with the daemon."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cbq_exporter.config import load
from cbq_exporter.delivery.egress import EgressPolicy
from monitoring.places import JOB
from monitoring.rules import ALERTS, RECORDINGS
from tests.support.daemons import Daemon
from tests.support.prometheus import program
from tests.support.servers import Server

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
VERSIONS = ("1.27", "1.34")  # the first with unhealthyPodEvictionPolicy on by default, and a recent one


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return read


KUSTOMIZATION = _read(FOLDER / "kustomization.yaml")
MANIFESTS = {one["kind"]: one for one in (_read(FOLDER / name) for name in KUSTOMIZATION["resources"])}

_NAME = {"type": "string", "pattern": "^[a-z0-9-]+$"}
_META = {"type": "object", "required": ["name"], "properties": {"name": _NAME, "labels": {"type": "object"}}}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_RELABELING = _closed(
    ["sourceLabels", "targetLabel"],
    sourceLabels={"type": "array", "items": {"type": "string"}},
    separator={"type": "string"},
    targetLabel={"type": "string"},
)

# The part of the Prometheus operator's own kinds that is used here: their schemas come with no package.
OPERATOR = {
    "ServiceMonitor": _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": "ServiceMonitor"},
        metadata=_META,
        spec=_closed(
            ["selector", "endpoints"],
            jobLabel={"type": "string"},
            selector=_closed([], matchLabels=_LABELS),
            endpoints={
                "type": "array",
                "minItems": 1,
                "items": _closed(
                    ["port"],
                    port={"type": "string"},
                    interval=_DURATION,
                    scrapeTimeout=_DURATION,
                    relabelings={"type": "array", "items": _RELABELING},
                ),
            },
        ),
    ),
    "PrometheusRule": _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": "PrometheusRule"},
        metadata=_META,
        spec=_closed(
            ["groups"],
            groups={
                "type": "array",
                "items": _closed(
                    ["name", "rules"],
                    name={"type": "string"},
                    rules={
                        "type": "array",
                        "items": {
                            **_closed(
                                ["expr"],
                                record={"type": "string", "pattern": "^[a-zA-Z_:][a-zA-Z0-9_:]*$"},
                                alert={"type": "string"},
                                expr={"type": "string"},
                                labels=_LABELS,
                                annotations=_LABELS,
                                **{"for": _DURATION},
                            ),
                            "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
                        },
                    },
                ),
            },
        ),
    ),
}


def test_every_file_is_applied() -> None:
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml"} == {file.name for file in FOLDER.iterdir()}
    assert set(MANIFESTS) == {
        *("Namespace", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"),
        *OPERATOR,
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(set(MANIFESTS) - set(OPERATOR)))
def test_the_api_accepts_it(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


@pytest.mark.parametrize("kind", OPERATOR)
def test_the_operator_accepts_it(kind: str) -> None:
    jsonschema.validate(MANIFESTS[kind], OPERATOR[kind])


def test_all_of_them_mean_the_same_pods() -> None:
    deployment, service = MANIFESTS["Deployment"]["spec"], MANIFESTS["Service"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        selector = MANIFESTS[kind]["spec"].get("selector") or MANIFESTS[kind]["spec"]["podSelector"]
        assert selector["matchLabels"] == labels
    monitor = MANIFESTS["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == JOB
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    # The same in two namespaces is two jobs: else the rules would take one Redis for the other.
    (job,) = [one for one in endpoint["relabelings"] if one["targetLabel"] == "job"]
    assert job["sourceLabels"] == ["namespace", "job"]


def test_they_agree_with_the_daemon(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(MANIFESTS["ConfigMap"]["data"]["config.yaml"])
    config = load(file, {"CBQ_REDIS_URL": "redis://redis.example:6379/0"}).config
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert config.web.port == container["ports"][0]["containerPort"]
    assert config.shutdown.grace < pod["terminationGracePeriodSeconds"] - 10
    assert config.queues[0].mode == "observe"  # nothing is written on the first day
    assert MANIFESTS["Deployment"]["spec"]["replicas"] > 1
    assert {one["name"] for one in pod["volumes"]} == {one["name"] for one in container["volumeMounts"]}
    assert KUSTOMIZATION["images"][0]["name"] == container["image"]


def test_the_probes_are_answered(server: Server) -> None:
    (container,) = MANIFESTS["Deployment"]["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    with Daemon(server.url) as daemon:
        daemon.wait_until_ready()
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port["name"]
            assert daemon.get(asked["path"])[0] == 200


def test_the_network_lets_out_to_the_public_what_the_daemon_would_send() -> None:
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert policy["ingress"][0]["ports"][0]["port"] == MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"]
    (public,) = (rule for rule in policy["egress"] if any("ipBlock" in to for to in rule["to"]))
    assert {one["port"] for one in public["ports"]} == {80, 443}
    guard = EgressPolicy()
    blocks = [to["ipBlock"] for to in public["to"]]
    for kept in (kept for block in blocks for kept in block.get("except", [])):
        assert guard.verdict(str(ip_network(kept)[1])), f"the daemon would send to {kept}, and the network would not"
    for address in ("8.8.8.8", "198.51.99.1", "2606:4700:4700::1111"):
        assert guard.verdict(address) is None
        assert any(ip_address(address) in ip_network(block["cidr"]) for block in blocks)


def test_nothing_more_is_allowed_than_the_strictest_policy_allows() -> None:
    assert MANIFESTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    security = pod["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_prometheus_accepts_the_rules_and_none_is_missing(tmp_path: Path) -> None:
    groups = MANIFESTS["PrometheusRule"]["spec"]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps(groups))
    command = [program("promtool"), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS) + len(RECORDINGS)
