"""What Prometheus reads at /metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from selfalign.controller.cluster import Resource, name_of
from selfalign.controller.resources import is_finished, is_true, phase_of, status_of
from selfalign.errors import ConfigurationError
from selfalign.run.decide import Attempt


class RunTable:
    """The runs there are, as last seen; small, whatever they hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, str] = {}
        self._unfinished: set[str] = set()
        self._first_created: float | None = None
        self._last_success: float | None = None

    def seen(self, run: Resource) -> None:
        """Note how a run stands."""
        name = name_of(run)
        with self._lock:
            self._phases[name] = phase_of(run)
            (self._unfinished.discard if is_finished(run) else self._unfinished.add)(name)
            created = _seconds(run["metadata"]["creationTimestamp"])
            self._first_created = min(self._first_created or created, created)
            ended = status_of(run).get("completedAt")
            if is_true(run, "Succeeded") and ended:
                self._last_success = max(self._last_success or 0.0, _seconds(ended))

    def gone(self, name: str) -> None:
        """The run was deleted."""
        with self._lock:
            self._phases.pop(name, None)
            self._unfinished.discard(name)

    def unfinished(self) -> int:
        """How many runs go on."""
        with self._lock:
            return len(self._unfinished)

    def in_phase(self, phase: str) -> list[str]:
        """Names of the runs that stand so."""
        with self._lock:
            return [name for name, found in self._phases.items() if found == phase]

    def phases(self) -> Counter[str]:
        """How many runs stand how."""
        with self._lock:
            return Counter(self._phases.values())

    def last_success(self) -> float | None:
        """Unix seconds of the last success; of the first run's creation while there was none, so
        that an alert on its age works from the first night; None before the first run."""
        with self._lock:
            return self._last_success or self._first_created


class Metrics:
    """The controller's metrics, in a registry of their own."""

    def __init__(
        self, runs: RunTable, queue_depth: Callable[[], int], leading: Callable[[], bool]
    ) -> None:
        try:
            import prometheus_client as prometheus
            from prometheus_client.core import GaugeMetricFamily
        except ImportError as error:
            raise ConfigurationError(
                "prometheus-client is not installed", remedy="pip install 'selfalign[cluster]'"
            ) from error
        self._prometheus = prometheus
        self.registry = prometheus.CollectorRegistry()
        self._seconds = prometheus.Histogram(
            "selfalign_reconcile_seconds",
            "Seconds that one look at a run takes",
            registry=self.registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self._errors = prometheus.Counter(
            "selfalign_reconcile_errors",
            "Looks at a run that have to be repeated",
            ["error"],
            registry=self.registry,
        )
        self._attempts = prometheus.Counter(
            "selfalign_attempts",
            "Attempts at a stage that ended, by cause: none, permanent, temporary, disrupted",
            ["stage", "cause"],
            registry=self.registry,
        )
        self.registry.register(_Gauges(GaugeMetricFamily, runs, queue_depth, leading))

    def observe_reconcile(self, seconds: float) -> None:
        """One look at a run took so long."""
        self._seconds.observe(seconds)

    def count_error(self, error: BaseException) -> None:
        """One look at a run failed."""
        self._errors.labels(error=type(error).__name__).inc()

    def count_attempt(self, attempt: Attempt) -> None:
        """An attempt ended."""
        self._attempts.labels(stage=attempt.stage, cause=attempt.cause or "none").inc()

    def render(self) -> tuple[str, bytes]:
        """Content type and text."""
        text: bytes = self._prometheus.generate_latest(self.registry)
        return self._prometheus.CONTENT_TYPE_LATEST, text


class _Gauges:
    """Values that are read when asked for; one that is not known is left out, not 0."""

    def __init__(
        self,
        family: Any,
        runs: RunTable,
        queue_depth: Callable[[], int],
        leading: Callable[[], bool],
    ) -> None:
        self._family = family
        self._runs = runs
        self._queue_depth = queue_depth
        self._leading = leading

    def collect(self) -> Iterator[Any]:
        phases = self._family("selfalign_runs", "AlignmentRuns by phase", labels=["phase"])
        for phase, count in sorted(self._runs.phases().items()):
            phases.add_metric([phase], count)
        yield phases
        yield self._family(
            "selfalign_queue_depth", "Runs that wait for a worker", self._queue_depth()
        )
        yield self._family("selfalign_leader", "Whether this replica acts", float(self._leading()))
        last = self._runs.last_success()
        if last is not None:
            yield self._family(
                "selfalign_last_success_timestamp_seconds",
                "When the last run succeeded (when the first was made, while none has)",
                last,
            )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
