"""Which file is read, what the environment changes, and how mistakes are told."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from cbq_exporter.config import Config, QueueConfig, TemplateBody, document, load
from cbq_exporter.errors import ConfigError
from cbq_exporter.model import Mode
from tests.config.conftest import Load, Refused


class TestSource:
    def write(self, path: Path, name: str) -> Path:
        path.write_text(f"queues: [{{name: {name}}}]\n")
        return path

    def test_the_nearest_word_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert load(environ={}) == load(None, {"CBQ_CONFIG": "", "CBQ_REDIS_URL": ""})
        assert (load(environ={}).config, load(environ={}).source) == (Config(), None)
        self.write(tmp_path / "config.yaml", "usual")
        named, given = self.write(tmp_path / "n.yaml", "named"), self.write(tmp_path / "g.yaml", "given")

        usual = load(environ={})
        assert (usual.config.queues[0].name, usual.source) == ("usual", Path("config.yaml"))
        by_name = load(environ={"CBQ_CONFIG": str(named)})
        assert (by_name.config.queues[0].name, by_name.source) == ("named", named)
        by_hand = load(given, {"CBQ_CONFIG": str(named)})
        assert (by_hand.config.queues[0].name, by_hand.source) == ("given", given)

    @pytest.mark.parametrize(
        "text", ["", "# nothing\n", "---\n", "{}", "\ufeff", "redis:\nqueues: [{name: callbacks, batch: }]"]
    )
    def test_what_is_left_out_has_its_default(self, loaded: Load, text: str) -> None:
        assert loaded(text) == Config()

    def test_the_environment_names_the_redis(self, loaded: Load, refused: Refused) -> None:
        environ = {"CBQ_REDIS_URL": "redis://env:6379/2"}
        for text in ("", "redis:", "redis: {url: null}", "redis: {url: nonsense}"):
            url = loaded(text, environ).redis.url
            assert url is not None
            assert url.get_secret_value() == "redis://env:6379/2"
        mounted = loaded("", {"CBQ_REDIS_URL": "redis://env:6379/2\n"}).redis.url  # of a file, with its newline
        assert mounted is not None
        assert mounted.get_secret_value() == "redis://env:6379/2"
        assert loaded("", {"CBQ_REDIS_URL": "\n"}).redis.url is None
        (line,) = refused("redis: {url: redis://h}", {"CBQ_REDIS_URL": "http://u:s3cret@h"})
        assert line.startswith("environment: CBQ_REDIS_URL: found ***; must be a URL such as redis://host:6379/0, ")

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "latin").write_bytes(b"data_dir: a\nweb: {listen_address: \xe9}")
        (tmp_path / "large").write_bytes(b"#" * (document.MAX_BYTES + 1))
        (tmp_path / "deep").write_text("a: " + "[" * 40 + "]" * 40)
        (tmp_path / "wide").write_text("a: [" + "b," * document.MAX_VALUES + "]")
        (tmp_path / "two").write_text("data_dir: a\n---\ndata_dir: b\n")
        for name, told in {
            "absent": "absent: file: found nothing there; must be the path of a YAML file",
            ".": ".: file: found an error when reading it (Is a directory); must be a file that can be read",
            "latin": "latin:2: YAML: found bytes that are not UTF-8; must be YAML that can be read",
            "large": "large: YAML: found more than 1048576 bytes; must be YAML that can be read",
            "deep": "deep:1: YAML: found more than 32 levels; must be YAML that can be read",
            "wide": "wide:1: YAML: found more than 50000 values; must be YAML that can be read",
            "two": "two:2: YAML: found a second document after ---; must be YAML that can be read",
        }.items():
            with pytest.raises(ConfigError) as raised:
                load(Path(name), {})
            assert str(raised.value) == told
        Path("config.yaml").symlink_to("nowhere")
        with pytest.raises(ConfigError, match=r"^config.yaml: file: found nothing there"):
            load(environ={})
        with pytest.raises(ConfigError):
            load(Path("a\0b"), {})

    def test_a_pipe_is_a_file_too(self) -> None:
        read, write = os.pipe()
        with os.fdopen(write, "w") as end:
            end.write("queues: [{name: piped}]")
        try:
            assert load(Path(f"/dev/fd/{read}"), {}).config.queues[0].name == "piped"
        finally:
            os.close(read)


class TestValues:
    def test_every_kind_is_read(self, loaded: Load) -> None:
        config = loaded("""
            data_dir: /var/lib/cbq
            web: {listen_address: "[::1]:0"}
            queues:
              - name: a-1
                mode: supervise
                batch: {size: 7, max_delay: 0s, min_interval: 1.5s, early: {size: 3, delay: 500ms}, spread: 0}
                delivery:
                  max_in_flight_bytes: 1MiB
                  max_request_bytes: 5000
                  request: {body: item, headers: {X-Key: "12", On: 'yes'}}
                  egress: {allow: [10.0.0.0/8, "fd00::/8", 192.168.1.1]}
                recovery: {auto: false, stuck_after: 24h}
        """)
        queue = config.queues[0]
        assert (config.data_dir, config.web.host, config.web.port) == (Path("/var/lib/cbq"), "::1", 0)
        assert (queue.mode, queue.batch.size, queue.batch.max_delay, queue.batch.min_interval) == (
            Mode.SUPERVISE,
            7,
            0.0,
            1.5,
        )
        assert queue.batch.early is not None
        assert (queue.batch.early.size, queue.batch.early.delay) == (3, 0.5)
        assert (queue.delivery.max_in_flight_bytes, queue.delivery.max_request_bytes) == (1024 * 1024, 5000)
        assert (queue.delivery.request.body, queue.delivery.request.headers) == ("item", {"X-Key": "12", "On": "yes"})
        networks = ("10.0.0.0/8", "fd00::/8", "192.168.1.1/32")
        assert queue.delivery.egress.allow == tuple(ip_network(network) for network in networks)
        assert (queue.recovery.auto, queue.recovery.stuck_after) == (False, 86400.0)

    @pytest.mark.parametrize(
        ("where", "value", "told"),
        [
            ("batch.size", "yes", "found 'yes'; must be a whole number from 1 to 10000"),
            ("batch.size", "010", "found '010'; must be a whole number from 1 to 10000"),
            ("batch.size", "1:30", "found '1:30'; must be a whole number from 1 to 10000"),
            ("batch.size", "true", "found true; must be a whole number from 1 to 10000"),
            ("batch.size", "1.0", "found 1.0; must be a whole number from 1 to 10000"),
            ("batch.size", "", "found null; must be a whole number from 1 to 10000"),
            (
                "batch.max_delay",
                "5",
                "found 5; add a unit, such as 5s or 5m: must be a duration from 0s to 1h, such as",
            ),
            ("batch.max_delay", "-1s", "found '-1s'; must be a duration from 0s to 1h, such as 500ms, 1.5s, 5m,"),
            ("batch.max_delay", "2h", "found '2h'; must be a duration from 0s to 1h"),
            ("recovery.auto", "on", "found 'on'; must be true or false"),
            ("mode", "Observe", "found 'Observe'; must be one of observe, supervise, dispatch"),
            ("prefix", "a b", "found 'a b'; must be 1 to 200 printable ASCII characters without spaces"),
            ("batch", "[1]", "found a list; must be a mapping with keys out of: size, max_delay, min_interval, early,"),
            ("batch.early", "3", "found 3; must be a mapping with keys out of: size, delay"),
            ("delivery.egress.allow", "10.0.0.0/8", "found '10.0.0.0/8'; must be a list, each entry a network such as"),
            ("delivery.request.headers", "[a]", "found a list; must be a mapping of a header name"),
            ("delivery.max_request_bytes", "1TB", "found '1TB'; must be a size from 1B to 1GiB, such as 64KiB"),
            ("delivery.request.body", "{file: x}", "found a mapping; must be data, item, {template: file.j2} or"),
            ("keys.lock", '"\\u202e\\n"', r"found '\u202e\n'; must be 1 to 200 printable ASCII characters"),
            ("keys.lock", "é" * 500, "found '" + "é" * 59 + "…; must be 1 to 200 printable ASCII"),
        ],
    )
    def test_a_wrong_value_is_told_with_what_is_allowed(
        self, refused: Refused, where: str, value: str, told: str
    ) -> None:
        text = f"queues:\n- name: q\n  {''.join(f'{part}: {{' for part in where.split('.')[:-1])}"
        text += f"{where.split('.')[-1]}: {value}{'}' * where.count('.')}"
        (line,) = refused(text)
        assert line.startswith(f"cbq.yaml:3: queues[0].{where}: {told}")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("queus: []", "queus: found an unknown key; did you mean queues?"),
            ("queues: [{name: q, Batch: {}}]", "queues[0].Batch: found an unknown key; did you mean batch?"),
            (
                "queues: [{name: q, batch: {max-delay: 1s}}]",
                "queues[0].batch.max-delay: found an unknown key; did you mean max_delay?",
            ),
            (
                "queues: [{name: q, timeout: 1s}]",
                (
                    "queues[0].timeout: found an unknown key; did you mean queues[].delivery.timeout "
                    "or destinations[].timeout?"
                ),
            ),
            ("web: {zzz: 1}", "web.zzz: found an unknown key; known here: listen_address, config_file"),
            ("<<: {web: {}}", '["***"]: found an unknown key; known here: redis, data_dir, web, log,'),
            ("queues: []", "queues: found an empty list; must have at least one entry"),
            ("queues:", "queues: found null; must be a list, each entry a mapping with keys out of: name,"),
            ("queues: [q]", "queues[0]: found 'q'; must be a mapping with keys out of: name, prefix,"),
            (
                "queues: [{name: q, delivery: {egress: {allow: ['::/0', '::1/64']}}}]",
                "queues[0].delivery.egress.allow[1]: found '::1/64'; has host bits set; the network is ::/64",
            ),
            (
                "queues: [{name: q, delivery: {request: {headers: {Content-Length: '5'}}}}]",
                "queues[0].delivery.request.headers.Content-Length: found ***; is set for each request and cannot",
            ),
            ("queues: [{}]", "queues[0].name: found nothing; must be given: 1 to 64 characters out of a-z,"),
            (
                "whsec_MfKQ9r8GKYqr",
                "top level: found a single value; must be a mapping with keys out of: redis, data_dir,",
            ),
            ("[]", "top level: found a list; must be a mapping with keys out of: redis, data_dir,"),
            ("web: *a", "web: found an alias (*); write the value out: aliases are not allowed"),
            ("data_dir: !!str x", "data_dir: found a tag (!); leave it out, or quote the text: tags are not allowed"),
            ("data_dir: x\nlog:\ndata_dir: x", "data_dir: found this key again in line 3; keep one of the two"),
            ("log: {level: [}", "YAML: found "),
            ("? [a]\n: b", "YAML: found a key that is not a plain text"),
        ],
    )
    def test_a_wrong_shape_is_told_with_its_path(self, refused: Refused, text: str, told: str) -> None:
        (line,) = refused(text)
        assert line.startswith(f"cbq.yaml:1: {told}")

    def test_all_is_told_at_once_in_the_order_of_the_file(self, refused: Refused) -> None:
        lines = refused("""
            log: {level: loud}
            log: {}
            web: {listen_address: nowhere}
            queues:
              - name: A
                batch: {early: {size: 0}}
                delivery: {timeout: 20s, lease: 20s, rate: 3/s}
                retry: {base: 2h}
              - not a queue
              - prefix: other
                recovery: {stuck_after: 1s}
              - name: c
                lock: {ttl: soon, stale: {max_ttl: 1s}}
            alerts: {routes: [{match: {a: b}, action: wipe}], auth: *x}
        """)
        assert [line.partition("; ")[0].removeprefix("cbq.yaml:") for line in lines] == [
            "2: log: found this key again in line 3",
            "2: log.level: found 'loud'",
            "4: web.listen_address: found 'nowhere'",
            "6: queues[0].name: found 'A'",
            "7: queues[0].batch.early.size: found 0",
            "7: queues[0].batch.early.delay: found nothing",
            "8: queues[0].delivery.rate: found an unknown key",
            "8: queues[0].delivery.lease: found 20s",
            "9: queues[0].retry.base: found 2h",
            "10: queues[1]: found 'not a queue'",
            "11: queues[2].name: found nothing",
            "12: queues[2].recovery.stuck_after: found 1s",
            "13: queues[3].prefix: found 'callback_queue'",
            "14: queues[3].lock.ttl: found 'soon'",  # so it is unknown whether lock.stale.max_ttl fits
            "15: alerts.auth: found an alias (*)",
            "15: alerts.routes[0].action: found 'wipe'",
        ]

    def test_a_file_that_is_something_else_is_not_told_to_its_end(self, refused: Refused) -> None:
        lines = refused("\n".join(f"key{number}: {number}" for number in range(5000)))
        assert len(lines) == 101
        assert lines[-1] == "cbq.yaml: top level: found 4900 more problems; must be a configuration of cbq-exporter"


class TestInCode:
    def test_seconds_and_objects_are_values_too(self) -> None:
        config = Config(queues=(QueueConfig(name="q", prefix="p", batch={"max_delay": 0.25, "spread": 1}),))
        assert (config.queues[0].batch.max_delay, config.queues[0].batch.spread) == (0.25, 1.0)
        body = TemplateBody(template=Path("x.j2"))
        assert QueueConfig(name="q", delivery={"request": {"body": body}}).delivery.request.body == body
