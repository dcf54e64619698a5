"""What Prometheus can read, on a registry of our own. Labels are routes and states, never ids or names."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MODEL = {
    "cache_bytes": "Bytes of images and features in memory",
    "cache_entries": "Studies in memory",
    "cache_hits": "Questions that found their study in memory",
    "cache_misses": "Questions that did not",
    "peak_rss_bytes": "Highest memory of the model process in its life",
}


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "radglint"}
        self.requests = Counter("http_requests", "Requests by route and status", ["method", "route", "status"], **own)
        self.seconds = Histogram("http_seconds", "Time to answer", ["method", "route"], buckets=SECONDS, **own)
        self.jobs = Counter("jobs_ended", "Jobs by how they ended", ["state"], **own)
        self.failed_studies = Counter("studies_failed", "Studies that could not be used", **own)
        self.restarts = Counter("model_restarts", "Times that the model process had to be started again", **own)
        self.batch = Histogram("queries_at_once", "Queries answered together", buckets=(1, 2, 4, 8, 16, 32, 64), **own)
        self._stored = {
            name: Gauge(name, text, **own)
            for name, text in (
                ("studies", "Studies stored"), ("stored_bytes", "Bytes of them and of their results"),
                ("waiting_jobs", "Jobs that wait"), ("waiting_studies", "Studies that wait to be read"),
                ("incoming_bytes", "Bytes of uploads on their way"),
            )
        }  # fmt: skip
        self._model = {name: Gauge(f"model_{name}", text, **own) for name, text in _MODEL.items()}

    def model_status(self, status: dict[str, Any]) -> None:
        """What the model process tells of itself."""
        for name, gauge in self._model.items():
            if name in status:
                gauge.set(status[name])

    def text(self, counts: dict[str, int]) -> bytes:
        """The page for Prometheus."""
        for name, gauge in self._stored.items():
            gauge.set(counts[name])
        return generate_latest(self.registry)
