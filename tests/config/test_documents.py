"""The example file, the schema and the reference say what the models say."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network

import jsonschema
import pytest
import yaml

from cbq_exporter.config import Config, document, example, load, outline, reference, schema, warnings
from cbq_exporter.config.places import shown
from tests.config.conftest import Load, Refused
from tests.generated import DOCUMENTS, ROOT

CONFIG = (ROOT / example.PATH).read_text()


@pytest.mark.parametrize("name", [example.PATH, schema.PATH, reference.PATH])
def test_is_as_the_code_writes_it(name: str) -> None:
    assert (ROOT / name).read_text() == DOCUMENTS[name](), "run `make docs`"


def test_the_shipped_file_is_the_default_but_for_receivers_on_this_machine() -> None:
    shipped = load(ROOT / example.PATH, {}).config
    (queue,) = shipped.queues
    assert queue.delivery.egress.allow == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    strict = queue.delivery.model_copy(update={"egress": Config().queues[0].delivery.egress})
    assert shipped.model_copy(update={"queues": (queue.model_copy(update={"delivery": strict}),)}) == Config()
    assert warnings(shipped) == ()


def test_the_shipped_file_has_every_key_explained(refused: Refused) -> None:
    """Every key is written or stands behind a comment sign; without the signs the file is still right."""
    lines: list[str] = []
    for line in CONFIG.splitlines():
        absent = re.fullmatch(r"( *)# ((?:  )*(?:  |- )\w+: .*)", line)
        written = re.match(r" *(- )?\w+:", line)
        if absent:
            assert "   # " in line
            lines[-1] = re.sub(r": (null|\[\])$", ":", lines[-1])
            line = "".join(absent.groups())
        elif written:
            assert lines[-1].lstrip(" -").startswith("# "), line
        lines.append(line)
    everything = "\n".join(lines)

    places = [place for place in document.read(everything.encode()).lines if place and isinstance(place[-1], str)]
    paths = [shown(place).replace("[0]", "[]") for place in places if "match" not in place[:-1]]
    assert paths == list(outline.paths())
    assert [line.partition(": ")[2].partition(": ")[0] for line in refused(everything)] == [
        "queues[0].delivery.signing",
        "destinations[0].signing",
        "alerts.auth.bearer_token_file",
    ]


def test_every_key_has_a_meaning_and_a_row() -> None:
    text = reference.markdown()
    for path in outline.paths():
        assert re.search(rf"^\| `{re.escape(path)}` \| .+ \| .* \| .+[.…] \|$", text, re.MULTILINE), path


def test_the_schema_accepts_the_shipped_file_and_knows_its_keys() -> None:
    rules = json.loads(schema.schema())
    validator = jsonschema.Draft202012Validator(rules)
    validator.check_schema(rules)
    validator.validate(yaml.safe_load(CONFIG))
    for text in (
        "queus: []",
        "queues: []",
        "queues: [{prefix: p}]",
        "queues: [{name: q, mode: watch}]",
        "queues: [{name: q, batch: {size: 0}}]",
        "queues: [{name: q, batch: {max_delay: 5}}]",
        "queues: [{name: q, batch: {early: {size: 3}}}]",
        "queues: [{name: q, delivery: {request: {headers: {Bad name: x}}}}]",
        "log: {level: loud}",
        "redis: {url: http://x}",
    ):
        assert list(validator.iter_errors(yaml.safe_load(text))), text


def test_editors_find_the_schema() -> None:
    first = CONFIG.splitlines()[0]
    assert first == f"# yaml-language-server: $schema={schema.PATH}"
    assert (ROOT / schema.PATH).is_file()


def test_other_readers_of_yaml_read_the_same() -> None:
    assert yaml.safe_load(CONFIG) == document.read(CONFIG.encode()).data


def test_the_examples_of_the_reference_load(loaded: Load) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", reference.markdown(), re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        assert warnings(loaded(text)) == ()
    batch = loaded(examples[1]).queues[0].batch
    assert batch.early is not None
    assert (batch.size, batch.max_delay, batch.min_interval, batch.spread) == (10, 5.0, 0.5, 0.2)
    assert (batch.early.size, batch.early.delay) == (3, 2.0)
