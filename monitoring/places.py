"""Where alerts and dashboards point to. Other places: change these two lines and run ``make docs``.

Dockerfile and deploy/systemd/cbq-exporter.service name the same repository; a test says where they do not.
"""

from __future__ import annotations

RUNBOOKS = "https://github.com/cbq-exporter/cbq-exporter/blob/main/docs/runbooks"
GRAFANA = "http://localhost:3000"

# The uid of each dashboard, and the variables that a link may set.
QUEUES_DASHBOARD = "cbq-queues"  # var-job, var-queue, var-instance
DESTINATION_DASHBOARD = "cbq-destination"  # var-job, var-queue, var-destination
JOB = "cbq-exporter"  # the scrape job's name
