"""The shape of the configuration: frozen values, each field with its kind, default and meaning.

Durations are seconds, sizes are bytes. Rules that concern more than one field stand in ``rules``.
"""

# Without "from __future__ import annotations": pydantic would compile each annotation from its text, at each start.

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from cbq_exporter.config import kinds, matchers, redis_url
from cbq_exporter.config.delivery import DeliveryConfig, DestinationConfig, RetryConfig
from cbq_exporter.config.kinds import DAY, HOUR, MINUTE, SECOND
from cbq_exporter.config.matchers import Match
from cbq_exporter.config.section import Section
from cbq_exporter.model import AlertAction, Mode


class RedisConfig(Section):
    """The Redis or Valkey server with the queues. Without a URL the daemon starts its own, private to it."""

    url: Annotated[SecretStr, kinds.redis()] | None = Field(
        None,
        description="Where the queues are. Null starts an embedded server. CBQ_REDIS_URL overrides it. Options after "
        "'?' of rediss: ssl_ca_certs, ssl_certfile and ssl_keyfile name PEM files, ssl_cert_reqs is required (the "
        "default), optional or none, ssl_check_hostname true (the default) or false.",
    )

    @property
    def redacted_url(self) -> str:
        return "embedded" if self.url is None else redis_url.redacted(self.url.get_secret_value())


class WebConfig(Section):
    """The HTTP server for metrics, health and the API."""

    listen_address: Annotated[str, kinds.listen_address()] = Field(
        "127.0.0.1:9847", description="Address and port to serve on. Port 0 takes a free one."
    )
    config_file: Annotated[Path, kinds.path()] | None = Field(
        None,
        description="TLS, basic authentication and response headers: a file as the exporters of Prometheus read it. "
        "Null: plain HTTP.",
    )
    bearer_token_file: Annotated[Path, kinds.path()] | None = Field(
        None,
        description="A file with the tokens that may change queues through the API, each on a line of its own, "
        "after a name for the audit if you like. Null: the API changes nothing.",
    )

    @property
    def host(self) -> str:
        """Without brackets; empty for all interfaces."""
        return kinds.split_address(self.listen_address)[0]

    @property
    def port(self) -> int:
        return kinds.split_address(self.listen_address)[1]

    @property
    def is_loopback(self) -> bool:
        return redis_url.is_loopback(self.host)


