"""A receiver and an engine for each test."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.support.receiver import Receiver
from tests.support.sender import Sender
from tests.support.skips import skip_or_fail


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(params=[False, True], ids=["thread", "process"])
def sender(request: pytest.FixtureRequest) -> Iterator[Sender]:
    """An engine that may send to loopback, from either place."""
    with Sender(own_process=request.param) as running:
        yield running


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        skip_or_fail(f"needs 4,096 file descriptors, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
