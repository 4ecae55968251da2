"""Who takes part, how its queue is filled, how its worker is started, and how to see that all is acknowledged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.environments import ARQ, NODE, PYTHON, WORKERS

Ask = Callable[..., Any]  # one Redis command and its answer
_OPEN = 64  # requests that each contestant may have open at once, where it can


@dataclass(frozen=True, slots=True)
class Job:
    """One run: so many callbacks, from this Redis to this URL. ``folder`` is for the worker's own files."""

    count: int
    redis_url: str
    url: str
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "BENCH_COUNT": str(self.count),
            "BENCH_REDIS": self.redis_url,
            "BENCH_URL": self.url,
            "BENCH_CONCURRENCY": str(_OPEN),
        }


@dataclass(frozen=True, slots=True)
class Contestant:
    """``fill`` is None where there is no queue. ``left`` counts what is not acknowledged yet.

    ``share`` is the part of a run's callbacks it gets, so that a slow one does not take minutes.
    ``durable`` wants a Redis that has each write on disk before it answers.
    """

    name: str
    settings: str
    fill: Callable[[Job], Sequence[str]] | None
    work: Callable[[Job], Sequence[str]]
    left: Callable[[Ask], int]
    share: float = 1.0
    durable: bool = False
    folder: Path = WORKERS
    environ: Mapping[str, str] = field(default_factory=dict)

    def count(self, of: int) -> int:
        return max(200, round(of * self.share))


def _nothing(ask: Ask) -> int:
    return 0


def _celery_left(ask: Ask) -> int:
    return int(ask("LLEN", "celery")) + int(ask("HLEN", "unacked"))


def _dramatiq_left(ask: Ask) -> int:
    return int(ask("HLEN", "dramatiq:default.msgs"))


def _taskiq_left(ask: Ask) -> int:
    (group,) = ask("XINFO GROUPS", "taskiq") or ({"pending": 1, "lag": 0},)
    return int(group["pending"]) + int(group["lag"])


def _arq_left(ask: Ask) -> int:
    return int(ask("ZCARD", "arq:queue"))


def _bullmq_left(ask: Ask) -> int:
    lists = sum(int(ask("LLEN", f"bull:callbacks:{name}")) for name in ("wait", "active"))
    return lists + sum(int(ask("ZCARD", f"bull:callbacks:{name}")) for name in ("delayed", "failed"))


def _python(script: str, *words: str) -> Callable[[Job], Sequence[str]]:
    return lambda job: [str(PYTHON / "bin/python"), script, *words]


def _program(name: str, *words: str) -> Callable[[Job], Sequence[str]]:
    return lambda job: [str(PYTHON / "bin" / name), *words]


def _arq(*words: str) -> Callable[[Job], Sequence[str]]:
    return lambda job: [str(ARQ / "bin/python"), "arq_tasks.py", *words]


def _node(*words: str) -> Callable[[Job], Sequence[str]]:
    return lambda job: ["node", "bullmq.mjs", *words]


def _taskiq(processes: int) -> Callable[[Job], Sequence[str]]:
    words = ("worker", "taskiq_tasks:broker", "--workers", str(processes), "--max-async-tasks", str(_OPEN))
    return _program("taskiq", *words, "--log-level", "WARNING")


_celery = _program(
    "celery",
    *("-A", "celery_tasks", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)
_AS_ROOT = {"C_FORCE_ROOT": "1"}


def _ours_fill(job: Job) -> Sequence[str]:
    return [sys.executable, "-m", "benchmarks.ours", job.redis_url, job.url, str(job.count)]


def _ours_work(job: Job) -> Sequence[str]:
    return ours.command(job.folder, job.redis_url)


OURS = "cbq-exporter"
DURABLE = "cbq-exporter, appendfsync always"
BARE = "bare pycurl, no queue"
BULLMQ = "BullMQ"
_WITH_REQUESTS = {"BENCH_CLIENT": "requests"}
USUAL_PYTHON = ("arq", "taskiq, 1 process", "taskiq, 2 processes", "dramatiq with requests", "Celery with requests")
FASTEST_PYTHON = ("arq", "taskiq, 1 process", "taskiq, 2 processes", "dramatiq", "Celery")

CONTESTANTS = (
    Contestant(OURS, ours.SETTINGS, _ours_fill, _ours_work, ours.left, folder=ours.ROOT),
    Contestant(
        BULLMQ,
        f"concurrency {_OPEN}, undici pool of {_OPEN}, completed jobs removed",
        _node("enqueue"),
        _node("work"),
        _bullmq_left,
        folder=NODE,
    ),
    Contestant(
        "arq",
        f"max_jobs {_OPEN}, poll_delay 10 ms, aiohttp, uvloop",
        _arq("enqueue"),
        _arq("work"),
        _arq_left,
        share=0.1,
    ),
    Contestant(
        "taskiq, 1 process",
        f"stream broker, {_OPEN} tasks, aiohttp, uvloop",
        _python("taskiq_tasks.py", "enqueue"),
        _taskiq(1),
        _taskiq_left,
        share=0.15,
    ),
    Contestant(
        "taskiq, 2 processes",
        f"stream broker, {_OPEN} tasks each, aiohttp, uvloop",
        _python("taskiq_tasks.py", "enqueue"),
        _taskiq(2),
        _taskiq_left,
        share=0.2,
    ),
    Contestant(
        "dramatiq",
        "2 processes of 32 threads, pycurl",
        _python("dramatiq_tasks.py", "enqueue"),
        _program("dramatiq", "dramatiq_tasks", "--processes", "2", "--threads", "32"),
        _dramatiq_left,
        share=0.3,
    ),
    Contestant(
        "dramatiq with requests",
        "2 processes of 32 threads, a session of requests for each",
        _python("dramatiq_tasks.py", "enqueue"),
        _program("dramatiq", "dramatiq_tasks", "--processes", "2", "--threads", "32"),
        _dramatiq_left,
        share=0.1,
        environ=_WITH_REQUESTS,
    ),
    Contestant(
        "Celery",
        "prefork of 2, acks_late, pycurl; without gossip, mingle, heartbeat and results",
        _python("celery_tasks.py", "enqueue"),
        _celery,
        _celery_left,
        share=0.05,
        environ=_AS_ROOT,
    ),
    Contestant(
        "Celery with requests",
        "the same, a session of requests for each process",
        _python("celery_tasks.py", "enqueue"),
        _celery,
        _celery_left,
        share=0.05,
        environ=_AS_ROOT | _WITH_REQUESTS,
    ),
    Contestant(BARE, f"one multi handle, {_OPEN} open", None, _python("bare_pycurl.py"), _nothing),
    Contestant(
        DURABLE,
        f"{ours.SETTINGS}; Redis writes each change to disk",
        _ours_fill,
        _ours_work,
        ours.left,
        durable=True,
        folder=ours.ROOT,
    ),
)
