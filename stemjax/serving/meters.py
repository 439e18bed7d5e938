"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client as prometheus
from prometheus_client import exposition

from stemjax.serving import batches

CONTENT_TYPE = exposition.CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = tuple(2**power for power in range(13))


class Meters:
    """The counters of one service, in a registry of their own.

    Args:
      queue_length: requests that wait now.
      compilations: programs compiled so far.
      ready: whether requests are accepted.
    """

    def __init__(
        self,
        *,
        queue_length: Callable[[], float],
        compilations: Callable[[], float],
        ready: Callable[[], float],
    ) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "stemjax_requests", "Answers, by path and HTTP status", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = prometheus.Histogram(
            "stemjax_request_seconds", "From a request's head to the end of its answer", ["path"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._profiles = prometheus.Counter(
            "stemjax_profiles", "Gene profiles sent, one a spot, by mode", ["mode"],
            registry=registry,
        )  # fmt: skip
        self._batch_spots = prometheus.Histogram(
            "stemjax_batch_spots", "Spots computed at a time", registry=registry, buckets=_SIZES
        )
        self._batch_requests = prometheus.Histogram(
            "stemjax_batch_requests", "Requests that share a batch", registry=registry,
            buckets=_SIZES,
        )  # fmt: skip
        self._batch_seconds = prometheus.Histogram(
            "stemjax_batch_seconds", "Time of a batch on the device", registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        for name, about, read in (
            ("stemjax_queue_length", "Requests that wait", queue_length),
            ("stemjax_compilations", "Programs of the model compiled", compilations),
            ("stemjax_ready", "1 if requests are accepted", ready),
        ):
            prometheus.Gauge(name, about, registry=registry).set_function(read)

    def count_batch(self, batch: batches.Batch) -> None:
        """Counts what was computed at a time."""
        self._batch_spots.observe(batch.spots)
        self._batch_requests.observe(batch.requests)
        self._batch_seconds.observe(batch.seconds)

    def count_profiles(self, mode: str, spots: int) -> None:
        """Counts the profiles of an answer."""
        self._profiles.labels(mode).inc(spots)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer; ``path`` is one that is served, or ``other``."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Returns all of it in Prometheus's text format."""
        return prometheus.generate_latest(self._registry)
