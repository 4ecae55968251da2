"""Skips that a pipeline can forbid: with CBQ_TESTS_MUST_NOT_SKIP=1 a missing means is a failure."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("CBQ_TESTS_MUST_NOT_SKIP") == "1":
        pytest.fail(f"would have been skipped: {reason}", pytrace=False)
    pytest.skip(reason)
