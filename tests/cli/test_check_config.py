"""``check-config``: everything that is wrong, at once, and no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbq_exporter.cli.main import app

ALERTS = "alerts: {{auth: {{bearer_token_file: {}}}, routes: [{{match: {{alertname: X}}, action: recover}}]}}"


def _check(file: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["check-config", "-c", str(file), *words], env={"CBQ_REDIS_URL": None})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_a_good_file(file: Path) -> None:
    file.write_text(
        "redis: {url: 'redis://me:s3cret@redis.example:6379/1'}\n"
        "queues:\n  - {name: callbacks}\n  - {name: other, prefix: o, mode: observe}\n"
    )
    result = _check(file)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{file}: ok",
        "store: redis://me:***@redis.example:6379/1",
        "",
        "queue      mode      prefix",
        "callbacks  dispatch  callback_queue",
        "other      observe   o",
    ]
    assert result.stderr.startswith("warning: ")
    assert "s3cret" not in result.output
    fields = json.loads(_check(file, "-o", "json").stdout)
    assert (fields["ok"], fields["file"], len(fields["queues"]), len(fields["warnings"])) == (True, str(file), 2, 1)


def test_every_problem_of_a_bad_file(file: Path) -> None:
    file.write_text("queues:\n  - {name: callbacks, moed: observe, batch: {size: 0}}\n")
    result = _check(file)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cbq-exporter: ") for line in lines)
    assert "queues[0].moed" in result.stderr
    assert "queues[0].batch.size" in result.stderr
    result = _check(file, "-o", "json")
    assert result.exit_code == 1
    assert [problem["path"] for problem in json.loads(result.stdout)["problems"]]


def test_the_web_config_is_checked_too(file: Path, tmp_path: Path) -> None:
    web_yml, tokens = tmp_path / "web.yml", tmp_path / "tokens"
    tokens.write_text("a-token-without-a-name\n")
    file.write_text(f"web: {{listen_address: ':9847', bearer_token_file: {tokens}, config_file: {web_yml}}}\n")
    web_yml.write_text("tls_server_config: {cert_file: none.pem, key_file: none.key}\n")
    result = _check(file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"cbq-exporter: {tmp_path}/none.pem: tls_server_config.cert_file: found ")
    web_yml.write_text("basic_auth_users: {alice: s3cret}\nhttp_servers: {}\n")
    problems = json.loads(_check(file, "-o", "json").stdout)["problems"]
    assert [problem["path"] for problem in problems] == ["basic_auth_users", "http_servers"]
    assert "s3cret" not in str(problems)
    web_yml.write_text("")
    assert _check(file).stderr.splitlines() == [
        f"warning: {web_yml}: tls_server_config: is not there: bearer tokens cross the network unencrypted"
    ]


def test_files_of_tokens_are_checked_too(file: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "people", tmp_path / "alertmanager"
    file.write_text(f"web: {{bearer_token_file: {ours}}}\n{ALERTS.format(theirs)}\n")
    theirs.write_text("short\n")
    refused = "cannot be used, so every request that needs it is refused"
    result = _check(file)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"warning: web.bearer_token_file {refused}: {ours}: No such file or directory",
        f"warning: alerts.auth.bearer_token_file {refused}: {theirs}:1: a token must have 16 characters at least",
    ]
    for path in (ours, theirs):
        path.write_text("a-token-without-a-name\n")
    assert _check(file).stderr == ""


def test_what_the_file_names_and_is_not_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CBQ_NONE", raising=False)
    file.write_text(
        "redis: {url: 'unix:///nowhere.sock'}\nweb: {listen_address: '127.0.0.1:0'}\nqueues:\n"
        "  - name: a\n    prefix: a\n"
        "    delivery: {request: {secrets: {key: 'env:CBQ_NONE'}, headers: {X-Key: '{{ secrets.key }}'}}}\n"
        "  - {name: b, prefix: b, delivery: {signing: {secrets_env: CBQ_NONE}}}\n"
        "  - {name: c, prefix: c, delivery: {request: {headers: {X-Key: '{{ no'}}}}\n"
    )
    result = _check(file)
    said = "found no value (environment variable CBQ_NONE); set it where cbq-exporter runs, or name a file instead"
    assert (result.exit_code, result.stdout) == (1, "")
    *variables, header = result.stderr.splitlines()
    assert variables == [
        f"cbq-exporter: {file}: queues[a].delivery.request.secrets.key: {said}",
        f"cbq-exporter: {file}: queues[b].delivery.signing.secrets_env: {said}",
    ]
    assert header.startswith(f"cbq-exporter: {file}: queues[c].delivery.request.headers.X-Key: found ")
    serve = [sys.executable, "-m", "cbq_exporter", "serve", "-c", str(file)]
    served = subprocess.run(serve, capture_output=True, text=True, timeout=60, check=False)
    assert (served.returncode, served.stderr.splitlines()[-1]) == (1, variables[0])


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CBQ_CONFIG", raising=False)
    result = CliRunner().invoke(app, ["check-config"], env={"CBQ_REDIS_URL": None})
    assert result.exit_code == 0
    assert result.stdout.startswith("the built-in defaults: ok\nstore: embedded, in cbq-data\n")
