"""Requests as a real receiver gets them: by a template, signed, made anew for each attempt, secrets reread."""

from __future__ import annotations

import base64
import json
import os
import signal
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from tests.e2e.bare_client import PREFIX, lengths, push
from tests.support.daemons import Daemon, queue, until
from tests.support.receiver import Answer, Receiver, Seen
from tests.support.servers import Server

EXAMPLE = Path(__file__).parents[2] / "docs/examples/envelope.json.j2"


def secret() -> str:
    return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"


def callback(receiver: Receiver, number: int, **fields: Any) -> bytes:
    whole = {"url": receiver.url("/"), "task_id": f"t{number}", "status": "success", "data": {"image": "aGk="}}
    return json.dumps({**whole, **fields}).encode()


def is_signed(seen: Seen, by: str) -> bool:
    try:
        Webhook(by).verify(seen.body, seen.headers)
    except WebhookVerificationError:
        return False
    return True


def test_templates_and_signatures_reach_the_receiver(server: Server, tmp_path: Path) -> None:
    client: Any = server.client
    partner, secrets = tmp_path / "partner", tmp_path / "secrets"
    old, new = secret(), secret()
    partner.write_text("s3cr3t-Pa55\n")
    secrets.write_text(old)
    delivery = {
        "request": {
            "body": {"template": str(EXAMPLE)},
            "secrets": {"partner": str(partner)},
            "headers": {"X-Attempt": "{{ attempt.number }}", "X-Key": "{{ secrets.partner }}"},
        },
        "signing": {"secrets_file": str(secrets)},
    }
    answers = iter([Answer(503), Answer(503)])
    with Receiver() as receiver, Daemon(server.url, queue(delivery=delivery)) as daemon:
        receiver.default = lambda seen: next(answers, Answer())

        def requests(count: int) -> list[Seen]:
            receiver.wait_for_requests(count)
            return list(receiver.requests)

        def reload(outcome: str) -> None:
            before = daemon.log().count(outcome)
            daemon.send_signal(signal.SIGHUP)
            until(lambda: daemon.log().count(outcome) > before)

        # Each attempt is made anew; what cannot be made stops nothing.
        unusable = callback(receiver, 0, data={})
        push(client, unusable, callback(receiver, 1))
        attempts = requests(3)
        assert [seen.headers["x-attempt"] for seen in attempts] == ["1", "2", "3"]
        assert len({seen.headers["webhook-id"] for seen in attempts}) == 1
        assert len({json.loads(seen.body)["nonce"] for seen in attempts}) == 3
        assert all(is_signed(seen, by=old) and seen.headers["x-key"] == "s3cr3t-Pa55" for seen in attempts)
        until(lambda: lengths(client)["dead"] == 1 and lengths(client)["retry"] == 0)
        assert client.hvals(f"{PREFIX}:payloads") == [unusable]
        assert daemon.metrics().get("cbq_callbacks_dead_total", reason="render") == 1
        # A secret is replaced by two reloads; one that is broken replaces nothing.
        secrets.write_text(f"{new}\n{old}\n")
        reload('"event": "reloaded')
        push(client, callback(receiver, 2))
        both = requests(4)[3]
        assert is_signed(both, by=old)
        assert is_signed(both, by=new)
        secrets.write_text("whsec_nonsense")
        reload("not reloaded")
        push(client, callback(receiver, 3))
        assert is_signed(requests(5)[4], by=old)
        secrets.write_text(new)
        partner.write_text("another")
        reload('"event": "reloaded')
        push(client, callback(receiver, 4))
        last = requests(6)[5]
        assert is_signed(last, by=new)
        assert not is_signed(last, by=old)
        assert last.headers["x-key"] == "another"
        until(lambda: lengths(client)["processing"] == 0)
        assert "s3cr3t" not in daemon.log()
        assert old[6:] not in daemon.log()
