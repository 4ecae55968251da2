"""The program's first lines, for ``cbq-exporter`` and ``python -m cbq_exporter``."""

from __future__ import annotations


def main() -> None:
    from cbq_exporter.cli import interrupts, streams

    interrupts.end_at_once()  # before anything is imported that takes its time
    streams.open_missing()

    from cbq_exporter.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
