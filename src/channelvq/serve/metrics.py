"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)


class Metrics:
    """A registry of its own for each server, so that two in a process do not share their counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cvq_requests", "Requests that were answered.", ("path", "status"), registry=self.registry
        )
        self.images = Counter("cvq_images", "Images that were drawn to their end.", registry=self.registry)
        self.tokens = Counter("cvq_tokens", "Image tokens that were drawn.", registry=self.registry)
        self.dropped = Counter("cvq_images_dropped", "Images that nobody waited for.", registry=self.registry)
        self.running = Gauge("cvq_images_running", "Images that are being drawn.", registry=self.registry)
        self.waiting = Gauge("cvq_images_waiting", "Images that wait for a free row.", registry=self.registry)
        self.first = Histogram(
            "cvq_first_image_seconds", "From a request to its first image, partial or not.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
