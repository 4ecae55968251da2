"""What is different between two configurations, as paths, and what of it needs a restart."""

from __future__ import annotations

from typing import Any

import pytest

from cbq_exporter.config import Config
from cbq_exporter.config.changes import FIXED, Changes, between

ONE = {"name": "one", "prefix": "one"}
TWO = {"name": "two", "prefix": "two"}


def config(*queues: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate({"queues": list(queues or (ONE, TWO)), **sections})


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (config(), config(), Changes((), (), {}, ())),
        (config(ONE, TWO), config(TWO, ONE), Changes((), (), {}, ())),
        (config(ONE), config({**ONE, "mode": "dispatch", "batch": {"size": 100}}), Changes((), (), {}, ())),
        (config(ONE), config(TWO), Changes(("two",), ("one",), {}, ())),
        (
            config(ONE, TWO),
            config({**ONE, "batch": {"size": 7, "early": {"size": 2, "delay": "1s"}}, "keys": {"lock": "l"}}, TWO),
            Changes((), (), {"one": ("keys.lock", "batch.size", "batch.early")}, ()),
        ),
        (
            config(ONE),
            config({**ONE, "delivery": {"request": {"headers": {"X-Key": "secret"}}}}, log={"level": "debug"}),
            Changes((), (), {"one": ("delivery.request.headers",)}, ("log.level",)),
        ),
    ],
)
def test_what_is_different_is_named(old: Config, new: Config, changes: Changes) -> None:
    assert between(old, new) == changes
    assert bool(between(old, new)) == (changes != Changes((), (), {}, ()))
    assert between(old, new).need_restart == ()


def test_the_way_to_the_store_and_the_sockets_need_a_restart() -> None:
    new = config(
        redis={"url": "redis://:secret@elsewhere/0"},
        data_dir="elsewhere",
        web={"listen_address": ":1", "config_file": "web.yml", "bearer_token_file": "tokens"},
        metrics={"destination_series_limit": 5},
        shutdown={"grace": "1s"},
    )
    changes = between(config(), new)
    assert changes.need_restart == FIXED
    assert set(changes.settings) == {*FIXED, "web.bearer_token_file", "shutdown.grace"}
