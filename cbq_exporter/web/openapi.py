"""The API as an OpenAPI 3.1 document, and as a page for people; both written from what the code takes and answers."""

from __future__ import annotations

import inspect
import json as json_writer
from functools import cache
from typing import Any

import msgspec

from cbq_exporter import __version__
from cbq_exporter.model import ReleaseReason
from cbq_exporter.services.alert_body import WebhookBody
from cbq_exporter.web import alerts, reload
from cbq_exporter.web.alerts import AlertsAnswer
from cbq_exporter.web.bodies import ACTIONS, Action, Outcome
from cbq_exporter.web.idempotency import HEADER, REPLAYED
from cbq_exporter.web.problems import CONTENT_TYPE, MEANINGS, Code, Problem
from cbq_exporter.web.reload import Reloaded

PATH = "docs/openapi.json"
PAGE = "docs/api.md"
_SCHEMAS = "#/components/schemas/"
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer; Basic, where a user and a password are needed."},
    503: {"Retry-After": "Seconds, where the store is away."},
}

_HEAD = """\
# HTTP API

Everything is JSON. The daemon serves this API as an OpenAPI 3.1 document at `/api/v1/openapi.json`
([openapi.json](openapi.json) is the same). Field names only ever grow. Times are epoch seconds, durations seconds,
null is unknown.

`GET /api/v1/status` shows all queues, as `cbq-exporter status -o json` does, and needs no token. In a queue's `lock`,
`keeper` is what the lock keeper thinks of it: the `verdict` (`leave`, `watch` or `release`), the `reason`, and when it
acts, `acts_at`.

## Changing something

`POST /api/v1/queues/{queue}/{operation}` does what the command of the same name does, and is audited like it. It
needs a token, at any address; without `web.bearer_token_file` every such request is refused. The file has a token on
each line, or a name and a token; the name appears in the audit (`api` where there is none). Several lines let a token
be replaced without a gap; a changed file counts at once. A token has 16 characters at least:

```sh
(umask 077 && echo "alice $(openssl rand -hex 32)" > tokens)
```

The body is a JSON object; `{}` is enough. Begin with `"dry_run": true`, which answers with the plan:

```sh
curl -sS http://127.0.0.1:9847/api/v1/queues/callbacks/recover \\
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
  -d '{"dry_run": true, "reason": "worker 7 died"}'
```

Beyond this machine, serve it over TLS ([web.md](web.md)), or tokens can be read on the way. Browsers of other origins
are given nothing.

`POST /api/v1/alerts` is for Alertmanager: [alerts.md](alerts.md).
"""

_RELOAD = f"""\
## Reloading the configuration

`POST {reload.PATH}` does what SIGHUP does ([configuration.md](configuration.md#reload)). It needs the same token and
no body. It answers when the new configuration is in effect, which takes up to `shutdown.grace` where sends are in
flight; should the client not wait for it, it goes on. A wrong file is 409, with a line for each thing in `problems`.

```sh
curl -sS -X POST http://127.0.0.1:9847{reload.PATH} -H "Authorization: Bearer $TOKEN"
```

| member | meaning |
|---|---|
"""

_IDEMPOTENCY = f"""\
## Sending a request again

With an `{HEADER}` of your choice (such as a UUID) a request that comes again within 24 hours is not
carried out again: it gets the first answer, with `{REPLAYED}: true`. That holds after a restart, and for
all daemons on one store. A key belongs to the queue and to the token's name. What was refused before anything was
tried (such as a bad body, or a store that was away) leaves nothing, and may be sent again with its key.

After a 503 it may be unknown whether the operation was carried out. Then the same key gets 409, `key_in_use`: look at
`cbq-exporter audit` before you try with another key.
"""

_ERRORS = f"""\
## Errors

Errors are `{CONTENT_TYPE}` (RFC 9457): `title` and `status` are HTTP's, `detail` is one line for
people, `code` is for programs, and `field` names the member of the body that is wrong.

| status | code | what it means |
|---|---|---|
"""


