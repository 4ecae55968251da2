"""The page of all metrics: what holds for each of them, and the table made from the catalogue."""

from __future__ import annotations

from cbq_exporter.metrics import catalogue

PATH = "docs/metrics.md"

_HEAD = """\
# Metrics

`/metrics` answers in OpenMetrics 1.0.0 where the scraper asks for it (Prometheus does), else in the plain text format,
packed with gzip where that is asked for. The process's own metrics (`process_*`, `python_*`) come with it.

- **What Redis knows is read for each scrape**, all queues in one round trip of commands that take the same time however
  long a queue is. Scrapes that overlap share one read. It may take half a second less than the scraper waits (by its
  `X-Prometheus-Scrape-Timeout-Seconds`), else 10 seconds.
- **Redis away** is status 200 with `cbq_up 0`. Nothing of what was read before is shown then; what the daemon counts
  itself goes on. A queue that cannot be read has `cbq_scrape_collector_success 0` and does not hide the others.
- **Unknown is absent**, never 0 and never NaN. Counters begin at zero for every known set of labels.
- **Replicas** show the same Redis: take `max by (queue)` of what is read from it, and `sum` of what a daemon counts.
- **Two facts are not read at each scrape.** `cbq_queue_memory_bytes` is measured every 45 seconds, with ten commands
  for a queue and by samples of 20 elements each; and the time of the last send, which Redis forgets after a minute,
  is remembered by the daemon.
- **The number of series is bounded.** Queues, tasks and the words of a label are known sets. Destinations are not: a
  queue has series for `cbq_destination_series_limit` of them, and all others are counted together as `other`
  (`cbq_destination_series_refused` says how many). No URL, error text, callback id or lock value is ever a label.
- **Exemplars**, in OpenMetrics: the buckets of `cbq_delivery_duration_seconds` from one second on, and of
  `cbq_delivery_lag_seconds` from ten seconds on, name the `webhook_id` of a late delivery, which was sent to the
  receiver in the header of that name. Prometheus keeps them with `--enable-feature=exemplar-storage`.
- **Histograms are classic.** Prometheus scrapes native ones as protobuf, which the Python client library does not
  write, or with OpenMetrics 2.0, which is not finished; the library's own histograms do not collect them either. A
  newer Prometheus can keep classic ones as native ones with custom buckets (`convert_classic_histograms_to_nhcb`).

"""


def markdown() -> str:
    return _HEAD + catalogue.markdown()
