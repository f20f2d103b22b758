"""What Prometheus may ask of a service: GET /metrics."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self):
        disable_created_metrics()  # a second series for each, of when it began
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.scans = Counter("gsclip_scans", "Scans that were taken on, by how they ended", ["outcome"], registry=registry)
        self.parts = Counter("gsclip_parts", "Parts that were scored, by verdict", ["verdict"], registry=registry)
        self.requests = Counter("gsclip_requests", "Answers, by status", ["method", "status"], registry=registry)
        self.seconds = Histogram("gsclip_seconds", "Seconds of a scan: waiting, read, scored", ["step"], buckets=SECONDS,
                                 registry=registry)  # fmt: skip
        self.waiting = Gauge("gsclip_queue_scans", "Scans that wait", registry=registry)
        self.queue = Gauge("gsclip_queue_limit", "Scans that may wait", registry=registry)
        self.uploads = Gauge("gsclip_uploads", "Bodies that are coming in", registry=registry)
        self.results = Gauge("gsclip_results", "Results that are kept", registry=registry)
        self.disk = Gauge("gsclip_results_bytes", "Bytes of the results that are kept", registry=registry)
        self.ready = Gauge("gsclip_ready", "1 once the model is loaded and compiled", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
