"""/healthz, /readyz and /metrics of the controller, over HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from selfalign.errors import ConfigurationError
from selfalign.run.record import Attempt


class Metrics:
    """The controller's metrics, in a registry of their own.

    Args:
        phases: how many AlignmentRuns stand in which phase.
        depth: how many runs are due.
    """

    def __init__(self, phases: Callable[[], Counter[str]], depth: Callable[[], int]) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigurationError(
                "prometheus-client is not installed", remedy="pip install 'selfalign[cluster]'"
            ) from error
        self._prometheus = prometheus
        self._phases, self._depth = phases, depth
        self._first_created: float | None = None
        self._last_success: float | None = None
        self.registry = prometheus.CollectorRegistry()
        self._seconds = prometheus.Histogram(
            "selfalign_reconcile_seconds",
            "Seconds that one step of a run takes",
            registry=self.registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self._errors = prometheus.Counter(
            "selfalign_reconcile_errors",
            "Steps that have to be repeated",
            ["error"],
            registry=self.registry,
        )
        self._attempts = prometheus.Counter(
            "selfalign_attempts",
            "Attempts at a stage that ended, by cause: none, permanent, temporary, disrupted",
            ["stage", "cause"],
            registry=self.registry,
        )
        self.registry.register(self)

    def created(self, moment: str) -> None:
        """An AlignmentRun was created at this time."""
        seconds = datetime.fromisoformat(moment).timestamp()
        self._first_created = min(self._first_created or seconds, seconds)

    def succeeded(self, moment: str) -> None:
        """An AlignmentRun succeeded at this time."""
        seconds = datetime.fromisoformat(moment).timestamp()
        self._last_success = max(self._last_success or seconds, seconds)

    def observe_reconcile(self, seconds: float) -> None:
        """One step took so long."""
        self._seconds.observe(seconds)

    def count_error(self, error: BaseException) -> None:
        """One step failed."""
        self._errors.labels(error=type(error).__name__).inc()

    def count_attempt(self, attempt: Attempt) -> None:
        """An attempt ended."""
        self._attempts.labels(stage=attempt.stage, cause=attempt.cause or "none").inc()

    def collect(self) -> Iterator[Any]:
        """Gauges that are read when they are asked for; one that is not known is left out."""
        from prometheus_client.core import GaugeMetricFamily

        runs = GaugeMetricFamily("selfalign_runs", "AlignmentRuns by phase", labels=["phase"])
        for phase, count in sorted(self._phases().items()):
            runs.add_metric([phase], count)
        yield runs
        yield GaugeMetricFamily("selfalign_queue_depth", "Runs that are due", self._depth())
        # While none has succeeded it is the first run's creation, so that an alert on its age works
        # from the first night.
        last = self._last_success or self._first_created
        if last is not None:
            yield GaugeMetricFamily(
                "selfalign_last_success_timestamp_seconds",
                "When the last run succeeded (when the first was made, while none has)",
                last,
            )

    def render(self) -> tuple[str, bytes]:
        """Content type and text."""
        text: bytes = self._prometheus.generate_latest(self.registry)
        return self._prometheus.CONTENT_TYPE_LATEST, text


class Server:
    """Serves health and metrics until it is closed.

    Args:
        port: 0 lets the system choose (tests).
        healthy: what is wrong, or nothing.
        ready: what is missing, or nothing.
    """

    def __init__(
        self,
        port: int,
        metrics: Metrics,
        healthy: Callable[[], list[str]],
        ready: Callable[[], list[str]],
    ) -> None:
        self._server = ThreadingHTTPServer(("", port), _handler(metrics, healthy, ready))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    metrics: Metrics, healthy: Callable[[], list[str]], ready: Callable[[], list[str]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, *metrics.render())
            elif self.path in ("/healthz", "/readyz"):
                problems = healthy() if self.path == "/healthz" else [*healthy(), *ready()]
                text = "\n".join(problems) or "ok"
                self._answer(503 if problems else 200, "text/plain", f"{text}\n".encode())
            else:
                self._answer(404, "text/plain", b"/healthz /readyz /metrics\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return  # a probe every few seconds is not worth a line

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
