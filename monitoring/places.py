"""Where alerts and dashboards point to. Other places: change these two lines and run ``make docs``."""

from __future__ import annotations

RUNBOOKS = "https://github.com/cbq-exporter/cbq-exporter/blob/main/docs/runbooks"
GRAFANA = "http://localhost:3000"

# The uid of each dashboard, and the variables that a link may set.
QUEUES_DASHBOARD = "cbq-queues"  # var-job, var-queue, var-instance
DESTINATION_DASHBOARD = "cbq-destination"  # var-job, var-queue, var-destination
JOB = "cbq-exporter"  # the scrape job's name
