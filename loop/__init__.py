"""The closed loop on real programs: something breaks, Prometheus sees it, Alertmanager asks, the daemon heals.

``make loop`` tells it on a terminal; ``tests/e2e/test_loop.py`` holds the same to bounds.
"""
