"""What happens when, as fractions of the demo's length; nothing here does anything."""

from __future__ import annotations

from dataclasses import dataclass

FLAKY_FROM = 0.12
DOWN_FROM = 0.27
BAD_FROM = 0.40
KILL_AT = 0.55
RESTART_AT = 0.62
UP_AGAIN_FROM = 0.75
LOAD_ENDS = 0.85


@dataclass(frozen=True, slots=True)
class Scene:
    begins: float
    title: str
    caption: str


SCENES = (
    Scene(
        0.0,
        "Callbacks arrive and go out",
        "A producer pushes 50 callbacks a second. The daemon takes them in batches and sends them: all is well.",
    ),
    Scene(
        FLAKY_FROM,
        "One receiver fails one time in five",
        "A failed send waits a moment in retry and goes out again. The other receivers do not notice.",
    ),
    Scene(
        DOWN_FROM,
        "Another receiver is down",
        "It answers 503 to everything. Its callbacks gather in retry and none is given up.",
    ),
    Scene(
        BAD_FROM,
        "Bad input, and a receiver that is gone",
        "No JSON, an ftp: URL, no data, an internal address, 410 Gone: each becomes a dead letter with its reason "
        "and its bytes. The rest goes on.",
    ),
    Scene(
        KILL_AT,
        "kill -9: the daemon is dead",
        "It was killed in the middle of its sends. Producers push on, and pending grows: the store is still there.",
    ),
    Scene(
        RESTART_AT,
        "A new daemon starts on the same data",
        "The dead one's lock and leases run out; then what it was sending is sent again, and pending drains.",
    ),
    Scene(
        UP_AGAIN_FROM,
        "The receiver that was down is up again",
        "What waited for it in retry goes out, each at its time.",
    ),
    Scene(
        LOAD_ENDS,
        "The producer has stopped",
        "The last retries go out. Then every callback is accounted for.",
    ),
)


def scene_at(fraction: float) -> Scene:
    return [scene for scene in SCENES if scene.begins <= fraction][-1]


def is_down(fraction: float) -> bool:
    """Whether the receiver that goes down for a while is down."""
    return DOWN_FROM <= fraction < UP_AGAIN_FROM
