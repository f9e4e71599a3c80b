"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

# Seconds; an answer takes from milliseconds (a small model) to minutes (a long text).
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """One registry a gateway. The label `corpus` is a served corpus's name, or empty."""

    def __init__(self) -> None:
        # No line more for each that says when it was first counted.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "ragtuned_requests", "Requests by HTTP status; 499: the client left.",
            ["corpus", "status"], **given,
        )  # fmt: skip
        self.seconds = Histogram(
            "ragtuned_request_seconds", "Until the whole answer was given.",
            ["corpus"], buckets=_BUCKETS, **given,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "ragtuned_first_token_seconds", "Until the first piece of a streamed answer.",
            ["corpus"], buckets=_BUCKETS, **given,
        )  # fmt: skip
        self.tokens = Counter(
            "ragtuned_tokens", "Tokens of answered requests.", ["corpus", "kind"], **given
        )
        self.in_flight = Gauge("ragtuned_in_flight", "Requests being answered.", **given)
        self.swaps = Counter(
            "ragtuned_swaps", "Promotions that came to serve, or failed to.",
            ["corpus", "outcome"], **given,
        )  # fmt: skip
        self.engine_up = Gauge("ragtuned_engine_up", "1 while the engine can answer.", **given)
        self.engine_starts = Counter("ragtuned_engine_starts", "Starts of the engine.", **given)
        self._adapter = Gauge(
            "ragtuned_adapter", "1 for the adapter that serves a corpus.",
            ["corpus", "adapter"], **given,
        )  # fmt: skip

    def serving(self, adapters: Mapping[str, str]) -> None:
        """Say which adapter (content hash) serves each corpus."""
        self._adapter.clear()
        for corpus, content in adapters.items():
            self._adapter.labels(corpus, content).set(1)

    def text(self) -> str:
        """Return all in Prometheus' text format."""
        return generate_latest(self._registry).decode()
