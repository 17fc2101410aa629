"""The controller: one thread that reconciles one AlignmentRun after the other. Level-triggered.

    watches -> names that are due -> Reconciler.reconcile(name)

What is served, notices and findings have threads of their own, because others may be slow.
A watch only says which run is due. Each watch ends after `resync_seconds` and begins with a fresh
list, so an event that is lost costs time and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache

from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Conflict,
    Resource,
    backoff_seconds,
    is_terminating,
    is_true,
    labels_of,
    name_of,
)
from selfalign.run.executors.kubernetes.findings import findings_of, finished_at
from selfalign.run.executors.kubernetes.notices import Notices
from selfalign.run.executors.kubernetes.reconcile import Reconciler
from selfalign.run.executors.kubernetes.server import Metrics
from selfalign.run.executors.kubernetes.serving import STEP_SECONDS, Serving, Target
from selfalign.run.notify import POST_SECONDS
from selfalign.run.record import AWAITING_APPROVAL
from selfalign.store.base import Store
from selfalign.store.open import open_store
from selfalign.telemetry import log

STALLED_SECONDS = 300.0  # one step of a run; a store that is down has answered long before
_POLL_SECONDS = 1.0
_RETRY_LIMIT_SECONDS = 60.0
_SHORT_WATCH_SECONDS = 30.0
_FIND_SECONDS = 5.0  # between two looks for a run that has ended
_BESIDE_SECONDS = 30.0  # before a step beside the loop that failed is tried again
_WAITING = ("Queued", "NotDeployed", "ArtifactBusy")  # what another run or a release may end


def open_shared_store(url: str) -> Store:
    """The store at `url`. Raises ConfigurationError for a directory, which pods do not share."""
    if not url.startswith("s3://"):
        raise ConfigurationError(
            f"store {url!r}: pods share no directory, so no stage would find what another wrote",
            remedy="set store: s3://bucket/prefix in the platform's configuration",
        )
    return open_store(url)


class Controller:
    """Runs until it is stopped.

    Args:
        resync_seconds: after which everything is listed anew.
        serving: what follows `current`; None leaves serving alone.
    """

    def __init__(
        self,
        cluster: Cluster,
        opener: Callable[[str], Store],
        *,
        resync_seconds: int = 300,
        serving: Target | None = None,
    ) -> None:
        self._cluster = cluster
        self._opener = opener = cache(opener)  # each store is opened once, for all threads
        self._newest: Resource | None = None  # the finished run that ended last
        self._found: Resource | None = None  # whose findings are known
        self._woken = {what: threading.Event() for what in ("notices", "serving", "findings")}
        self._resync_seconds = resync_seconds
        self._due: dict[str, float] = {}
        self._changed = threading.Condition()
        self._failures: Counter[str] = Counter()
        self._versions: dict[str, tuple[str, int, bool]] = {}
        self._phases: dict[str, str] = {}
        self._listed: set[str] = set()
        self._beat = time.monotonic()
        self._stopping = threading.Event()
        self.metrics = Metrics(lambda: Counter(self._phases.values()), self._depth)
        self._notices = Notices(cluster, opener)
        self._reconciler = Reconciler(
            cluster, opener, on_attempt_ended=self.metrics.count_attempt, is_owed=self._notices.owes
        )
        self._serving = Serving(cluster, opener, serving)

    def run(self) -> None:
        """Reconcile until `stop` is called; a step that has begun is finished first."""
        log.info("controller.started", namespace=self._cluster.namespace)
        watches: list[tuple[str, str, Callable[[Resource, bool], None]]] = [
            (crd.PLURAL, "", self._run_changed),
            ("jobs", crd.RUN_LABEL, lambda job, _deleted: self.add(labels_of(job)[crd.RUN_LABEL])),
            ("cronjobs", crd.TEMPLATE_LABEL, lambda _template, _deleted: self._wake()),
        ]
        for arguments in watches:
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()
        steps = {"notices": self._notices.step, "serving": self._serve, "findings": self._find}
        beside = {
            what: threading.Thread(target=self._beside, args=(what, step), daemon=True)
            for what, step in steps.items()
        }
        worker = threading.Thread(target=self._work, name="reconcile")
        for thread in (worker, *beside.values()):
            thread.start()
        worker.join()
        for woken in self._woken.values():
            woken.set()
        beside["notices"].join(POST_SECONDS + 1)  # so that a notice that was taken is written down
        log.info("controller.stopped")

    def stop(self) -> None:
        """End after the step at hand. Safe in a signal handler."""
        self._stopping.set()

    def add(self, name: str, delay_seconds: float = 0.0) -> None:
        """Make a run due, no later than it is already."""
        due = time.monotonic() + delay_seconds
        with self._changed:
            self._due[name] = min(due, self._due.get(name, due))
            self._changed.notify()

    def problems(self) -> list[str]:
        """Why the process should be restarted; empty when it works."""
        silent = time.monotonic() - self._beat
        return [f"no step has ended for {silent:.0f} s"] if silent > STALLED_SECONDS else []

    def missing(self) -> list[str]:
        """What has to be listed before the controller can act."""
        kinds = (crd.PLURAL, "jobs", "cronjobs")
        return [f"{kind} are not listed yet" for kind in kinds if kind not in self._listed]

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._beat = time.monotonic()
            name = self._next()
            if name is not None:
                self._reconcile(name)

    def _next(self) -> str | None:
        """The run that has been due for longest; None when there is none within a second."""
        with self._changed:
            if not self._due:
                self._changed.wait(_POLL_SECONDS)
            if not self._due:
                return None
            name = min(self._due, key=lambda each: self._due[each])
            left = self._due[name] - time.monotonic()
            if left > 0:
                self._changed.wait(min(left, _POLL_SECONDS))
                return None
            del self._due[name]
            return name

    def _reconcile(self, name: str) -> None:
        began = time.monotonic()
        try:
            again = self._reconciler.reconcile(name)
            self._failures.pop(name, None)
        except SelfAlignError as error:
            again = self._retry(name, error)
            log.warning("run.retry", run=name, error=error.message[:500], retry_seconds=again)
        except Exception as error:  # noqa: BLE001 - a bug must not stop the other runs
            again = self._retry(name, error)
            log.exception("run.retry", run=name, retry_seconds=again)
        if again is not None:
            self.add(name, again)
        self.metrics.reconcile_seconds.observe(time.monotonic() - began)

    def _beside(self, what: str, step: Callable[[], float]) -> None:
        """Take one step after another beside the loop: no run waits for it, nor fails by it."""
        woken = self._woken[what]
        while not self._stopping.is_set():
            woken.clear()
            wait = _BESIDE_SECONDS
            try:
                wait = step()
            except Conflict:
                wait = 0.0
            except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
                self.metrics.count_error(error)
                if isinstance(error, SelfAlignError):
                    log.warning(f"{what}.retry", error=error.message[:500])
                else:
                    log.exception(f"{what}.retry")
            woken.wait(wait)

    def _serve(self) -> float:
        self.metrics.standing = self._serving.step()
        return STEP_SECONDS

    def _find(self) -> float:
        """Read what the newest finished run found."""
        if (newest := self._newest) is not None and newest is not self._found:
            self.metrics.findings = findings_of(self._cluster, self._opener, newest)
            self._found = newest
        return _FIND_SECONDS

    def _is_newest(self, run: Resource) -> bool:
        ended = finished_at(run)
        last = None if self._newest is None else finished_at(self._newest)
        if ended is None:
            return False
        return last is None or ended > last

    def _retry(self, name: str, error: Exception) -> float:
        self.metrics.count_error(error)
        self._failures[name] += 1
        return backoff_seconds(self._failures[name], _RETRY_LIMIT_SECONDS)

    def _watch(self, kind: str, selector: str, changed: Callable[[Resource, bool], None]) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                for change in self._cluster.watch(kind, self._resync_seconds, selector):
                    if change is None:
                        self._listed.add(kind)
                    else:
                        changed(change.resource, change.deleted)
            except Exception as error:  # noqa: BLE001 - whatever it was, watching goes on
                log.warning("watch.failed", kind=kind, error=str(error)[:500])
            if kind == crd.PLURAL:
                self._versions.clear()  # the next list is a resync: every run is due
            # Servers that end a watch at once are not asked many times a second.
            lasted = time.monotonic() - began
            failures = 0 if lasted > _SHORT_WATCH_SECONDS else failures + 1
            self._stopping.wait(backoff_seconds(failures))

    def _run_changed(self, run: Resource, deleted: bool) -> None:
        """A run that is new, edited or deleted is due; its status is our own writing."""
        name, metadata = name_of(run), run["metadata"]
        if deleted:
            self._phases.pop(name, None)
            self._versions.pop(name, None)
            self.add(name)
            self._wake()
            return
        was, self._phases[name] = self._phases.get(name), crd.phase_of(run)
        if self._phases[name] == AWAITING_APPROVAL != was:
            self._woken["notices"].set()
            self._wake()
        self.metrics.created(metadata["creationTimestamp"])
        if crd.is_finished(run):
            if self._is_newest(run):
                self._newest = run
            completed = (run.get("status") or {}).get("completedAt")
            if is_true(run, "Succeeded") and completed:
                self.metrics.succeeded(completed)
            if was not in (None, "Succeeded", "Failed"):
                self._wake()
                self._woken["notices"].set()
                self._woken["serving"].set()  # it may have promoted
            if (run.get("spec") or {}).get("ttlSecondsAfterFinished") is None:
                return
        version = (metadata["uid"], metadata.get("generation", 0), is_terminating(run))
        if self._versions.get(name) != version:
            self._versions[name] = version
            self.add(name)

    def _wake(self) -> None:
        """Runs that wait for a turn, a release or another run's artifact are due."""
        for name, phase in list(self._phases.items()):
            if phase in _WAITING:
                self.add(name)

    def _depth(self) -> int:
        now = time.monotonic()
        with self._changed:
            return sum(due <= now for due in self._due.values())
