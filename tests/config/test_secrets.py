"""What is secret is never shown, wherever it was written."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path

import pytest

from cbq_exporter.config import load, warnings
from cbq_exporter.config.redis_url import redacted
from cbq_exporter.errors import ConfigError
from tests.config.conftest import Load

SECRET = "s3cr3t-Pa55"


@pytest.mark.parametrize(
    "text",
    [
        "redis: {url: 'redis://:SECRET@host:99999/0'}",
        "redis: {url: 'redis://:SECRET/x@host/0'}",
        "redis: {url: 'redis://host/0?pasword=SECRET'}",
        "redis: {url: 'http://u:SECRET@host'}",
        "redis: {url: SECRET}",
        "redis: {url: [SECRET]}",
        "redis: {url: {a: SECRET}}",
        "redis: {password: SECRET}",
        "redis: SECRET",
        "redis: [SECRET]",
        "redis: redis://:SECRET@host/0",
        "redis: {'redis://:SECRET@host/0'}",
        "redis: {url:SECRET}",
        "redis: {url: !SECRET!x y}",
        "redis: {url: 'redis://:SECRET@host/0'",
        "redis: {url: 'redis://:SECRET@host/0}",
        'redis: {url: "redis://:SECRET\\q@host/0"}',
        "redis: {url: @SECRET}",
        "redis: {url: *SECRET}",
        "redis: {url: &SECRET }\nlog: *SECRETx",
        "url: redis://:SECRET@host/0",
        "'redis://:SECRET@host/0'",
        "'redis://:SECRET@host/0': 1",
        "data_dir: {'redis://:SECRET@host/0': 1, 'redis://:SECRET@host/0': 2}",
        "web: {listen_address: 'redis://:SECRET@host:1'}",
        'queues: [{name: q, delivery: {request: {headers: {Authorization: "Bearer SECRET\\n"}}}}]',
        "queues: [{name: q, delivery: {request: {headers: {Host: SECRET}}}}]",
        "queues: [{name: q, delivery: {request: {headers: {X-Key: [SECRET]}}}}]",
        "queues: [{name: q, delivery: {request: {headers: ['Authorization: SECRET']}}}]",
        "queues: [{name: q, delivery: {request: {headers: 'Authorization: SECRET'}}}]",
        "queues: [{name: q, delivery: {request: {headers: {'Authorization: SECRET'}}}}]",
        "queues: [{name: q, delivery: {request: {headers: {'Authorization SECRET': }}}}]",
        "queues: [{name: q, delivery: {request: {Authorization: SECRET}}}]",
        "alerts: {auth: {bearer_token: SECRET}}",
    ],
)
def test_no_error_shows_it(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "c.yaml"
    source.write_text(text.replace("SECRET", SECRET))
    with pytest.raises(ConfigError) as raised:
        load(source, {})
    logging.getLogger("test").error("failed", exc_info=raised.value)
    error = raised.value
    frames = "".join(traceback.format_exception(error))
    assert error.__cause__ is None
    assert error.__context__ is None
    for shown in (str(error), repr(error), repr(error.problems), frames, caplog.text):
        assert SECRET not in shown
    for environ in ({"CBQ_REDIS_URL": f"redis://:{SECRET}@h:x"}, {"CBQ_REDIS_URL": f"{SECRET}://"}):
        with pytest.raises(ConfigError) as raised:
            load(source, environ)
        assert SECRET not in str(raised.value)


def test_no_configuration_shows_it(loaded: Load) -> None:
    config = loaded(f"""
        redis: {{url: 'redis://user:{SECRET}@host/0'}}
        queues: [{{name: q, delivery: {{request: {{headers: {{Authorization: Bearer {SECRET}}}}}}}}}]
    """)
    assert config.redis.url is not None
    assert SECRET in config.redis.url.get_secret_value()
    assert SECRET in config.queues[0].delivery.request.headers["Authorization"]
    for shown in (repr(config), str(config), repr(config.queues[0].delivery), str(warnings(config))):
        assert SECRET not in shown
    assert config.redis.redacted_url == "redis://user:***@host/0"
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://SECRET@host/0", "redis://***@host/0"),
        ("redis://:SECRET@host/0", "redis://:***@host/0"),
        ("rediss://u:SECRET@[::1]:6380/0?ssl_cert_reqs=none", "rediss://u:***@[::1]:6380/0?ssl_cert_reqs=none"),
        ("redis://host/0?password=SECRET&db=3", "redis://host/0?db=3"),
        ("unix://u:SECRET@/run/redis.sock?db=1", "unix://u:***@/run/redis.sock?db=1"),
        ("redis://u:SECRET@host:nonsense", "***"),
    ],
)
def test_a_url_is_shown_without_it(url: str, shown: str) -> None:
    assert redacted(url.replace("SECRET", SECRET)) == shown
