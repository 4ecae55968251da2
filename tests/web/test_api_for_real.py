"""The API with the real operations behind it, on a real store, and in a real daemon."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbq_exporter.config.models import Config
from cbq_exporter.model import Trigger
from cbq_exporter.services.audit import Audit
from cbq_exporter.services.operations import Operations
from cbq_exporter.store.answers import Answers
from cbq_exporter.store.opening import make_store
from cbq_exporter.web.api import Api
from cbq_exporter.web.bodies import ACTIONS
from tests.support.daemons import Daemon, queue
from tests.support.queues import callback
from tests.support.servers import Server
from tests.web.api_serving import QUEUES, TOKEN, ApiServing, problem, token_file
from tests.web.serving import FakeBackend, serving


class RealServing(ApiServing):
    audit: Audit

    def done(self, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        answer = self.post(path, body, **headers)
        assert answer.status == 200, answer.text
        told: dict[str, Any] = json.loads(answer.body)
        return told

    def entries(self) -> list[tuple[str, str, str, str]]:
        entries = self.served.run(self.audit.entries("callbacks", count=100))
        return [(str(one.actor), one.operation, one.reason, one.result) for one in entries]


@contextmanager
def real(server: Server, folder: Path) -> Iterator[RealServing]:
    config = Config(web={"bearer_token_file": token_file(folder)}, queues=QUEUES)
    store = make_store(config, server.url)
    audit = Audit(store)
    answers = {name: Answers(store.connections, one.keys) for name, one in store.queues.items()}
    api = Api(config, Operations(config, store, audit), answers)
    with serving(FakeBackend(config=config), routes=[api]) as served:
        try:
            serving_it = RealServing(served, operator=None)  # type: ignore[arg-type]
            serving_it.audit = audit
            yield serving_it
        finally:
            served.run(store.close())


def contents(server: Server) -> dict[bytes, bytes]:
    """Everything but what is known about requests: the audit and kept answers."""
    keys = [key for key in server.client.scan_iter() if b":audit" not in key and b":answers" not in key]
    return {key: server.client.dump(key) or b"" for key in keys}


def test_reset_and_undo_by_the_id_of_the_answer(each_server: Server, tmp_path: Path) -> None:
    payloads = [callback(number) for number in range(5)]
    each_server.client.rpush("one:pending", *payloads[:3])
    each_server.client.rpush("one:processing", *payloads[3:])
    with real(each_server, tmp_path) as api:
        dry = api.done("callbacks/reset", {"dry_run": True, "reason": "just looking"})
        assert (dry["planned"]["pending"], dry["planned"]["processing"], dry["done"], dry["undo"]) == (3, 2, {}, None)
        assert each_server.client.llen("one:pending") == 3
        reset = api.done("callbacks/reset", {"reason": "poisoned batch"}, Idempotency_Key="r")
        assert each_server.client.exists("one:pending", "one:processing") == 0
        # Sent again by a client that did not hear the answer, after more has come in: nothing of it is moved.
        each_server.client.rpush("one:pending", callback(9))
        assert api.done("callbacks/reset", {"reason": "poisoned batch"}, Idempotency_Key="r") == reset
        assert each_server.client.llen("one:pending") == 1
        undone = api.done("callbacks/undo", {"trash_id": reset["undo"]})
        assert undone["done"] == {"callbacks": 5}
        assert each_server.client.lrange("one:pending", 0, -1)[-1] == callback(9)
        assert problem(api.post("callbacks/undo", {"trash_id": "no-such"}))["code"] == "refused"
        assert api.entries() == [
            ("api:alice", "reset", "just looking", "dry_run"),
            ("api:alice", "reset", "poisoned batch", "started"),
            ("api:alice", "reset", "poisoned batch", "done"),
            ("api:alice", "undo", "", "started"),
            ("api:alice", "undo", "", "done"),
            ("api:alice", "undo", "", "refused"),
        ]


def test_a_healthy_lock_is_not_released_without_force(server: Server, tmp_path: Path) -> None:
    server.client.set("one:lock", "worker_1764000000_1111", ex=30)
    with real(server, tmp_path) as api:
        told = problem(api.post("callbacks/unlock", {"reason": "it hangs"}))
        assert (told["status"], told["code"]) == (403, "refused")
        assert told["detail"].endswith('by itself; wait for that, or set "force": true')
        assert server.client.exists("one:lock")
        assert not api.done("callbacks/unlock", {"force": True})["nothing_to_do"]
        assert not server.client.exists("one:lock")
        assert api.done("callbacks/unlock")["nothing_to_do"]
        assert api.entries()[0] == ("api:alice", "unlock", "it hangs", "refused")


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_a_dry_run_and_whoever_has_no_token_change_nothing(server: Server, tmp_path: Path, name: str) -> None:
    with real(server, tmp_path) as api:
        for number in range(2):
            server.client.rpush("one:pending", callback(number))
            api.done("callbacks/reset")
        server.client.rpush("one:pending", callback(3))
        server.client.rpush("one:processing", callback(4))
        server.client.set("one:lock", "worker_1764000000_1111")
        api.done("callbacks/pause", {"destination": "slow.example"})
        before = contents(server)
        api.done(f"callbacks/{name}", {"dry_run": True}, Idempotency_Key="k")
        audited = len(api.entries())
        for token in (None, TOKEN[:-1]):
            assert api.post(f"callbacks/{name}", {}, token=token).status == 401
        assert problem(api.post(f"watched/{name}", {}))["code"] == "observed"
        assert contents(server) == before
        assert len(api.entries()) == audited


_MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "dry_run": st.booleans(),
    "reason": st.text(max_size=500),
    "force": st.booleans(),
    "only_known_stuck": st.booleans(),
    "older_than": st.none() | st.floats(0, 1e9),
    "trash_id": st.none() | st.text("abc019-_.:", max_size=64),
    "destination": st.none() | st.text(max_size=300),
}
_BODIES = st.fixed_dictionaries({}, optional=_MEMBERS)


def test_no_body_of_whoever_may_causes_a_fault_or_loses_a_callback(server: Server, tmp_path: Path) -> None:
    payloads = sorted(callback(number) for number in range(4))
    server.client.rpush("one:pending", *payloads)

    def everywhere() -> list[bytes]:
        lists = [key for key in server.client.scan_iter() if server.client.type(key) == b"list"]
        found: list[Any] = [one for key in lists for one in server.client.lrange(key, 0, -1)]
        return sorted(found)

    with real(server, tmp_path) as api:

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(sorted(ACTIONS)), _BODIES)
        def check(name: str, body: dict[str, Any]) -> None:
            members = ACTIONS[name].body.__struct_fields__
            content = json.dumps({member: value for member, value in body.items() if member in members}).encode()
            answer = api.post(f"callbacks/{name}", content)
            assert answer.status in (200, 403, 409, 422), answer.text
            assert everywhere() == payloads

        check()


def test_a_daemon_serves_it_and_remembers_after_a_restart(server: Server, tmp_path: Path) -> None:
    tokens = token_file(tmp_path)
    server.client.rpush("callback_queue:processing", callback(1), callback(2))
    with Daemon(server.url, queue(mode="supervise"), web={"bearer_token_file": str(tokens)}) as daemon:
        status, first = post(daemon, "recover", {"reason": "worker 7 died"}, "k")
        assert (status, first["done"]["callbacks"]) == (200, 2)
        count = daemon.metrics().get("cbq_operations_total", operation="recover", trigger=Trigger.API, result="done")
        assert count == 1
        assert daemon.stop() == 0
        daemon.start()
        server.client.rpush("callback_queue:processing", callback(3))
        assert post(daemon, "recover", {"reason": "worker 7 died"}, "k") == (200, first)
        assert server.client.lrange("callback_queue:processing", 0, -1) == [callback(3)]
        assert TOKEN not in daemon.log()


def post(daemon: Daemon, operation: str, body: dict[str, Any], key: str) -> tuple[int, dict[str, Any]]:
    address = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "Idempotency-Key": key}
    try:
        connection.request("POST", f"/api/v1/queues/callbacks/{operation}", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
