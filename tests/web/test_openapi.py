"""The OpenAPI document is valid, is what is served, and fits what is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cbq_exporter.errors import RefusedError
from cbq_exporter.model import Snapshot
from cbq_exporter.web import openapi
from cbq_exporter.web.bodies import ACTIONS
from cbq_exporter.web.problems import MEANINGS, Code
from cbq_exporter.web.status import document
from tests.generated import DOCUMENTS, ROOT
from tests.metrics.snapshots import DOWN, MIXED
from tests.support.servers import Server
from tests.web.api_serving import NotingOperator, api_serving, token_file
from tests.web.serving import FakeBackend, serving

DOCUMENT = openapi.document()


def validator(name: str) -> Any:
    root = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(root)


@pytest.mark.parametrize("name", [openapi.PATH, openapi.PAGE])
def test_is_as_the_code_writes_it(name: str) -> None:
    assert (ROOT / name).read_text() == DOCUMENTS[name](), "run `make docs`"


def test_it_is_served() -> None:
    with serving(FakeBackend()) as served:
        answer = served.ask("/api/v1/openapi.json")
        assert (answer.status, json.loads(answer.body)) == (200, DOCUMENT)
        assert served.ask("/api/v1/openapi.json", "POST").status == 405


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', openapi.json()):
        at: Any = DOCUMENT
        for part in reference.split("/"):
            at = at[part]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations) == len(ACTIONS) + 3


def test_what_changes_something_needs_the_token_and_is_no_get() -> None:
    for path, methods in DOCUMENT["paths"].items():
        reading: dict[str, list[Any]] = {"get": [{}, {"user": []}]}  # nobody in particular, unless users are configured
        expected = reading if path == "/api/v1/status" else {"post": [{"token": []}]}
        assert {method: one["security"] for method, one in methods.items()} == expected


def test_every_code_is_told_with_its_status() -> None:
    assert set(MEANINGS) == set(Code) - {Code.HTTP}
    page = openapi.markdown()
    for code, (status, _) in MEANINGS.items():
        assert f"`{code}`" in DOCUMENT["components"]["responses"][str(status)]["description"]
        assert f"| {status} | `{code}` |" in page


@pytest.mark.parametrize("snapshot", [MIXED, DOWN])
def test_the_status_fits_its_schema(snapshot: Snapshot) -> None:
    shown = json.loads(json.dumps(document(snapshot)))
    validator("Status").validate(shown)
    assert set(shown) == set(DOCUMENT["components"]["schemas"]["Status"]["properties"])


def test_answers_and_problems_fit_their_schemas(server: Server, tmp_path: Path) -> None:
    with api_serving(server, token_file(tmp_path)) as api:
        validator("Outcome").validate(json.loads(api.post("callbacks/reset").body))
        validator("Problem").validate(json.loads(api.post("callbacks/reset", {"x": 1}).body))
        validator("Problem").validate(json.loads(api.served.ask("/api/v1/nothing").body))
    with api_serving(server, token_file(tmp_path), NotingOperator(fail=RefusedError("no"))) as api:
        validator("Problem").validate(json.loads(api.post("callbacks/reset").body))


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_what_the_schema_of_a_body_refuses_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    schema = validator(ACTIONS[name].body.__name__)
    bodies: list[dict[str, Any]] = [{}, {"dry_run": True, "reason": "x" * 500}, {"reason": "x" * 501}, {"unknown": 1}]
    members = DOCUMENT["components"]["schemas"][ACTIONS[name].body.__name__]["properties"]
    values: tuple[Any, ...] = (None, True, -1, 1.5, "", "a", "x" * 301, [])
    bodies += [{member: value} for member in members for value in values]
    with api_serving(server, token_file(tmp_path)) as api:
        for body in bodies:
            assert (api.post(f"callbacks/{name}", body).status == 200) == schema.is_valid(body), body
