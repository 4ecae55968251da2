"""A Prometheus exporter and ops daemon for a Redis-backed HTTP callback queue."""

__version__ = "0.1.0"
