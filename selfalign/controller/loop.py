"""The controller's loop: list and watch, a queue, workers, a lease. Level-triggered.

    watchers -> queue of run names -> workers -> Reconciler.reconcile(name)

A watch is only a hint to look: each ends after `resync_seconds` and begins with a fresh list, so
a lost event costs time and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from selfalign.controller.cluster import (
    Cluster,
    Resource,
    backoff_seconds,
    is_going,
    labels_of,
    name_of,
)
from selfalign.controller.configuration import NotDeployed
from selfalign.controller.events import Recorder
from selfalign.controller.health import Heartbeats
from selfalign.controller.index import RunIndex
from selfalign.controller.lease import RETRY_SECONDS, Fenced, Lease
from selfalign.controller.metrics import Metrics, RunTable
from selfalign.controller.names import PLURAL, RUN_LABEL, TEMPLATE_LABEL
from selfalign.controller.planner import Planner
from selfalign.controller.queue import WorkQueue
from selfalign.controller.reconcile import Reconciler
from selfalign.controller.resources import is_finished
from selfalign.errors import SelfAlignError
from selfalign.telemetry import log

STALLED_SECONDS = 300.0  # one look at a run: a store that is down has answered long before
_POLL_SECONDS = 1.0
_FINISH_SECONDS = 20.0  # of the pod's 30 s of grace
# Looks without a reason, over all runs: 10 a second, so that 500 runs are looked at every 50 s.
_SECONDS_PER_RUN = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """How the controller works.

    Attributes:
        workers: runs that are looked at at the same time.
        resync_seconds: after which everything is listed anew.
        lease_name: of the Lease that replicas compete for.
        identity: of this process; used again only once the process that had it is dead, as by
            a container that is started anew in its pod.
    """

    workers: int = 4
    resync_seconds: int = 300
    lease_name: str = "selfalign-controller"
    identity: str = "controller"


class Controller:
    """Runs until it is stopped or the lease is lost."""

    def __init__(self, cluster: Cluster, planner: Planner, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self.queue = WorkQueue()
        self.runs = RunTable()
        self.beats = Heartbeats()
        self.lease = Lease(cluster, settings.lease_name, settings.identity)
        self.metrics = Metrics(self.runs, lambda: self.queue.depth, self.lease.held)
        fenced = Fenced(cluster, self.lease.held)
        self._reconciler = Reconciler(
            fenced,
            planner,
            RunIndex(planner),
            Recorder(fenced),
            on_attempt_ended=self.metrics.count_attempt,
        )
        self._stopping = threading.Event()
        self._seen: dict[str, tuple[str, int, bool]] = {}
        self._listed: set[str] = set()
        self._threads: list[threading.Thread] = []

    def run(self) -> bool:
        """Wait for the lease, act while it is held; False when it was lost.

        Returns once `stop` was called and every worker has finished what it was doing.
        """
        started = False
        while not self._stopping.is_set():
            self.beats.beat("lease", 4 * RETRY_SECONDS + 60)
            held = self.lease.try_once()
            if self.lease.lost:
                log.error("lease.lost", lease=self._settings.lease_name)
                break
            if held and not started:
                started = True
                self._start()
            self._stopping.wait(RETRY_SECONDS)
        self._shut_down()
        return not self.lease.lost

    def stop(self) -> None:
        """Finish what is being done, and end. Safe in a signal handler."""
        self._stopping.set()

    def problems(self) -> list[str]:
        """Why the process should be restarted."""
        lost = ["the lease is lost"] if self.lease.lost else []
        return [*lost, *(f"{name} has stalled" for name in self.beats.stalled())]

    def missing(self) -> list[str]:
        """What a controller that acts has and this one does not have yet. One that waits for
        the lease is ready: it waits in order to take over."""
        if not self._threads:
            return []
        return [
            f"{kind} are not listed yet"
            for kind in (PLURAL, "jobs", "cronjobs")
            if kind not in self._listed
        ]

    def _start(self) -> None:
        log.info(
            "controller.started", namespace=self._cluster.namespace, workers=self._settings.workers
        )
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("watch-runs", lambda: self._watch(PLURAL, "", self._run_changed)),
            ("watch-jobs", lambda: self._watch("jobs", RUN_LABEL, self._job_changed)),
            (
                "watch-templates",
                lambda: self._watch("cronjobs", TEMPLATE_LABEL, self._template_changed),
            ),
        ]
        jobs += [(f"worker-{i}", self._work) for i in range(self._settings.workers)]
        for name, target in jobs:
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _shut_down(self) -> None:
        self._stopping.set()
        self.queue.close()
        deadline = time.monotonic() + _FINISH_SECONDS
        for thread in self._threads:
            # Watchers sit in a read and are daemons; workers finish the run they are at.
            if thread.name.startswith("worker"):
                thread.join(max(0.0, deadline - time.monotonic()))
        self.lease.release()
        log.info("controller.stopped")

    def _watch(self, kind: str, selector: str, changed: Callable[[Resource, bool], None]) -> None:
        name = threading.current_thread().name
        failures = 0
        while not self._stopping.is_set():
            self.beats.beat(name, self._settings.resync_seconds + 120)
            try:
                for change in self._cluster.watch(kind, self._settings.resync_seconds, selector):
                    if self._stopping.is_set():
                        return
                    if change is None:
                        failures = 0
                        self._listed.add(kind)
                    else:
                        changed(change.resource, change.deleted)
            except Exception as error:  # noqa: BLE001 - whatever it was, watching goes on
                failures += 1
                delay = backoff_seconds(failures)
                log.warning("watch.failed", kind=kind, error=str(error), retry_seconds=delay)
                self._stopping.wait(delay)
            if kind == PLURAL:
                self._seen.clear()  # the next list is a resync: look at every run

    def _run_changed(self, run: Resource, deleted: bool) -> None:
        """Look at a run that is new, edited or gone; its status is our own writing."""
        name = name_of(run)
        metadata = run["metadata"]
        if deleted:
            self.runs.gone(name)
            self._seen.pop(name, None)
            self.queue.add(name)
            return
        self.runs.seen(run)
        if is_finished(run) and "ttlSecondsAfterFinished" not in (run.get("spec") or {}):
            return
        version = (metadata["uid"], metadata.get("generation", 0), is_going(run))
        if self._seen.get(name) == version:
            return
        self._seen[name] = version
        self.queue.add(name)

    def _job_changed(self, job: Resource, _deleted: bool) -> None:
        self.queue.add(labels_of(job)[RUN_LABEL])

    def _template_changed(self, _template: Resource, _deleted: bool) -> None:
        """What waits for a stage to be deployed goes on."""
        for name in self.runs.in_phase(NotDeployed.__name__):
            self.queue.add(name)

    def _work(self) -> None:
        thread = threading.current_thread().name
        while not self._stopping.is_set():
            self.beats.beat(thread, STALLED_SECONDS)
            name = self.queue.get(_POLL_SECONDS)
            if name is None:
                continue
            if not self.lease.held():
                self.queue.done(name)
                self.queue.add_later(name, RETRY_SECONDS)
                continue
            self._reconcile(name)
        self.beats.stop(thread)

    def _reconcile(self, name: str) -> None:
        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(run=name):
            try:
                again = self._reconciler.reconcile(name)
            except SelfAlignError as error:
                self.metrics.count_error(error)
                log.warning(
                    "run.retry",
                    error=error.message,
                    remedy=error.remedy,
                    retry_seconds=self.queue.retry(name),
                )
            except Exception as error:  # noqa: BLE001
                # A bug must not stop the other runs; this one comes back.
                self.metrics.count_error(error)
                log.exception("run.retry", retry_seconds=self.queue.retry(name))
            else:
                self.queue.succeeded(name)
                if again is not None:
                    patience = self.runs.unfinished() * _SECONDS_PER_RUN
                    self.queue.add_later(name, max(again, patience) if again >= 1 else again)
            finally:
                self.queue.done(name)
                self.metrics.observe_reconcile(time.monotonic() - started)
