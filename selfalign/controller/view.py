"""How a run stands on the cluster, for a person: causes, why it waits, what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from selfalign.controller.attempts import observe
from selfalign.controller.cluster import Cluster, Gone, Resource, labels_of, name_of
from selfalign.controller.job import is_owned_by
from selfalign.controller.names import STAGE_CONTAINER, STAGE_LABEL, of_run
from selfalign.controller.outcome import Observed, job_end, pods_of
from selfalign.controller.resources import condition, is_finished, is_true, phase_of, status_of
from selfalign.controller.status import REUSES
from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.pipeline import BY_NAME, STAGES

_PROGRESS_TAIL_LINES = 20  # a stage tells its progress twice a second at most
_PROGRESS_PODS = 16  # whose progress is read; of more pods the rest is left out
_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True, slots=True)
class StageProgress:
    """What the pods of a stage under way say themselves, added up.

    Attributes:
        eta_seconds: of the slowest.
    """

    done: int
    total: int | None
    unit: str
    per_second: float
    eta_seconds: float | None


@dataclass(slots=True)
class StageView:
    """One stage of a run.

    Attributes:
        shards: "2/4 done, 1 running" of an Indexed Job, or empty.
        disruptions: attempts that cost nothing.
        lines: the last lines of its pods' logs, where they were asked for.
    """

    name: str
    phase: str
    key: str | None = None
    job: str | None = None
    attempts: int = 0
    disruptions: int = 0
    shards: str = ""
    message: str = ""
    progress: StageProgress | None = None
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunView:
    """One run."""

    name: str
    phase: str
    progress: str
    message: str
    next_action: str
    verdict: str | None
    started_at: str | None
    completed_at: str | None
    stages: list[StageView]
    attempts: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def find_run(cluster: Cluster, name: str | None) -> Resource:
    """The run of this name; without one the newest that goes on, or else the newest."""
    if name is not None:
        try:
            return cluster.get("alignmentruns", name)
        except Gone:
            known = [name_of(run) for run in _newest_first(cluster)][:5]
            raise ConfigurationError(
                f"no AlignmentRun {name!r} in namespace {cluster.namespace}",
                remedy=f"the latest are {', '.join(known)}"
                if known
                else "none was made yet: selfalign submit",
            ) from None
    runs = _newest_first(cluster)
    if not runs:
        raise ConfigurationError(
            f"no AlignmentRun in namespace {cluster.namespace}",
            remedy="start one: selfalign submit",
        )
    return next((run for run in runs if not is_finished(run)), runs[0])


def latest_job(cluster: Cluster, run: Resource, stage: str) -> Resource | None:
    """The Job of the latest attempt at a stage; None when there is none (any more)."""
    jobs = [
        job
        for job in cluster.list("jobs", f"{of_run(name_of(run))},{STAGE_LABEL}={stage}")
        if is_owned_by(job, run)
    ]
    return max(jobs, key=_attempt_number, default=None)


def look(cluster: Cluster, run: Resource, *, log_lines: int = 0) -> RunView:
    """View a run.

    Args:
        log_lines: of each pod of a stage under way; 0 shows none.
    """
    selector = of_run(name_of(run))
    jobs = [job for job in cluster.list("jobs", selector) if is_owned_by(job, run)]
    pods = cluster.list("pods", selector)
    attempts = observe(run, jobs, pods, "")
    rows = {row["name"]: row for row in status_of(run).get("stages") or []}
    stages = []
    for stage in STAGES:
        view = _stage(rows.get(stage.name, {"name": stage.name, "phase": "Pending"}), attempts)
        job = next((job for job in jobs if name_of(job) == view.job), None)
        if job is not None and job_end(job) is None:
            mine = pods_of(job, pods)
            view.shards = _shards(job) if BY_NAME[stage.name].sharded else ""
            tail = max(log_lines, _PROGRESS_TAIL_LINES)
            logs = {name_of(pod): _tail(cluster, pod, tail) for pod in mine[:_PROGRESS_PODS]}
            view.progress = progress_of(logs.values())
            if log_lines:
                view.lines = [line for lines in logs.values() for line in lines[-log_lines:]]
        stages.append(view)
    status = status_of(run)
    return RunView(
        name=name_of(run),
        phase=phase_of(run),
        progress=status.get("progress", ""),
        message=status.get("message", ""),
        next_action=next_action(run, attempts),
        verdict=status.get("verdict"),
        started_at=status.get("startedAt"),
        completed_at=status.get("completedAt"),
        stages=stages,
        attempts=[_attempt(seen) for seen in attempts],
    )


def progress_of(logs: Iterable[list[str]]) -> StageProgress | None:
    """Add up what the pods said last of their progress; None when none said anything."""
    latest = [event for lines in logs if (event := _last_progress(lines)) is not None]
    if not latest:
        return None
    totals = [event.get("total") for event in latest]
    etas = [event["eta_seconds"] for event in latest if event.get("eta_seconds") is not None]
    return StageProgress(
        done=sum(event.get("done") or 0 for event in latest),
        total=None if None in totals else sum(total or 0 for total in totals),
        unit=latest[0].get("unit") or "",
        per_second=round(sum(event.get("per_second") or 0.0 for event in latest), 2),
        eta_seconds=max(etas, default=None),
    )


def exit_code_of(run: Resource, attempts: Iterable[Observed]) -> int:
    """0 for a run that succeeded; else the exit code of the stage that ended it, or 1."""
    if is_true(run, "Succeeded"):
        return 0
    if not is_true(run, "Failed"):
        return 1
    reason = (condition(run, "Failed") or {}).get("reason", "")
    if reason in ("PermanentFailure", "AttemptsExhausted"):
        stage = status_of(run).get("stage")
        codes = [
            o.attempt.exit_code
            for o in attempts
            if o.attempt.stage == stage and o.attempt.exit_code is not None
        ]
        return codes[-1] if codes and codes[-1] > 0 else 1
    by_name = {cls.__name__: cls.exit_code for cls in _subclasses(SelfAlignError)}
    return by_name.get(reason, 1)


def next_action(run: Resource, attempts: Iterable[Observed]) -> str:
    """What a person should do now, in one line."""
    phase, message = phase_of(run), str(status_of(run).get("message", ""))
    name = name_of(run)
    if phase == "Succeeded":
        return f"look at it: selfalign report {name}"
    if phase == "Failed":
        return _after_failure(exit_code_of(run, attempts), message)
    if phase == "Pending":
        return "wait; if it stays so the controller is not running: kubectl get deployment " \
            "selfalign-controller"  # fmt: skip
    if phase == "Suspended":
        return f"to go on: kubectl patch alignmentrun {name} --type merge -p " \
            '\'{"spec":{"suspend":false}}\''  # fmt: skip
    if "; remedy: " in message:
        return message.rpartition("; remedy: ")[2]
    if phase == "Waiting":
        return "see why above; it goes on by itself once that has passed"
    stage = status_of(run).get("stage", "STAGE")
    return f"wait; to watch it: selfalign cluster logs {stage} --run {name} --follow"


def _after_failure(code: int, message: str) -> str:
    if "; remedy: " in message:
        remedy = message.rpartition("; remedy: ")[2]
        return f"{remedy.removesuffix(f'; {REUSES}')}; {_ANEW}"
    remedies = {
        2: "correct the configuration or the seeds",
        3: "restore or delete the artifact or file it names",
        4: "give the stage's service account access to the store",
        69: "see that the store can be reached from the pods",
        71: "lower batch_size, max_length or gpu_memory_utilization, or give it a larger GPU",
        74: "raise the sizes of cache and scratch in the stage's values",
    }
    return f"{remedies.get(code, 'see the log of its Jobs')}; {_ANEW}"


_ANEW = f"then submit a new run ({REUSES})"


def _stage(row: Resource, attempts: list[Observed]) -> StageView:
    mine = [
        o for o in attempts if (o.attempt.stage, o.attempt.key) == (row["name"], row.get("key"))
    ]
    return StageView(
        name=row["name"],
        phase=row["phase"],
        key=row.get("key"),
        job=row.get("job"),
        attempts=row.get("attempts", 0),
        disruptions=sum(o.attempt.cause == "disrupted" for o in mine),
        message=row.get("message", ""),
    )


def _attempt(seen: Observed) -> dict[str, Any]:
    return {
        **asdict(seen.attempt),
        "started_at": seen.started_at,
        "finished_at": seen.finished_at or None,
    }


def _shards(job: Resource) -> str:
    status = job.get("status") or {}
    done = int(status.get("succeeded") or 0)
    parts = [f"{done}/{job['spec'].get('completions') or 1} shards done"]
    parts += [
        f"{status[name]} {word}"
        for name, word in (("active", "active"), ("failed", "pods failed"))
        if status.get(name)
    ]
    return ", ".join(parts)


def _tail(cluster: Cluster, pod: Resource, lines: int) -> list[str]:
    """The end of a pod's log; nothing where it has none yet or may not be read."""
    try:
        return list(
            cluster.log_lines(
                name_of(pod), container=STAGE_CONTAINER, follow=False, tail_lines=lines
            )
        )
    except (Gone, SelfAlignError):
        return []


def _last_progress(lines: list[str]) -> dict[str, Any] | None:
    for line in reversed(lines):
        if '"stage.progress"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            return event
    return None


def _newest_first(cluster: Cluster) -> list[Resource]:
    runs = cluster.list("alignmentruns")
    return sorted(
        runs,
        key=lambda run: (run["metadata"]["creationTimestamp"], name_of(run)),
        reverse=True,
    )


def _attempt_number(job: Resource) -> int:
    number = labels_of(job).get("selfalign.io/attempt", "")
    return int(number) if number.isdigit() else 0


def _subclasses(cls: type[SelfAlignError]) -> list[type[SelfAlignError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]
