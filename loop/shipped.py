"""The shipped configurations of Prometheus and Alertmanager, made quick; there is no second set of them.

Names of hosts, the token's file and the receiver ``people`` are changed as ``deploy/README.md`` tells operators to.
And time runs faster: each duration is a thirtieth of what is shipped, and never less than a second. These are the
intervals, each ``for``, each range of a query and each offset, and the routes' ``cooldown`` and ``repeat_after``.
Numbers that a value is compared with stay: an oldest callback is late after 10 s here too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.support.daemons import merged

FASTER = 30
DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
RULE_FILES = ("cbq-recording.rules.yml", "cbq-alerts.rules.yml")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATIONS = {
    *("scrape_interval", "scrape_timeout", "evaluation_interval", "for"),
    *("group_wait", "group_interval", "repeat_interval", "cooldown", "repeat_after"),
}
# A range, with the step of a subquery, or an offset of a query. Names of what is recorded keep theirs:
# ``…:rate10m`` is over 20 s here.
_IN_QUERIES = re.compile(r"(?<=\[)\d+[smhd](?=[\]:])|(?<=:)\d+[smhd](?=\])|(?<= offset )\d+[smhd]\b")


def seconds(duration: str) -> int:
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def quick(shipped: Any, key: str = "") -> Any:
    """A whole document, or the value of ``key`` in it, with every duration shortened."""
    if isinstance(shipped, dict):
        return {name: quick(value, name) for name, value in shipped.items()}
    if isinstance(shipped, list):
        return [quick(one) for one in shipped]
    if key == "expr":
        return _IN_QUERIES.sub(lambda found: _shorter(found[0]), shipped)
    return _shorter(shipped) if key in _DURATIONS else shipped


def _shorter(duration: str) -> str:
    long = seconds(duration)
    return f"{math.ceil(long / FASTER)}s" if long else "0s"


def rules() -> dict[str, Any]:
    """The content of each of RULE_FILES."""
    return {name: quick(_read(f"prometheus/{name}")) for name in RULE_FILES}


def waits() -> dict[str, int]:
    """The ``for`` of each alert, in seconds; of two with one name the shorter."""
    found: dict[str, int] = {}
    for rule in rules()["cbq-alerts.rules.yml"]["groups"][0]["rules"]:
        wait = seconds(rule.get("for", "0s"))
        found[rule["alert"]] = min(wait, found.get(rule["alert"], wait))
    return found


def prometheus(daemons: Sequence[str], alertmanager: str, rule_files: Sequence[Path]) -> dict[str, Any]:
    """``daemons`` and ``alertmanager`` are URLs."""
    config: dict[str, Any] = quick(_read("prometheus/prometheus.yml"))
    config["rule_files"] = [str(path) for path in rule_files]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [urlsplit(alertmanager).netloc]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [urlsplit(url).netloc for url in daemons]
    return config


def alertmanager(daemons: Sequence[str], token_file: Path, people: str) -> dict[str, Any]:
    """It posts to all ``daemons``, and what people are told to the URL ``people``."""
    config: dict[str, Any] = quick(_read("alertmanager/alertmanager.yml"))
    receivers = {one["name"]: one for one in config["receivers"]}
    receivers["people"]["webhook_configs"] = [{"url": people}]
    (hook,) = receivers["cbq-exporter"]["webhook_configs"]
    hook = merged(hook, {"http_config": {"authorization": {"credentials_file": str(token_file)}}})
    hooks = [{**hook, "url": url + urlsplit(hook["url"]).path} for url in daemons]
    receivers["cbq-exporter"]["webhook_configs"] = hooks
    return config


def alerts(token_file: Path) -> dict[str, Any]:
    """The daemon's section ``alerts``, as ``deploy/README.md`` gives it."""
    snippet = re.search(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert snippet
    found: dict[str, Any] = quick(yaml.safe_load(snippet[1])["alerts"])
    return merged(found, {"auth": {"bearer_token_file": str(token_file)}})


def _read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())