class LogConfig(Section):
    """What the daemon writes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], kinds.choice("debug", "info", "warning", "error")
    ] = Field("info", description="The least serious message that is written.")
    format: Annotated[Literal["auto", "human", "json"], kinds.choice("auto", "human", "json")] = Field(
        "auto", description="auto writes for people on a terminal and JSON lines elsewhere."
    )


class MetricsConfig(Section):
    """What bounds the metrics."""

    destination_series_limit: Annotated[int, kinds.whole(1, 10_000)] = Field(
        100,
        description="So many receivers of each queue have series of their own, those of destinations before others; "
        "what is beyond is counted together, as other.",
    )


class ShutdownConfig(Section):
    """How the daemon stops."""

    grace: Annotated[float, kinds.duration(0, HOUR)] = Field(
        20 * SECOND, description="How long sends in flight may take to finish; what is left goes back to pending."
    )


class KeysConfig(Section):
    """Names of single keys, where they do not follow from the prefix."""

    pending: Annotated[str, kinds.key_name()] | None = Field(
        None, description="List of callbacks to send. Null: PREFIX:pending."
    )
    processing: Annotated[str, kinds.key_name()] | None = Field(
        None, description="List of callbacks being sent. Null: PREFIX:processing."
    )
    lock: Annotated[str, kinds.key_name()] | None = Field(None, description="The send lock. Null: PREFIX:lock.")
    last_send: Annotated[str, kinds.key_name()] | None = Field(
        None, description="Time of the last batch. Null: PREFIX:last_send_time."
    )
    stats: Annotated[str, kinds.key_name()] | None = Field(
        None, description="Start of the three counters' names. Null: PREFIX:stats."
    )


class EarlyConfig(Section):
    """A smaller batch that goes out sooner. Both keys are needed."""

    size: Annotated[int, kinds.whole(1, 10_000)] = Field(examples=[3], description="This many callbacks are enough ...")
    delay: Annotated[float, kinds.duration(0.001, HOUR)] = Field(
        examples=["500ms"], description="... once they have waited this long."
    )


class BatchConfig(Section):
    """When a batch goes out."""

    size: Annotated[int, kinds.whole(1, 10_000)] = Field(
        100, description="A batch goes out at once when this many callbacks wait; also the most taken in one go."
    )
    max_delay: Annotated[float, kinds.duration(0, HOUR)] = Field(
        1 * SECOND, description="A smaller batch goes out when its oldest callback has waited this long."
    )
    min_interval: Annotated[float, kinds.duration(0, HOUR)] = Field(
        0.0, description="The least time between two batches, whoever sends them. 0s sends a backlog without pauses."
    )
    early: EarlyConfig | None = Field(
        None, description="A trigger between size and max_delay, such as {size: 3, delay: 500ms}."
    )
    spread: Annotated[float, kinds.duration(0, MINUTE)] = Field(
        0.0, description="The pause between the starts of two sends of one batch."
    )

    @property
    def longest_wait(self) -> float:
        """Seconds that a callback may wait for its batch though nothing is in the way."""
        return max(self.max_delay, self.min_interval)


class RecoveryConfig(Section):
    """What happens to callbacks that are stuck in processing because their worker died."""

    auto: Annotated[bool, kinds.flag()] = Field(
        True, description="true puts them back to pending. false only counts them. Never in observe mode."
    )
    every: Annotated[float, kinds.duration(0.1, DAY)] = Field(15 * SECOND, description="How often to look.")
    stuck_after: Annotated[float, kinds.duration(0.1, 30 * DAY)] = Field(
        5 * MINUTE,
        description="How long one must have been seen in processing. Longer than delivery.timeout, "
        "and than another worker takes for a batch, with its retries (about 2m).",
    )
    max_recoveries: Annotated[int, kinds.whole(0, 1000)] = Field(
        3, description="One that got stuck more often than this goes to the dead letters."
    )


class StaleLockConfig(Section):
    """When a lock is taken to be left behind. A lock with a sane TTL always expires by itself."""

    auto: Annotated[bool, kinds.flag()] = Field(True, description="true releases such a lock. false only reports it.")
    no_ttl_after: Annotated[float, kinds.duration(0.1, 30 * DAY)] = Field(
        MINUTE,
        description="A lock without expiry is stale when it has not changed for this long. "
        "Longer than another worker holds one.",
    )
    max_ttl: Annotated[float, kinds.duration(SECOND, 30 * DAY)] = Field(
        10 * MINUTE, description="A TTL beyond this is treated like none. Longer than lock.ttl."
    )


class LockConfig(Section):
    """The send lock: only its holder sends."""

    ttl: Annotated[float, kinds.duration(SECOND, DAY)] = Field(
        30 * SECOND, description="When the lock expires if this daemon dies. It is renewed long before."
    )
    check_every: Annotated[float, kinds.duration(0.1, HOUR)] = Field(
        5 * SECOND, description="How often to look for a stale lock."
    )
    stale: StaleLockConfig = StaleLockConfig()


class DeadConfig(Section):
    """How much is kept of the callbacks that were given up."""

    max_count: Annotated[int, kinds.whole(1, 100_000_000)] = Field(
        100_000, description="The most that are kept. The oldest beyond it are deleted each minute, not at once."
    )
    max_age: Annotated[float, kinds.duration(SECOND, 3650 * DAY)] = Field(
        30 * DAY, description="Those older than this are deleted."
    )


class TrashConfig(Section):
    """What a reset moves out of the way."""

    keep: Annotated[float, kinds.duration(MINUTE, 365 * DAY)] = Field(
        7 * DAY, description="How long it can be put back with undo; then it is deleted."
    )


class QueueConfig(Section):
    """One callback queue."""

    name: Annotated[str, kinds.queue_name()] = Field(
        description="What the queue is called in metrics and commands. Unique."
    )
    prefix: Annotated[str, kinds.key_name()] = Field(
        "callback_queue", description="All of the queue's keys begin with this and a colon. Unique."
    )
    keys: KeysConfig = KeysConfig()
    mode: Annotated[Mode, kinds.choice(*Mode)] = Field(
        Mode.DISPATCH,
        description="observe only reads; supervise also frees stuck callbacks and locks; dispatch also sends.",
    )
    batch: BatchConfig = BatchConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    retry: RetryConfig = RetryConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    lock: LockConfig = LockConfig()
    dead: DeadConfig = DeadConfig()
    trash: TrashConfig = TrashConfig()


class AlertAuthConfig(Section):
    """Who may post alerts."""

    bearer_token_file: Annotated[Path, kinds.path()] | None = Field(
        None,
        description="A file with the tokens that Alertmanager may send, as web.bearer_token_file has them. "
        "Needed where there are routes.",
    )


class AlertRouteConfig(Section):
    """Which alert causes which action. The first route whose match fits an alert decides; those after it do not."""

    match: Annotated[Match, matchers.match()] = Field(
        examples=[{"alertname": "CbqStuckItems"}],
        description="The labels that an alert must have. A list of matchers may also say !=, =~ and !~.",
    )
    action: Annotated[AlertAction, kinds.choice(*AlertAction)] = Field(
        examples=["recover"],
        description="What to do: recover what is stuck, unlock what is stale, pause, resume or retry_dead.",
    )
    queue: Annotated[str, kinds.queue_name()] | None = Field(
        None, description="The queue to do it to. Null: the one that the alert's label queue names."
    )
    scope: Annotated[Literal["queue", "destination"], kinds.choice("queue", "destination")] = Field(
        "queue",
        description="destination is only the one that the alert's label destination names; queue is all of it.",
    )
    cooldown: Annotated[float, kinds.duration(0, DAY)] = Field(
        5 * MINUTE, description="The least time between two actions of this route on one queue, or destination."
    )
    repeat_after: Annotated[float, kinds.duration(SECOND, 30 * DAY)] | None = Field(
        None, description="When an alert that still fires may act again. Null: once for each firing."
    )
    max_per_hour: Annotated[int, kinds.whole(1, 3600)] = Field(
        6, description="The most actions of this route on one queue in an hour."
    )
    dry_run: Annotated[bool, kinds.flag()] = Field(
        False, description="true only writes into the audit what would be done."
    )


class AlertsConfig(Section):
    """Actions on Alertmanager's webhooks."""

    auth: AlertAuthConfig = AlertAuthConfig()
    routes: tuple[AlertRouteConfig, ...] = Field((), description="Which alert causes which action.")


class Config(Section):
    """The whole file."""

    redis: RedisConfig = RedisConfig()
    data_dir: Annotated[Path, kinds.path()] = Field(
        Path("cbq-data"), description="Where the embedded server keeps its data; relative to the current directory."
    )
    web: WebConfig = WebConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    queues: tuple[QueueConfig, ...] = Field(
        (QueueConfig(name="callbacks"),), min_length=1, description="The queues; at least one."
    )
    destinations: tuple[DestinationConfig, ...] = Field(
        (), description="Receivers with settings of their own. The first whose match fits a URL counts."
    )
    alerts: AlertsConfig = AlertsConfig()
