"""A Redis URL that is accepted can be used, and one that is refused says why without quoting it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.connection import parse_url

from cbq_exporter.config import redis_url

pieces = st.sampled_from(
    [
        *(
            "redis://",
            "rediss://",
            "unix://",
            "REDIS://",
            "redis:",
            "u",
            "u:S3CRET@",
            ":S3CRET%2F@",
            "@",
            "host",
            "127.0.0.1",
        ),
        *(
            "[::1]",
            ":6379",
            ":0",
            ":99999",
            "/",
            "/0",
            "/run/s.sock",
            "?",
            "db=1",
            "&",
            "db=x",
            "password=S3CRET",
            "p%61ssword=S3CRET",
            "ssl=1",
        ),
        *("ssl_cert_reqs=none", "#", ",", "%", "%zz", " ", "é", "[", "]", "\t"),
    ]
)
usual = st.tuples(
    st.sampled_from(["redis://", "rediss://", "unix://"]),
    st.sampled_from(["", "u@", "u:S3CRET@", ":S3CRET%2F@"]),
    st.sampled_from(["", "host", "[::1]:6379", "127.0.0.1:1"]),
    st.sampled_from(["", "/", "/0", "/run/s.sock"]),
    st.lists(st.sampled_from(["db=1", "password=S3CRET", "p%61ssword=S3CRET", "client_name=x"]), max_size=3)
    .map("&".join)
    .map(lambda query: f"?{query}"),
)


@settings(max_examples=1000)
@given(st.one_of(st.lists(pieces, max_size=7), usual).map("".join))
def test_the_client_library_reads_what_is_accepted_and_no_password_is_shown(url: str) -> None:
    shown = redis_url.redacted(url)
    if redis_url.trouble(url) is None:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        if url.count("S3CRET") == 1 and "S3CRET" in options.get("password", ""):
            assert "S3CRET" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/15",
        "redis://user:p%2Fw@host/0?client_name=x",
        "rediss://host:6380?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock?db=3",
        "unix://user:pw@/run/redis.sock",
    ],
)
def test_accepted(url: str) -> None:
    assert redis_url.trouble(url) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must be a URL such as"),
        ("localhost:6379", "must be a URL such as"),
        ("REDIS://host", "must be a URL such as"),
        ("redis+sentinel://host", "sentinel and cluster are not available yet"),
        ("redis://a:1,b:2/0", "names several hosts"),
        ("redis:///0", "must name a host"),
        ("redis://host:port", "host or port is not valid"),
        ("redis://host:0", "host or port is not valid"),
        ("redis://host/zero", "after the host comes the database's number"),
        ("redis://:a#b@host", "must not contain '#'"),
        ("redis://:a b@host", "must be printable ASCII without spaces"),
        ("redis://host?retry=9", "after '?' only these options are known"),
        ("redis://host?ssl_cert_reqs=none", "after '?' only these options are known"),
        ("redis://host?db=", "the option db must be a database's number"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "the option ssl_cert_reqs must be one of none, optional, required"),
        ("unix://run/redis.sock", "a unix socket needs three slashes"),
        ("unix:///", "must name the socket"),
    ],
)
def test_refused(url: str, why: str) -> None:
    assert str(redis_url.trouble(url)).startswith(why)
