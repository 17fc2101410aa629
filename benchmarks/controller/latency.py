"""Time from a Job's completion to the creation of the next, with many live runs.

    python -m benchmarks.controller.latency [--runs 500] [--workers 4] [--per-second 10]

The controller is the real one (watches, queue, workers, lease, planner over a local store); the
API server is the double in memory, so this is the controller's own share: add one round trip to
your API server for each of some ten calls, and to your store for each of some three. Two loads:
`steady`, Jobs that complete one after the other, and `burst`, one Job of every run at the same
moment. Prints one line for people on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from selfalign.controller.loop import Controller, Settings
from selfalign.controller.memory import MemoryCluster
from selfalign.controller.planner import Planner
from selfalign.controller.resources import new_run
from tests.controller.worlds import complete, install, platform_values, publish

from selfalign.pipeline import STAGES
from selfalign.store.local import LocalStore
from selfalign.telemetry import configure_logging

_PATIENCE_SECONDS = 600


class Clocked(MemoryCluster):
    """The API double, which notes when each Job was created."""

    def __init__(self) -> None:
        super().__init__()
        self.created: dict[str, float] = {}
        self.creation = threading.Condition()

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        made = super().create(kind, body)
        if kind == "jobs":
            with self.creation:
                self.created[made["metadata"]["name"]] = time.perf_counter()
                self.creation.notify_all()
        return made

    def wait_for(self, jobs: set[str]) -> None:
        """Wait until all of these Jobs exist."""
        with self.creation:
            if not self.creation.wait_for(lambda: jobs <= self.created.keys(), _PATIENCE_SECONDS):
                raise SystemExit(f"{len(jobs - self.created.keys())} Jobs were never created")


def main() -> None:
    """Run both loads and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--per-second", type=float, default=10.0)
    options = parser.parse_args()
    configure_logging(level="warning")
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), options.runs, options.workers, options.per_second)
    steady, burst = result["steady"], result["burst"]
    print(
        f"{options.runs} runs, {options.workers} workers: steady p50 {steady['p50_ms']:.0f} ms, "
        f"p99 {steady['p99_ms']:.0f} ms; burst p50 {burst['p50_ms']:.0f} ms, "
        f"p99 {burst['p99_ms']:.0f} ms; {result['rss_mib']:.0f} MiB, of which the double "
        f"{result['double_mib']:.0f} MiB",
        file=sys.stderr,
    )
    print(json.dumps(result, indent=2))


def measure(directory: Path, runs: int, workers: int, per_second: float) -> dict[str, Any]:
    """Both loads on one controller."""
    cluster, store = Clocked(), LocalStore(directory / "store")
    install(cluster, platform_values(store=store.url))
    names = [f"run-{number:04}" for number in range(runs)]
    for seed, name in enumerate(names):
        spec = {"config": {"seed": seed}}
        cluster.create("alignmentruns", new_run(name, cluster.namespace, spec))
    before = _rss_mib()
    controller = Controller(cluster, Planner(lambda _url: store), Settings(workers=workers))
    thread = threading.Thread(target=controller.run)
    started = time.perf_counter()
    thread.start()
    first, second, third = (stage.name for stage in STAGES[:3])
    cluster.wait_for({f"{name}-{first}-1" for name in names})
    admitted = time.perf_counter() - started
    while controller.queue.depth:  # the starts' own events are no steady load
        time.sleep(0.1)
    settled = time.perf_counter() - started
    steady = _steady(cluster, store, names, (first, second), per_second)
    burst = _burst(cluster, store, names, (second, third))
    controller.stop()
    thread.join()
    return {
        "runs": runs,
        "workers": workers,
        "completions_per_second": per_second,
        "all_runs_started_seconds": round(admitted, 2),
        "queue_empty_seconds": round(settled, 2),
        "steady": _percentiles(steady),
        "burst": _percentiles(burst),
        "rss_mib": round(_rss_mib(), 1),
        "rss_before_controller_mib": round(before, 1),
        "double_mib": round(_stored_mib(cluster), 1),
    }


def _steady(
    cluster: Clocked, store: LocalStore, names: list[str], stages: tuple[str, str], rate: float
) -> list[float]:
    """One Job after the other completes, in random order."""
    order = random.Random(0).sample(names, len(names))
    ended: dict[str, float] = {}
    due = time.perf_counter()
    for name in order:
        publish(cluster, store, f"{name}-{stages[0]}-1")
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        ended[name] = _complete(cluster, f"{name}-{stages[0]}-1")
    cluster.wait_for({f"{name}-{stages[1]}-1" for name in names})
    return [cluster.created[f"{name}-{stages[1]}-1"] - ended[name] for name in names]


def _burst(
    cluster: Clocked, store: LocalStore, names: list[str], stages: tuple[str, str]
) -> list[float]:
    """One Job of every run completes at the same moment."""
    for name in names:
        publish(cluster, store, f"{name}-{stages[0]}-1")
    ended = {name: _complete(cluster, f"{name}-{stages[0]}-1") for name in names}
    cluster.wait_for({f"{name}-{stages[1]}-1" for name in names})
    return [cluster.created[f"{name}-{stages[1]}-1"] - ended[name] for name in names]


def _complete(cluster: Clocked, job: str) -> float:
    from datetime import UTC, datetime

    moment = time.perf_counter()
    complete(cluster, job, datetime.now(UTC))
    return moment


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return {"count": len(ordered), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99),
            "max_ms": at(1.0)}  # fmt: skip


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _stored_mib(cluster: Clocked) -> float:
    kinds = ("alignmentruns", "jobs", "configmaps", "cronjobs", "events", "leases")
    current = sum(len(data) for kind in kinds for data in cluster.select(kind, "")[0])
    history = sum(len(change.data) for change in cluster.changes_since(0) or [])
    return (current + history) / 2**20


if __name__ == "__main__":
    main()
