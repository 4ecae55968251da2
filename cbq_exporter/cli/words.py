"""What the words mean that the program prints: each closed set of them, for ``explain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """``what`` says what one of them is; ``seen`` where it is printed; ``meanings`` by word."""

    what: str
    seen: str
    meanings: Mapping[str, str]


MODE = Words(
    "mode of a queue",
    "queues[].mode, status, cbq_queue_info",
    {
        "observe": "The daemon only reads the queue.",
        "supervise": "It also brings back what is stuck, and releases send locks that were left behind.",
        "dispatch": "It also takes the send lock, and sends.",
    },
)
STATE = Words(
    "state of a callback",
    "status, cbq_queue_length",
    {
        "pending": "It waits to be claimed for its first attempt, or was put back to the head.",
        "processing": "It is claimed: it is being sent, or whoever claimed it is gone.",
        "retry": "It waits until its next attempt is due.",
        "dead": "It was given up, and is kept with its reason: cbq-exporter dead list, dead retry.",
        "trash": "A reset has moved it out of the way. cbq-exporter undo puts it back, until trash.keep is over.",
    },
)
FAILURE = Words(
    "failure of an attempt",
    "dead show, cbq_delivery_failures_total, cbq_callbacks_retried_total",
    {
        "timeout": "No answer within delivery.timeout; the receiver may have taken the callback. Tried again.",
        "connect": "No connection came about: nobody listens there, or a firewall refuses. Tried again.",
        "dns": "The host name could not be resolved. Tried again.",
        "tls": "The TLS handshake failed, or the certificate is not trusted (delivery.ca_file). Tried again.",
        "protocol": "What came is not HTTP, ended early, or had endless headers. Tried again.",
        "http_1xx": "The final answer had a status below 200. Tried again.",
        "http_3xx": "The receiver redirects. Redirects are not followed: correct the URL. Tried again.",
        "http_4xx": "The receiver refused the callback. Given up, except 408, 425 and 429; 410 pauses the "
        "destination. delivery.statuses may say otherwise.",
        "http_5xx": "The receiver failed. Tried again.",
        "blocked": "The egress guard refuses the address: it is not public, and delivery.egress.allow has it not. "
        "Given up at once. cbq-exporter explain queues.delivery.egress.allow",
        "local": "Trouble on our side: no route, no resolver, no file descriptors. Tried again; uses up no attempt.",
        "expired": "It was not sent, because its lease could have ended before the send began. Put back to the head.",
        "cancelled": "The daemon was stopping before the attempt was finished. Put back to the head.",
    },
)
DEAD = Words(
    "reason of a dead letter",
    "dead list, cbq_callbacks_dead_total",
    {
        "invalid_json": "The item is not JSON.",
        "invalid_item": "The item is JSON, but not an object.",
        "invalid_url": "The item has no url that can be sent to.",
        "no_data": "delivery.request.body is data, and the item has no field data; body: item sends whole items.",
        "too_large": "The body is larger than delivery.max_request_bytes.",
        "render": "The body could not be made from its template or by its renderer; the letter says why.",
        "blocked": "The egress guard refuses the address: it is not public, and delivery.egress.allow has it not.",
        "rejected": "The receiver answered with a status that repeating will not change.",
        "max_attempts": "retry.max_attempts attempts have failed.",
        "max_age": "retry.max_age is over since it was first claimed.",
        "poison": "It got stuck more often than recovery.max_recoveries: whoever sends it dies of it.",
    },
)
TRIGGER = Words(
    "who asks for an operation",
    "audit, cbq_operations_total, cbq_recovered_callbacks_total",
    {
        "schedule": "The daemon itself, as the configuration has it.",
        "cli": "A person at the command line, or a signal.",
        "api": "Somebody with a token, over HTTP.",
        "alert": "An alert that Alertmanager has posted.",
    },
)
OPERATION = Words(
    "operation in the audit",
    "audit, cbq_operations_total",
    {
        "unlock": "A send lock that was left behind, or one that somebody forced, was released.",
        "recover": "Stuck callbacks were put back to pending, or given up after too many recoveries.",
        "reset": "All of a queue was moved to the trash.",
        "undo": "What a reset had moved was put back.",
        "pause": "The queue, or a destination, was paused: nothing is sent to it.",
        "resume": "A pause was ended.",
        "retry_dead": "Dead letters were put back to pending.",
        "purge_dead": "Dead letters were deleted, by a person.",
        "retry_now": "What waited for its next attempt was made due.",
        "enqueue": "Callbacks were enqueued through the API.",
        "expire": "What a reset had moved was deleted, at the end of its keeping.",
        "pause_alerts": "Alerts were made to cause nothing.",
        "resume_alerts": "Alerts were allowed to act again.",
        "reload": "The configuration was read again, and something about the queue is different.",
    },
)
RESULT = Words(
    "result of an operation",
    "audit, cbq_operations_total",
    {
        "started": "It began. Without another entry after it, the process ended in the middle.",
        "done": "It was carried out.",
        "failed": "It could not be finished; the entry says how far it came.",
        "refused": "A safety rule refused, or the operator said no. Nothing was changed.",
        "dry_run": "It was only looked what would be done.",
        "changed": "What was planned no longer matched what was there. Nothing was changed.",
    },
)
ALERT = Words(
    "outcome of an alert",
    "alerts list, cbq_alerts_received_total",
    {
        "accepted": "Its action is carried out.",
        "dry_run": "It was accepted, and its route says only to look.",
        "not_needed": "Redis shows nothing that would have to be done.",
        "duplicate": "This firing of this alert was accepted before.",
        "cooldown": "The route acted on this queue less than alerts.routes.cooldown ago.",
        "capped": "The route has acted on this queue as often as alerts.routes.max_per_hour allows.",
        "paused": "A person has paused the actions on alerts: cbq-exporter alerts resume.",
        "resolved": "The alert has ended, which never causes anything.",
        "unmatched": "No route fits it.",
        "unknown_queue": "It names a queue that is not configured.",
        "observed": "Its queue is only observed.",
        "invalid": "It lacks what its route needs, or the request could not be read.",
        "unauthorized": "The request had no token, or a wrong one.",
        "failed": "Redis could not be asked: Alertmanager was told to try again.",
    },
)
FLUSH = Words(
    "why a batch went out",
    "cbq_batch_flushes_total",
    {
        "size": "As many callbacks waited as fill a batch (batch.size).",
        "age": "The oldest had waited for batch.max_delay.",
        "early": "The trigger between the two (batch.early).",
        "retry": "A retry was due.",
    },
)
RELEASE = Words(
    "why a send lock is released",
    "status, audit, cbq_lock_releases_total",
    {
        "no_ttl": "It had no expiry, and had not changed for lock.stale.no_ttl_after.",
        "ttl_beyond_max": "Its expiry was further away than lock.stale.max_ttl, and it had not changed for long.",
        "holder_dead": "It belonged to a daemon of ours that gives no sign of life any more.",
    },
)
FENCED = Words(
    "what was fenced",
    "cbq_fenced_total",
    {
        "claim": "A claim was refused, because the send lock was not ours any more.",
        "settle": "The end of a send was not noted, because its lease was given to another.",
        "extend": "A lease was not prolonged, because it was given to another.",
    },
)
REDIS = Words(
    "kind of an error of Redis",
    "cbq_redis_errors_total",
    {
        "connect": "It cannot be reached.",
        "timeout": "It does not answer in time. What was asked may have been done all the same.",
        "auth": "It refuses the login: see redis.url.",
        "other": "It answered with an error that is none of the others.",
        "embedded": "The embedded server cannot be started, or belongs to another daemon.",
        "loading": "It is loading its data.",
        "readonly": "It is a replica: redis.url must name the primary.",
        "oom": "It is at maxmemory, and refuses what takes more.",
        "misconf": "It cannot write to its disk, and refuses every change; it is still read. Free space there, and it "
        "goes on by itself. cbq-exporter explain operations.md has what to do about a full disk.",
        "noreplicas": "Too few replicas are connected.",
        "masterdown": "It is a replica whose primary is down.",
        "clusterdown": "The cluster is down.",
        "busy": "A script blocks it.",
        "tryagain": "Slots of the cluster are being moved.",
        "maxclients": "It has no connection left.",
        "wrongtype": "A key of a queue holds another type than it should.",
        "permission": "The user of redis.url lacks a permission: cbq-exporter explain redis-acl.md.",
        "cluster": "It is a cluster, which is not available yet in this version.",
        "crossslot": "The keys of a queue do not share a hash tag.",
        "unsupported": "It is older than Redis 6.2 or Valkey 7.2.",
    },
)
# How Redis begins such an error, where that is another word; messages quote it.
SAID_BY_REDIS = {"noauth": "auth", "wrongpass": "auth", "noperm": "permission", "moved": "cluster"}
EXIT = Words(
    "exit code",
    "every command",
    {
        "0": "It went well.",
        "1": "It failed.",
        "2": "The command line is wrong.",
        "3": "A safety rule refused, or you said no.",
        "4": "Redis cannot be reached, or cannot be used.",
        "5": "What was planned no longer matched what was there.",
        "130": "It was interrupted.",
        "141": "Whoever read its output went away.",
    },
)

SETS = (MODE, STATE, FAILURE, DEAD, TRIGGER, OPERATION, RESULT, ALERT, FLUSH, RELEASE, FENCED, REDIS, EXIT)
