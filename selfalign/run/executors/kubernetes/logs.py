"""The pods of a run's stages, for people: the latest Job, logs as they come, the exit code."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from selfalign.errors import ConfigurationError, SelfAlignError, TemporaryError
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    ClusterUnavailable,
    Gone,
    Resource,
    annotations_of,
    backoff_seconds,
    is_owned_by,
    labels_of,
    name_of,
)
from selfalign.run.executors.kubernetes.outcome import (
    INDEX_ANNOTATION,
    attempt_of,
    job_end,
    pods_of,
)
from selfalign.run.executors.kubernetes.waiting import why_waiting

_POLL_SECONDS = 2.0


def find_run(cluster: Cluster, name: str | None) -> Resource:
    """The run of this name; without one the newest that has not ended, or else the newest."""
    if name is not None:
        try:
            return cluster.get(crd.PLURAL, name)
        except Gone:
            known = ", ".join(name_of(run) for run in newest_first(cluster)[:5])
            remedy = f"the latest are {known}" if known else "none was made yet: selfalign submit"
            raise ConfigurationError(
                f"no AlignmentRun {name!r} in namespace {cluster.namespace}", remedy=remedy
            ) from None
    runs = newest_first(cluster)
    if not runs:
        raise ConfigurationError(
            f"no AlignmentRun in namespace {cluster.namespace}",
            remedy="start one: selfalign submit",
        )
    return next((run for run in runs if not crd.is_finished(run)), runs[0])


def newest_first(cluster: Cluster) -> list[Resource]:
    """All runs, by creation."""
    runs = cluster.list(crd.PLURAL)
    return sorted(
        runs, key=lambda run: (run["metadata"]["creationTimestamp"], name_of(run)), reverse=True
    )


def latest_job(cluster: Cluster, run: Resource, stage: str) -> Resource | None:
    """The Job of the latest attempt at a stage; None when there is none (any more)."""
    selector = f"{crd.of_run(name_of(run))},{crd.STAGE_LABEL}={stage}"
    jobs = [job for job in cluster.list("jobs", selector) if is_owned_by(job, run)]

    def number(job: Resource) -> int:
        text = labels_of(job).get(crd.ATTEMPT_LABEL, "")
        return int(text) if text.isdigit() else 0

    return max(jobs, key=number, default=None)


def pods_of_job(cluster: Cluster, job: Resource) -> list[Resource]:
    """The pods that this very Job controls."""
    return pods_of(job, cluster.list("pods", f"batch.kubernetes.io/job-name={name_of(job)}"))


def tail(cluster: Cluster, pod: Resource, lines: int | None) -> Iterator[str]:
    """The end of a pod's log; nothing where it has none yet or may not be read."""
    try:
        yield from cluster.log_lines(
            name_of(pod), container=crd.STAGE_CONTAINER, follow=False, tail_lines=lines
        )
    except (Gone, SelfAlignError):
        return


def shard_of(pod: Resource) -> str:
    """The pod's index in an Indexed Job, or empty."""
    return annotations_of(pod).get(INDEX_ANNOTATION, "")


@dataclass(slots=True)
class Follower:
    """Shows one Job to a person.

    Attributes:
        show: takes the shard that a line is from, or empty, and the line.
        tell: takes a sentence about the Job.
    """

    cluster: Cluster
    show: Callable[[str, str], None]
    tell: Callable[[str], None]
    _streams: dict[str, threading.Thread] = field(default_factory=dict)
    _shown: Counter[str] = field(default_factory=Counter)  # lines, by the pod's uid
    _last: str = ""

    def to_the_end(self, job: str) -> int:
        """Follow the Job of this name until it has ended; the exit code of its stage.

        An API server that cannot be reached is waited for. A Job that is deleted meanwhile ends
        with the code of a failure that may pass.
        """
        failures = 0
        while True:
            try:
                code = self._code(self.cluster.get("jobs", job))
                failures = 0
            except Gone:
                self._say(f"Job {job} was deleted")
                return TemporaryError.exit_code
            except ClusterUnavailable as error:
                failures += 1
                self._say(error.message)
                time.sleep(backoff_seconds(failures))
                continue
            if code is not None:
                for stream in list(self._streams.values()):
                    stream.join(timeout=30)
                return code
            time.sleep(_POLL_SECONDS)

    def _code(self, job: Resource) -> int | None:
        """The exit code of a Job that has ended; None while it is active."""
        pods = pods_of_job(self.cluster, job)
        for pod in pods:
            self._stream(pod)
        if job_end(job) is None:
            waiting = why_waiting(job, pods, [], datetime.now(UTC))
            self._say(waiting.reason if waiting else "")
            return None
        attempt = attempt_of(job, pods)
        assert attempt is not None, "a Job of ours carries our labels"
        if attempt.condition == "Complete":
            return 0
        self._say(f"Job {name_of(job)} failed: {attempt.message}")
        return attempt.exit_code or 1

    def _stream(self, pod: Resource) -> None:
        """Begin to show a pod's log once its container has started."""
        uid = pod["metadata"]["uid"]
        if uid in self._streams or not _has_started(pod):
            return
        thread = threading.Thread(target=self._copy, args=(pod,), daemon=True)
        self._streams[uid] = thread
        thread.start()

    def _copy(self, pod: Resource) -> None:
        uid, name = pod["metadata"]["uid"], name_of(pod)
        try:
            lines = self.cluster.log_lines(name, container=crd.STAGE_CONTAINER, follow=True)
            for line in islice(lines, self._shown[uid], None):
                self.show(shard_of(pod), line)
                self._shown[uid] += 1
        except (Gone, SelfAlignError) as error:
            # The Job's end is found out by asking for the Job, not by its log.
            self._say(f"the log of pod {name} broke off: {error}")
            if isinstance(error, ClusterUnavailable):
                del self._streams[uid]  # so that it is begun again

    def _say(self, sentence: str) -> None:
        if sentence and sentence != self._last:
            self.tell(sentence)
        self._last = sentence


def _has_started(pod: Resource) -> bool:
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status["name"] == crd.STAGE_CONTAINER:
            state = status.get("state") or {}
            return bool(state.get("running") or state.get("terminated"))
    return False
