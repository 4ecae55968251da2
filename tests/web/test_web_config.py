"""The Prometheus web config file: what is taken, what is refused, and that nothing secret is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cbq_exporter.config import Config
from cbq_exporter.errors import ConfigError, Problem
from cbq_exporter.web import web_config
from cbq_exporter.web.tls import check_web_config, make_context
from cbq_exporter.web.web_config import WebConfigFile

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"  # the toolkit's own example
TLS = "cert_file: a.pem, key_file: a.key"


def parsed(text: str) -> WebConfigFile:
    return web_config.parse(text.encode(), Path("/etc/cbq/web.yml"))


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return [str(problem).removeprefix("/etc/cbq/") for problem in caught.value.problems]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "tls_server_config: {}", "tls_server_config:\nbasic_auth_users:\nhttp_server_config:\n"]
)
def test_an_empty_file_asks_for_nothing(text: str) -> None:
    assert parsed(text) == WebConfigFile()


def test_everything_that_can_be_said() -> None:
    """The whole of the toolkit's documentation, but what Python's TLS cannot do."""
    file = parsed(
        f"""
tls_server_config:
  cert_file: server.pem
  key_file: /keys/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  client_allowed_sans: [prometheus.example, "::1"]
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP384]
http_server_config:
  http2: true
  headers:
    Content-Security-Policy: default-src 'none'
    X-Frame-Options: sameorigin
    X-Content-Type-Options: nosniff
    X-XSS-Protection: ""
    Strict-Transport-Security: max-age=60