def document() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(
        [Outcome, Problem, WebhookBody, AlertsAnswer, Reloaded, *(action.body for action in ACTIONS.values())],
        ref_template=_SCHEMAS + "{name}",
    )
    for schema in schemas.values():
        if "description" in schema:  # a docstring: Python 3.13 takes its indentation away, older ones do not
            schema["description"] = inspect.cleandoc(schema["description"])
    schemas["Status"] = _STATUS
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cbq-exporter",
            "version": __version__,
            "summary": "Look at callback queues, and heal them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/api/v1/status": {
                "get": {
                    "operationId": "status",
                    "summary": "Show all queues.",
                    "security": [{}, {"user": []}],
                    "responses": {
                        "200": _json("All queues at one moment; a store that is away is shown too.", "Status"),
                        "401": {"$ref": "#/components/responses/401"},
                    },
                }
            },
            alerts.PATH: {"post": _alerts()},
            reload.PATH: {"post": _reload()},
            **{f"/api/v1/queues/{{queue}}/{name}": {"post": _operation(action)} for name, action in ACTIONS.items()},
        },
        "components": {
            "schemas": schemas,
            "parameters": {
                "queue": {
                    "name": "queue",
                    "in": "path",
                    "required": True,
                    "description": "The queue's name in the configuration.",
                    "schema": {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"},
                },
                "key": {
                    "name": HEADER,
                    "in": "header",
                    "required": False,
                    "description": "A request with a key that was sent before gets the first answer, for 24 hours.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]*$"},
                },
            },
            "responses": {str(status): _failure(status) for status in _statuses()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of web.bearer_token_file; for alerts, of alerts.auth.bearer_token_file.",
                },
                "user": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "One of basic_auth_users in web.config_file, where there are any.",
                },
            },
        },
    }


@cache
def json() -> str:
    return json_writer.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    lines = [_HEAD, "## Operations\n"]
    schemas = document()["components"]["schemas"]
    for name, action in ACTIONS.items():
        lines += [
            f"### {name}\n",
            f"{action.body.__doc__}\n",
            "| member | type | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_member(member, schema) for member, schema in schemas[action.body.__name__]["properties"].items()]
        lines.append("")
    lines += ["### The answer\n", "| member | type | meaning |", "|---|---|---|"]
    outcome = schemas["Outcome"]["properties"]
    lines += [f"| `{one}` | {_type(schema)} | {schema.get('description', '')} |" for one, schema in outcome.items()]
    reloaded = schemas[Reloaded.__name__]["properties"]
    lines += ["", _RELOAD + "\n".join(f"| `{one}` | {schema['description']} |" for one, schema in reloaded.items())]
    lines += ["", _IDEMPOTENCY, _ERRORS + "\n".join(_error(code) for code in MEANINGS)]
    return "\n".join(lines) + "\n"


def _operation(action: Action) -> dict[str, Any]:
    done = _json(f"Done, or what would be done. `{REPLAYED}` is true where it is an earlier answer.", "Outcome")
    done["headers"] = {REPLAYED: {"schema": {"const": "true"}}}
    return {
        "operationId": action.name,
        "summary": action.body.__doc__,
        "security": [{"token": []}],
        "parameters": [{"$ref": "#/components/parameters/queue"}, {"$ref": "#/components/parameters/key"}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _SCHEMAS + action.body.__name__}}},
        },
        "responses": {
            "200": done,
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses()},
        },
    }


def _alerts() -> dict[str, Any]:
    answers = {str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses() if status != 422}
    return {
        "operationId": "alerts",
        "summary": "Let alerts cause what the configuration says: Alertmanager's webhook, version 4.",
        "description": "Other members than these are passed over.",
        "security": [{"token": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _SCHEMAS + WebhookBody.__name__}}},
        },
        "responses": {"200": _json("What becomes of each alert.", "AlertsAnswer"), **answers},
    }


def _reload() -> dict[str, Any]:
    return {
        "operationId": "reload",
        "summary": "Read the configuration again, and take over all of it or nothing.",
        "security": [{"token": []}],
        "responses": {
            "200": _json("It is in effect, and what was sent under the old one has ended.", Reloaded.__name__),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in (401, 403, 409, 500, 503)},
        },
    }


def _statuses() -> list[int]:
    return sorted({status for status, _ in MEANINGS.values()})


