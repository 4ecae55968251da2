"""The composition root: the only place that knows all the parts."""

from cbq_exporter.daemon.running import run

__all__ = ["run"]
