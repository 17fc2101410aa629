"""/healthz, /readyz and /metrics of the controller, over HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from selfalign.errors import needing
from selfalign.run.executors.kubernetes.findings import VERDICTS, Findings
from selfalign.run.executors.kubernetes.serving import Standing
from selfalign.run.record import Attempt

Problems = Callable[[], list[str]]


class Metrics:
    """The controller's metrics, in a registry of their own.

    Args:
        phases: how many AlignmentRuns stand in which phase.
        depth: how many runs are due.
    """

    def __init__(self, phases: Callable[[], Counter[str]], depth: Callable[[], int]) -> None:
        with needing("metrics need the package prometheus-client", "cluster"):
            from prometheus_client import CollectorRegistry, Histogram
            from prometheus_client import Counter as Total
        self._phases, self._depth = phases, depth
        self.standing: Standing | None = None
        self.findings: Findings | None = None
        self._first_created = self._last_success = 0.0
        self.registry = CollectorRegistry()
        buckets = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
        self.reconcile_seconds = Histogram(
            "selfalign_reconcile_seconds",
            "Seconds that one step of a run takes",
            registry=self.registry,
            buckets=buckets,
        )
        self._errors = Total(
            "selfalign_reconcile_errors",
            "Steps that have to be repeated",
            ["error"],
            registry=self.registry,
        )
        self._attempts = Total(
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
        self._last_success = max(self._last_success, datetime.fromisoformat(moment).timestamp())

    def count_error(self, error: BaseException) -> None:
        """One step failed."""
        self._errors.labels(error=type(error).__name__).inc()

    def count_attempt(self, attempt: Attempt) -> None:
        """An attempt ended."""
        self._attempts.labels(stage=attempt.stage, cause=attempt.cause or "none").inc()

    def collect(self) -> Iterator[Any]:
        """Gauges that are read when they are asked for; one that is not known is left out."""
        from prometheus_client.core import GaugeMetricFamily as Gauge

        runs = Gauge("selfalign_runs", "AlignmentRuns by phase", labels=["phase"])
        for phase, count in sorted(self._phases().items()):
            runs.add_metric([phase], count)
        yield runs
        yield Gauge("selfalign_queue_depth", "Runs that are due", self._depth())
        # While none has succeeded it is the first run's creation, so that an alert on its age works
        # from the first night.
        last = self._last_success or self._first_created
        if last:
            name = "selfalign_last_success_timestamp_seconds"
            yield Gauge(name, "When the last run succeeded (while none has: the first run)", last)
        if (standing := self.standing) is not None:
            current = Gauge("selfalign_model_current", "1 for the current model", labels=["digest"])
            current.add_metric([standing.digest], 1)
            yield current
            if standing.reason != "NotFollowed":
                name = "selfalign_model_served"
                told = "Whether the current model, and no other, is served"
                served = Gauge(name, told, labels=["digest"])
                served.add_metric([standing.digest], float(standing.served))
                yield served
            with contextlib.suppress(ValueError):  # whoever may write the store may write anything
                moment = datetime.fromisoformat(standing.promoted_at).timestamp()
                name = "selfalign_last_promotion_timestamp_seconds"
                told = "When the current model became current, by promotion or rollback"
                yield Gauge(name, told, moment)
        if self.findings is not None:
            yield from _of_newest_run(self.findings)


def _of_newest_run(findings: Findings) -> Iterator[Any]:
    """Gauges of the newest finished run alone: their number does not grow with the nights."""
    from prometheus_client.core import GaugeMetricFamily as Gauge

    name = "selfalign_run_verdict"
    told = "1 for the verdict of the newest finished run; None: its gate has not judged"
    verdict = Gauge(name, told, labels=["verdict"])
    for each in VERDICTS:
        verdict.add_metric([each], float(each == findings.verdict))
    yield verdict
    for end, told in (
        ("mean", "Mean of a metric over the evaluation's items"),
        ("low", "Lower end of the interval of selfalign_evaluation_mean"),
        ("high", "Upper end of the interval of selfalign_evaluation_mean"),
    ):
        scores = Gauge(f"selfalign_evaluation_{end}", told, labels=["model", "metric"])
        for row in findings.scores:
            if (value := getattr(row, end)) is not None:
                scores.add_metric([row.model, row.metric], value)
        yield scores
    for name, told in (
        ("tokens_per_second", "One worker's new tokens, or a training's tokens"),
        ("gpu_seconds", "Seconds of the stage's Jobs, times the GPUs of their pods"),
        ("seconds", "Seconds of all attempts at the stage"),
    ):
        stages = Gauge(f"selfalign_stage_{name}", told, labels=["stage"])
        for stage, value in getattr(findings, name).items():
            stages.add_metric([stage], value)
        yield stages


class Server:
    """Serves health and metrics until it is closed; port 0 lets the system choose."""

    def __init__(self, port: int, metrics: Metrics, healthy: Problems, ready: Problems) -> None:
        from prometheus_client import make_wsgi_app

        metrics_app = make_wsgi_app(metrics.registry)

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                found: Iterable[bytes] = metrics_app(environ, start_response)
                return found
            if path not in ("/healthz", "/readyz"):
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/healthz /readyz /metrics\n"]
            problems = healthy() if path == "/healthz" else [*healthy(), *ready()]
            status = "503 Service Unavailable" if problems else "200 OK"
            start_response(status, [("Content-Type", "text/plain")])
            return ["\n".join([*problems, "" if problems else "ok\n"]).encode()]

        self._server = make_server("", port, app, _DualStack, _Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _DualStack(ThreadingMixIn, WSGIServer):
    """Listens to IPv4 and IPv6, as far as the machine has them."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """A probe every few seconds is not worth a line."""
