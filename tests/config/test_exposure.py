"""Files with secrets that everybody on the machine can read are warned of, and no others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbq_exporter.cli.main import app
from cbq_exporter.config import container, load
from cbq_exporter.config.exposure import exposed

FILES = ("api", "alert", "web.yml", "signing", "billing")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where everybody may come: those of pytest are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def file(folder: Path) -> Path:
    for name in FILES:
        (folder / name).write_text("a-token-without-a-name\n")
        (folder / name).chmod(0o640)
    (folder / "web.yml").write_text("{}")
    (folder / "config.yaml").write_text(f"""
redis: {{url: 'redis://:s3cret@127.0.0.1/0'}}
web: {{bearer_token_file: {folder}/api, config_file: {folder}/web.yml}}
alerts:
  auth: {{bearer_token_file: {folder}/alert}}
  routes: [{{match: {{alertname: X}}, action: recover}}]
queues: [{{name: callbacks, delivery: {{request: {{secrets: {{key: {folder}/signing, other: env:OTHER}}}}}}}}]
destinations: [{{name: billing, match: billing.example, request: {{secrets: {{key: {folder}/billing}}}}}}]
""")
    (folder / "config.yaml").chmod(0o600)
    return folder / "config.yaml"


def test_only_what_everybody_can_read_is_told(file: Path, folder: Path) -> None:
    config = load(file, {}).config
    assert exposed(config, file) == ()
    for path in (file, *(folder / name for name in FILES)):
        path.chmod(0o644)
    told = exposed(config, file)
    assert [line.split(": ")[:2] for line in told] == [
        ["redis.url", str(file)],
        ["web.config_file", f"{folder}/web.yml"],
        ["web.bearer_token_file", f"{folder}/api"],
        ["alerts.auth.bearer_token_file", f"{folder}/alert"],
        ["queues[0].delivery.request.secrets.key", f"{folder}/signing"],
        ["destinations[0].request.secrets.key", f"{folder}/billing"],
    ]
    assert told[2].endswith(f"every user of this machine can read what is secret in it: chmod o= {folder}/api")
    assert exposed(config, None) == told[1:], "the password is from the environment"
    folder.chmod(0o750)
    assert exposed(config, file) == (), "nobody else comes there"
    folder.chmod(0o755)
    file.write_text("redis: {url: 'redis://127.0.0.1/0'}\n")
    assert exposed(load(file, {}).config, file) == (), "there is no secret in it"


def test_check_config_warns_of_it_outside_of_containers(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "api").chmod(0o644)
    monkeypatch.setenv("OTHER", "x")
    monkeypatch.setattr(container, "_FILES", ())
    for name in ("CBQ_REDIS_URL", *container._VARIABLES):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, ["check-config", "-c", str(file)])
    assert (result.exit_code, "can read what is secret in it" in result.stderr) == (0, True), result.output
    monkeypatch.setenv("container", "podman")
    assert "can read what is secret" not in CliRunner().invoke(app, ["check-config", "-c", str(file)]).output