basic_auth_users: {{alice: {HASH}, "bob b": "{HASH.replace("2y", "2b")}"}}
rate_limit: {{interval: 100ms, burst: 20}}
"""
    )
    tls = file.tls_server_config
    assert tls is not None
    assert tls.verifies_clients
    assert (tls.cert_file, tls.key_file) == (Path("/etc/cbq/server.pem"), Path("/keys/server.key"))
    assert tls.client_ca_file == Path("/etc/cbq/ca.pem")
    assert sorted(file.basic_auth_users) == ["alice", "bob b"]
    assert "X-XSS-Protection" not in file.http_server_config.headers  # blank is unset
    assert (file.rate_limit.interval, file.rate_limit.burst) == (0.1, 20)
    assert HASH[10:] not in repr(file)


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
    (example,) = re.findall(r"```yaml\n# /etc/cbq-exporter/web.yml\n(.*?)```", page, re.DOTALL)
    file = parsed(example)
    assert file.tls_server_config is not None
    assert list(file.basic_auth_users) == ["prometheus"]
    keys = {*WebConfigFile.model_fields, *web_config.TlsConfig.model_fields, *web_config.HttpConfig.model_fields}
    assert [key for key in keys if key not in page] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tls: {}", "web.yml:1: tls: found an unknown key; known here: tls_server_config, http_server_config, "),
        ("\ntls_server_config: {certfile: x}", "web.yml:2: tls_server_config.certfile: found an unknown key; known "),
        ("http_server_config: {http3: true}", "web.yml:1: http_server_config.http3: found an unknown key; known "),
        (
            "s3cret",
            "web.yml:1: top level: found a single value; must be a mapping with keys out of: tls_server_config, ",
        ),
        ("[]", "web.yml:1: top level: found a list; must be a mapping with keys out of: tls_server_config, "),
        ("tls_server_config: yes", "web.yml:1: tls_server_config: found 'yes'; must be a mapping with keys out of"),
        ("a: b: c", "web.yml:1: YAML: found "),
        ("tls_server_config: {cert_file: a}", "web.yml:1: tls_server_config.key_file: found nothing; must be given"),
        ("tls_server_config: {key_file: a}", "web.yml:1: tls_server_config.cert_file: found nothing; must be given"),
        (
            f"tls_server_config: {{{TLS}, cert: X}}",
            "web.yml:1: tls_server_config.cert: found ***; must be a certificate",
        ),
        (
            f"tls_server_config: {{{TLS}, min_version: TLS14}}",
            "web.yml:1: tls_server_config.min_version: found 'TLS14'",
        ),
        (
            f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS12}}",
            "web.yml:1: tls_server_config.min_version: found 'TLS13'; must not be above max_version (TLS12)",
        ),
        (
            f"tls_server_config: {{{TLS}, client_auth_type: RequireAnyClientCert}}",
            "web.yml:1: tls_server_config.client_auth_type: found 'RequireAnyClientCert'; would let in whoever has ",
        ),
        (f"tls_server_config: {{{TLS}, client_auth_type: x}}", "web.yml:1: tls_server_config.client_auth_type: found"),
        (
            f"tls_server_config: {{{TLS}, client_ca_file: ca.pem}}",
            "web.yml:1: tls_server_config.client_auth_type: found NoClientCert; client CAs need a policy",
        ),
        (
            f"tls_server_config: {{{TLS}, client_allowed_sans: [a]}}",
            "web.yml:1: tls_server_config.client_allowed_sans: found a list; has no effect without client_auth_type",
        ),
        (
            f"tls_server_config: {{{TLS}, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}}",
            "web.yml:1: tls_server_config.cipher_suites: found a list; has a suite that is unknown or insecure",
        ),
        (
            f"tls_server_config: {{{TLS}, cipher_suites: [TLS_AES_128_GCM_SHA256], max_version: TLS12}}",
            "web.yml:1: tls_server_config.cipher_suites: found suites of TLS 1.3 only; none of them can be used",
        ),
        (
            f"tls_server_config: {{{TLS}, curve_preferences: [CurveP256, X25519]}}",
            "web.yml:1: tls_server_config.curve_preferences: found a list; can be one of CurveP256, CurveP384, ",
        ),
        (
            "http_server_config: {headers: {Server: x}}",
            "web.yml:1: http_server_config.headers: found a mapping; can have Content-Security-Policy, ",
        ),
        (
            "http_server_config: {headers: {X-Frame-Options: DENY}}",
            "web.yml:1: http_server_config.headers: found a mapping; must have deny or sameorigin for X-Frame-Options",
        ),
        (
            'http_server_config: {headers: {X-XSS-Protection: "a\\r\\nSet-Cookie: x"}}',
            "web.yml:1: http_server_config.headers: found a mapping; must have a text of printable ASCII for X-XSS",
        ),
        (
            "basic_auth_users: {alice: hunter2}",
            "web.yml:1: basic_auth_users: found ***; must have a bcrypt hash for each user (user number 1): ",
        ),
        (f"basic_auth_users: {{a: {HASH}, b: {HASH[:-1]}}}", "web.yml:1: basic_auth_users: found ***; must have a bcr"),
        (f"basic_auth_users: {{a: {HASH.replace('$10$', '$31$')}}}", "web.yml:1: basic_auth_users: found ***; must ha"),
        (f"basic_auth_users: {{'hunter2:x': {HASH}}}", "web.yml:1: basic_auth_users: found ***; has a name that no cl"),
        ("rate_limit: {interval: 1s}", "web.yml:1: rate_limit.burst: found 0; must be at least 1, or every request"),
        ("rate_limit: {interval: 1}", "web.yml:1: rate_limit.interval: found 1; must be a duration such as"),
    ],
)
def test_what_is_refused_names_its_place_and_the_way_out(text: str, told: str) -> None:
    (line,) = refused(text)
    assert line.startswith(told)
    assert "hunter2" not in line
    assert HASH[10:20] not in line


def test_everything_that_is_wrong_is_told_at_once() -> None:
    assert len(refused("tls_server_config: {min_version: 1, max_version: 2}\nbasic_auth_users: 3\nx: 4\n")) == 4


@pytest.mark.parametrize(
    ("web", "file", "expected"),
    [
        ({"listen_address": ":9847"}, f"basic_auth_users: {{a: {HASH}}}", "passwords cross the network unencrypted"),
        ({"listen_address": ":9847", "bearer_token_file": "t"}, "", "bearer tokens cross the network unencrypted"),
        ({"listen_address": ":9847"}, "", ""),
        ({}, f"basic_auth_users: {{a: {HASH}}}", ""),
    ],
)
def test_secrets_in_the_clear_are_warned_about(tmp_path: Path, web: dict[str, Any], file: str, expected: str) -> None:
    path = tmp_path / "web.yml"
    path.write_text(file)
    warnings = check_web_config(Config(web={**web, "config_file": path}))
    assert [warning.rpartition(": ")[2] for warning in warnings] == ([expected] if expected else [])


# --- anything at all -----------------------------------------------------------------------------

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
_WORDS = st.sampled_from(
    [
        *web_config.CIPHERS,
        *web_config.CIPHERS_13,
        *web_config.VERSIONS,
        *("CurveP256", "X25519", "deny", "nosniff", "NoClientCert", "VerifyClientCertIfGiven"),
        *("RequireAndVerifyClientCert", "1s", HASH, "-----BEGIN X-----", "a.pem"),
    ]
)
_KEYS = st.sampled_from(
    [
        *WebConfigFile.model_fields,
        *web_config.TlsConfig.model_fields,
        *web_config.HttpConfig.model_fields,
        *web_config.RateLimitConfig.model_fields,
        "X-Frame-Options",
    ]
)
_VALUES = st.recursive(
    _SCALARS | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=4).map(lambda data: yaml.safe_dump(data).encode()) | st.binary())
def test_any_file_is_taken_or_refused_in_plain_lines(text: bytes) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        file = web_config.parse(text, Path("web.yml"))
        if file.tls_server_config is not None:
            make_context(file.tls_server_config)
    except ConfigError as error:
        problems = error.problems
    assert all(str(problem).isprintable() for problem in problems)
