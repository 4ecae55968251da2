"""The rule files' text, for ``make docs``."""

from __future__ import annotations

from typing import Any

import yaml

from monitoring.places import JOB
from monitoring.rules import ALERTS, RECORDINGS, Alert, Recording, duration

RECORDING_RULES = "deploy/prometheus/cbq-recording.rules.yml"
ALERTING_RULES = "deploy/prometheus/cbq-alerts.rules.yml"
KUBERNETES_RULES = "deploy/kubernetes/prometheusrule.yaml"

_HEAD = "# Written by `make docs` from monitoring/rules.py: change it there.\n"


def recording_rules() -> str:
    return _file({"groups": [_recording_group()]})


def alerting_rules() -> str:
    return _file({"groups": [_alerting_group()]})


def kubernetes_rules() -> str:
    """All of them, as the Prometheus operator takes them."""
    about = {"name": JOB, "labels": {"app.kubernetes.io/name": JOB}}
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": about}
    return _file({**kind, "spec": {"groups": [_recording_group(), _alerting_group()]}})


def _recording_group() -> dict[str, Any]:
    return {"name": "cbq-recording", "rules": [_recording(one) for one in RECORDINGS]}


def _alerting_group() -> dict[str, Any]:
    return {"name": "cbq-alerts", "rules": [_alert(one) for one in ALERTS]}


def _recording(one: Recording) -> dict[str, Any]:
    return {"record": one.name, "expr": _Expression(one.expr)}


def _alert(one: Alert) -> dict[str, Any]:
    return {
        "alert": one.name,
        "expr": _Expression(one.expr),
        **({"for": duration(one.wait)} if one.wait else {}),
        "labels": {"severity": one.severity},
        "annotations": {
            "summary": one.summary,
            "description": one.description,
            "runbook_url": one.runbook_url,
            "runbook_command": one.runbook_command,
            "dashboard_url": one.dashboard_url,
        },
    }


class _Expression(str):
    """Written as a block, which needs no quotes."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Expression, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", f"{text}\n", style="|")
)


def _file(content: dict[str, Any]) -> str:
    return _HEAD + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
