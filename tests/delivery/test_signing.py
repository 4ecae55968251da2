"""Signatures, as the reference library of Standard Webhooks verifies them."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from cbq_exporter.config import (
    CoalesceConfig,
    DeliveryConfig,
    DestinationConfig,
    QueueConfig,
    RequestConfig,
    SigningConfig,
)
from cbq_exporter.config.files import Files
from cbq_exporter.delivery.receivers import Receiver, Receivers
from cbq_exporter.delivery.shaping import Item, Shaped, read
from cbq_exporter.delivery.signing import keys_of
from cbq_exporter.errors import ConfigError
from cbq_exporter.model import Claimed


def secret(length: int = 32) -> str:
    return f"whsec_{base64.b64encode(random.Random(length).randbytes(length)).decode()}"


OLD, NEW, OTHER = secret(24), secret(), secret(64)
PAYLOAD = '{"url":"https://a.example/x","data":{"n":1.0,"text":"a ‘cat’"}}'.encode()


def receiver(
    signing: SigningConfig, files: Files | None = None, destination: DestinationConfig | None = None
) -> Receiver:
    queue = QueueConfig(name="q", delivery=DeliveryConfig(signing=signing))
    item = read(CLAIMED)
    assert isinstance(item, Item)
    return Receivers(queue, [destination] if destination else [], files=files).of(item.target)


CLAIMED = Claimed("lease", "0123abcd" * 5, PAYLOAD, 0, 0, 0)


def sent(one: Receiver) -> Shaped:
    item = read(CLAIMED)
    assert isinstance(item, Item)
    shaped = one.shaper.shape(CLAIMED, item)
    assert isinstance(shaped, Shaped)
    return Shaped(shaped.body, one.shaper.all_headers(CLAIMED, shaped))


def headers_of(shaped: Shaped) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in shaped.headers)


def test_a_receiver_can_verify_it() -> None:
    shaped = sent(receiver(SigningConfig(secrets_env="S"), Files({"S": NEW})))
    headers = headers_of(shaped)
    assert Webhook(NEW).verify(shaped.body, headers) == {"n": 1.0, "text": "a ‘cat’"}
    assert headers["webhook-id"] == f"msg_{CLAIMED.fingerprint}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(shaped.body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(shaped.body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(shaped.body, {**headers, "webhook-id": "msg_other"})


def test_a_secret_is_replaced_without_a_gap(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"# the new one first\n{NEW}\n\n{OLD}\n")
    shaped = sent(receiver(SigningConfig(secrets_file=file, secrets_env="S"), Files({"S": f"{OTHER}"})))
    for known in (OLD, NEW, OTHER):
        Webhook(known).verify(shaped.body, headers_of(shaped))
    assert [one.partition(",")[0] for one in headers_of(shaped)["webhook-signature"].split()] == ["v1"] * 3


def test_what_is_signed_is_what_was_made_last(tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text('{"try": {{ attempt.number }}, "nonce": "{{ nonce }}"}')
    entry = DestinationConfig(
        name="a",
        match="a.example",
        request=RequestConfig.model_validate({"body": {"template": str(template)}, "headers": {"x": "{{ now_ms }}"}}),
        signing=SigningConfig(secrets_env="OWN"),
    )
    files = Files({"S": NEW, "OWN": OTHER})
    one = receiver(SigningConfig(secrets_env="S"), files, entry)
    first, second = sent(one), sent(one)
    assert first.body != second.body
    for shaped in (first, second):
        Webhook(OTHER).verify(shaped.body, headers_of(shaped))
        assert json.loads(shaped.body)["try"] == 1


def test_what_goes_together_is_signed_as_a_whole_and_alone_on_its_own() -> None:
    files = Files({"S": NEW})
    entry = DestinationConfig(name="a", match="a.example", coalesce=CoalesceConfig())
    one = receiver(SigningConfig(secrets_env="S"), files, entry)
    alone = sent(one)
    Webhook(NEW).verify(alone.body, headers_of(alone))
    together = b"[" + alone.body + b"," + alone.body + b"]"
    lines = one.shaper.headers_for("msg_both", together)
    Webhook(NEW).verify(together, dict(line.split(": ", 1) for line in lines))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no secret in it"),
        ("# only this\n", "no secret in it"),
        (f"{NEW} {NEW[6:]}", "secret 2 does not begin with whsec_"),
        ("whsec_%%%", "secret 1 is not base64 after whsec_"),
        (secret(23), "secret 1 has 23 bytes; it must have 24 to 64"),
        (secret(65), "secret 1 has 65 bytes; it must have 24 to 64"),
        (NEW.replace("whsec_", "whsk_"), "secret 1 is for ed25519 (v1a), which is not available: only whsec_ is"),
    ],
)
def test_a_secret_that_is_none_is_told_and_not_shown(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        receiver(SigningConfig(secrets_env="S"), Files({"S": text}))
    (problem,) = raised.value.problems
    assert (problem.file, problem.path) == ("configuration", "queues[q].delivery.signing.secrets_env")
    assert problem.found == f"{told} (environment variable S)"
    assert NEW[8:] not in str(problem)


def test_a_secret_without_its_padding_is_the_same() -> None:
    assert keys_of(secret(25)) != keys_of(NEW)
    assert keys_of(OTHER.rstrip("=")) == keys_of(OTHER)


def test_nothing_shows_a_secret() -> None:
    one = receiver(SigningConfig(secrets_env="S"), Files({"S": NEW}))
    assert NEW[6:20] not in repr(one)
    assert repr(base64.b64decode(NEW[6:])) not in repr(one)
