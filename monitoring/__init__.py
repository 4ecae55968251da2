"""What watches the daemon from outside: thresholds, rules and dashboards, written into files by ``make docs``.

Not part of the installed program.
"""