def _failure(status: int) -> dict[str, Any]:
    meanings = [f"`{code}`: {meaning}" for code, (its, meaning) in MEANINGS.items() if its == status]
    failure: dict[str, Any] = {
        "description": "\n\n".join(meanings),
        "content": {CONTENT_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}}},
    }
    if status in _HEADERS:
        failure["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS[status].items()
        }
    return failure


def _json(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _SCHEMAS + schema}}}}


def _member(name: str, schema: dict[str, Any]) -> str:
    default = json_writer.dumps(schema.get("default"))
    return f"| `{name}` | {_type(schema)} | `{default}` | {schema.get('description', '')} |"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    kind = str(schema["type"])
    if "maxLength" in schema:
        return f"{kind} of {schema['maxLength']} characters at most"
    if "maximum" in schema:
        return f"{kind} from {schema['minimum']:g} to {schema['maximum']:.0f}"
    return kind


def _error(code: Code) -> str:
    status, meaning = MEANINGS[code]
    return f"| {status} | `{code}` | {meaning} |"


_NUMBER = {"type": ["number", "null"]}
_COUNT = {"type": ["integer", "null"]}
_TEXT = {"type": ["string", "null"]}

# ``status.document`` makes this; a test holds the two together.
_STATUS: dict[str, Any] = {
    "title": "Status",
    "description": "All queues at one moment.",
    "type": "object",
    "required": ["version", "at", "redis", "queues"],
    "properties": {
        "version": {"type": "string"},
        "at": {**_NUMBER, "description": "The store's clock."},
        "redis": {
            "type": "object",
            "required": ["up"],
            "properties": {
                "up": {"type": "boolean"},
                "server": _TEXT,
                "replica": {"type": ["boolean", "null"], "description": "It shows what its primary had a moment ago."},
                "read_seconds": _NUMBER,
                "memory_used_bytes": _COUNT,
                "memory_max_bytes": _COUNT,
                "disk_write_failed": {
                    "type": ["boolean", "null"],
                    "description": "Whether the last snapshot, or write of the append-only file, failed: the server "
                    "may refuse every change then.",
                },
                "error": _TEXT,
            },
        },
        "queues": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["queue", "mode"],
                "properties": {
                    "queue": {"type": "string"},
                    "mode": {"enum": ["observe", "supervise", "dispatch"]},
                    "lengths": {"type": "object", "additionalProperties": _COUNT},
                    "oldest_at": {"type": "object", "additionalProperties": _NUMBER},
                    "lock": {
                        "type": "object",
                        "properties": {
                            "held": {"type": ["boolean", "null"]},
                            "ttl_seconds": _NUMBER,
                            "ours": {"type": "boolean"},
                            "value": _TEXT,
                            "keeper": {
                                "type": ["object", "null"],
                                "description": "What the lock keeper thinks of the lock; null where it is free, or no "
                                "daemon that supervises has seen it.",
                                "required": ["verdict", "reason", "acts_at"],
                                "properties": {
                                    "verdict": {
                                        "enum": ["leave", "watch", "release"],
                                        "description": "leave: it expires by itself, or its holder lives. "
                                        "watch: it is released at `acts_at` if nothing happens to it until then. "
                                        "release: it was left behind, and is released when the keeper looks next. "
                                        "Where `lock.stale.auto` is false, that is left to people and alerts.",
                                    },
                                    "reason": {
                                        "enum": [None, *ReleaseReason],
                                        "description": "Why it is, or will be, taken to be left behind.",
                                    },
                                    "acts_at": {**_NUMBER, "description": "There for watch only."},
                                },
                            },
                        },
                    },
                    "last_send_at": _NUMBER,
                    "memory_bytes": {**_COUNT, "description": "As last measured; null until then."},
                    "paused": {"type": ["boolean", "null"]},
                    "paused_destinations": _COUNT,
                    "failing_destinations": _COUNT,
                    "alerts_paused": {"type": ["boolean", "null"]},
                    "newer": {
                        **_TEXT,
                        "description": "Where a newer version has written to the queue: this one may misread it, and "
                        "changes nothing.",
                    },
                    "error": _TEXT,
                },
            },
        },
    },
}
