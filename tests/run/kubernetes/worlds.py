"""A platform to test against: templates, a store, a Job controller and a kubelet that obey.

The stages' work is replaced by its effect: a manifest under the key that the Job was told, made by
the same plan that a stage process makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfalign.inputs import push
from selfalign.load import validate_config
from selfalign.pipeline import STAGES
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.configuration import declared_inputs
from selfalign.run.executors.kubernetes.crd import (
    CONFIG_ANNOTATION,
    CONFIG_FILE,
    PLATFORM_CONFIG,
    POLICY_FILE,
    TEMPLATE_LABEL,
    new_run,
)
from selfalign.run.executors.kubernetes.reconcile import Reconciler
from selfalign.run.plan import Blocked, plan_from_store
from selfalign.run.record import Attempt, RunStatus, StageState
from selfalign.seeds import SEED_FILES
from selfalign.stages.approval import Approval, ApprovalRequest, ask
from selfalign.stages.notice import NOTICE_NAME, ChangedAnswer, VerdictNotice
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.manifest import Counts, Manifest, Provenance
from selfalign.store.pointer import Pointer, PromotedModel, move_pointer, read_pointer
from tests.memory_store import MemoryStore

from .memory import MemoryCluster

PROJECT = Path(__file__).resolve().parents[3]
NOTICE = VerdictNotice(
    against="promoted",
    compared=400,
    better=3,
    most_changed=[
        ChangedAnswer(
            item="h1", kind="opinion", change="better", prompt="<!channel> why?", before="No.",
            after="@here \x1b[31m&",
        )
    ],
)  # fmt: skip
START = datetime(2026, 11, 1, 1, 0, tzinfo=UTC)


class DictStore(MemoryStore):
    """A store in memory that remembers what was written, and fails while `failure` says so."""

    def __init__(self) -> None:
        super().__init__(turn=self._fail)
        self.writes: list[str] = []
        self.failure: Exception | None = None

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def write(
        self, key: str, data: bytes, *, if_absent: bool = False, if_version: str | None = None
    ) -> str:
        version = super().write(key, data, if_absent=if_absent, if_version=if_version)
        self.writes.append(key)
        return version


@cache
def pushed_seeds() -> tuple[str, dict[str, bytes]]:
    """The `store:` name of the project's seeds, and the objects behind it."""
    store = MemoryStore()
    name = push(store, "seeds", PROJECT / "seeds", only=SEED_FILES)
    return name, {key: store.read(key) for key in store.list("")}


def nested(depth: int) -> Any:
    """1 in so many mappings."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def platform_values(**changes: Any) -> dict[str, Any]:
    """What the platform is installed with."""
    return {
        "store": "memory",
        "base_model": {"path": "example/base", "revision": "0123abcd"},
        "seeds": {"directory": pushed_seeds()[0]},
        **changes,
    }


def policy_values(**changes: Any) -> dict[str, Any]:
    """What runs may do here."""
    overrides = ["seed", "align", "*.num_shards"]
    return {
        "overrides": overrides,
        "queues": ["night"],
        "priorityClasses": ["low"],
        "maxActiveRuns": 50,
        **changes,
    }


def template(stage: str, **changes: Any) -> Resource:
    """A stage's template as charts/stage renders it, in what matters here."""
    release = f"selfalign-{stage}"
    labels = {"app.kubernetes.io/name": "selfalign-stage", "app.kubernetes.io/managed-by": "Helm"}
    pod = {
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "stage",
                "image": f"selfalign/{stage}:1",
                "command": ["selfalign", stage],
                "args": ["--config", "/etc/selfalign/config.yaml"],
            }
        ],
        "volumes": [{"name": "config", "downwardAPI": {"items": []}}],
        **changes,
    }
    spec = {
        "backoffLimit": 2,
        "completions": 1,
        "activeDeadlineSeconds": 3600,
        "template": {"metadata": {"labels": dict(labels), "annotations": {}}, "spec": pod},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": release, "labels": {**labels, TEMPLATE_LABEL: stage}},
        "spec": {
            "schedule": "0 0 1 1 *",
            "suspend": True,
            "jobTemplate": {"metadata": {"labels": dict(labels)}, "spec": spec},
        },
    }


def config_map(name: str, value: dict[str, Any]) -> Resource:
    """A ConfigMap that holds a configuration."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {CONFIG_FILE: yaml.safe_dump(value)},
    }


def install(
    cluster: Cluster, values: dict[str, Any] | None = None, policy: dict[str, Any] | None = None
) -> None:
    """Install platform and all stages."""
    platform = config_map(PLATFORM_CONFIG, values or platform_values())
    platform["data"][POLICY_FILE] = yaml.safe_dump(policy or policy_values())
    cluster.create("configmaps", platform)
    for stage in STAGES:
        made = template(stage.name)
        section = {"num_shards": 3} if stage.sharded else {}
        annotations = made["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["annotations"]
        annotations[CONFIG_ANNOTATION] = yaml.safe_dump({stage.name: section})
        cluster.create("cronjobs", made)


def full_status(name: str) -> RunStatus:
    """A status in which every field has a value."""
    moment = "2026-11-01T01:00:00Z"
    attempt = Attempt(
        stage="align",
        key="0123",
        number=3,
        condition="Failed",
        cause="temporary",
        exit_code=71,
        message="out of memory",
        remedy="use less",
        waiting="w",
        done=1,
        total=3,
        started_at=moment,
        finished_at=moment,
        disrupted=True,
        gpus=8,
    )
    stage = StageState(
        name="align",
        phase="Failed",
        key="0123",
        digest="ab",
        attempts=2,
        disruptions=1,
        done=7,
        total=9,
        seconds=2.5,
        message="out of memory",
    )
    return RunStatus(
        id=name,
        phase="Failed",
        reason="AttemptsExhausted",
        message="m",
        remedy="r",
        exit_code=71,
        verdict="NotPromoted",
        stage="align",
        progress="2/8",
        started_at=moment,
        completed_at=moment,
        stages=[stage],
        attempts=[attempt],
        notified={"SELFALIGN_NOTIFY_URL_0": "id"},
    )


@dataclass
class World:
    """A namespace with everything installed, and a clock that stands still until it is moved."""

    store: Store = field(default_factory=DictStore)
    now: datetime = START
    platform: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    cluster: MemoryCluster = field(init=False)
    api: Cluster = field(init=False)  # what the controller talks to; a test may wrap it

    def __post_init__(self) -> None:
        self.cluster = MemoryCluster(clock=lambda: self.now, collect=False)
        self.api = self.cluster
        for key, data in pushed_seeds()[1].items():
            self.store.write(key, data)
        install(self.cluster, self.platform, self.policy)
        self.restart()

    def restart(self) -> None:
        """A controller that knows nothing."""
        self.ended: list[Any] = []
        self.reconciler = self.controller(self.api)
        self.reconciler.on_attempt_ended = self.ended.append

    def controller(self, cluster: Cluster) -> Reconciler:
        """A controller of its own."""
        return Reconciler(
            cluster,
            lambda _url: self.store,
            clock=lambda: self.now,
            monotonic=lambda: self.now.timestamp(),
        )

    def submit(
        self, name: str = "toy", *, labels: dict[str, str] | None = None, **spec: Any
    ) -> Resource:
        return self.cluster.create("alignmentruns", new_run(name, "selfalign", spec, labels=labels))

    def step(self, name: str = "toy", *, after: float = 0.0) -> float | None:
        """One step of a run, so many seconds later."""
        self.now += timedelta(seconds=after)
        return self.reconciler.reconcile(name)

    def run(self, name: str = "toy") -> Resource:
        return self.cluster.get("alignmentruns", name)

    def status(self, name: str = "toy") -> Resource:
        return self.run(name).get("status") or {}

    def condition(self, kind: str, name: str = "toy") -> Resource:
        return next(c for c in self.status(name)["conditions"] if c["type"] == kind)

    def stage(self, stage: str, name: str = "toy") -> Resource:
        return next(row for row in self.status(name)["stages"] if row["name"] == stage)

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.cluster.list("jobs"))

    def events(self) -> list[tuple[str, str]]:
        return [(event["reason"], event["message"]) for event in self.cluster.list("events")]

    def finish(self, job: str) -> None:
        """The Job's pods do the stage's work and end well."""
        publish(self.cluster, self.store, job)
        complete(self.cluster, job, self.now)

    def to_the_end(self, name: str = "toy") -> None:
        """Everything goes well until the run has ended."""
        for _ in range(30):
            self.step(name, after=1)
            for job in self.cluster.list("jobs"):
                if not (job.get("status") or {}).get("conditions"):
                    self.finish(job["metadata"]["name"])
            if self.status(name).get("completedAt"):
                return
        raise AssertionError(f"the run has not ended: {self.status(name).get('message')}")


def arguments(job: Resource) -> dict[str, str]:
    """What the stage's process is told."""
    flags = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return dict(zip(flags[::2], flags[1::2], strict=True))


class Refused(Exception):
    """The stage's process ends with this exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def publish(cluster: Cluster, store: Store, job_name: str) -> Manifest | None:
    """Publish what this Job's stage makes, from the configuration that its pods would mount; None
    where `promote` asks for approval instead.

    Raises Refused where the stage's process would end with an error.
    """
    job = cluster.get("jobs", job_name)
    stage = job["metadata"]["labels"]["selfalign.io/stage"]
    text = job["spec"]["template"]["metadata"]["annotations"][CONFIG_ANNOTATION]
    config = validate_config(yaml.safe_load(text), "the mounted configuration")
    inputs = declared_inputs(config, store)
    plan = plan_from_store(config, inputs, store)
    planned = next(p for p in plan if p.stage.name == stage)
    if isinstance(planned, Blocked) or planned.key != arguments(job)["--expect-key"]:
        raise Refused(2, "another key was asked for than is planned here")
    if planned.manifest is not None:
        return planned.manifest
    writer = ArtifactWriter(
        store,
        artifact=planned.stage.writes,
        stage=stage,
        key=planned.key,
        identity=planned.identity,
        parents=planned.parents,
    )
    details: dict[str, Any] = {}
    if stage == "promote":
        evaluation, final = plan[6].manifest, plan[5].manifest
        approval = None
        if config.promote.approval == "manual":
            approval = _ask(store, final, evaluation, planned.key)
            if approval is None:
                return None
        details = {"promoted": True, "decision": "promoted", "reasons": ["better than the base"]}
        if approval is not None and not approval.approved:
            details = {"promoted": False, "decision": "rejected", "reasons": [str(approval)]}
        else:
            _promote(store, final, evaluation, planned.key)
    when = "2026-11-01T01:00:00+00:00"
    return writer.publish(
        shards=[],
        files=[
            writer.add_bytes(planned.key.encode(), "content"),
            *([writer.add_bytes(NOTICE.to_bytes(), NOTICE_NAME)] if stage == "promote" else []),
        ],
        counts=Counts(read=1, kept=1),
        details=details,
        provenance=Provenance(started_at=when, finished_at=when),
    )


def _ask(
    store: Store, final: Manifest | None, evaluation: Manifest | None, key: str
) -> Approval | None:
    assert final is not None
    assert evaluation is not None
    request = ApprovalRequest(
        promotion=key,
        run=None,
        model=final.digest,
        against=evaluation.identity["promoted"],
        asked_at="now",
        verdict={},
        notice=NOTICE,
    )
    return ask(store, request)


def _promote(store: Store, final: Manifest | None, evaluation: Manifest | None, key: str) -> None:
    assert evaluation is not None
    model = PromotedModel(artifact=final.artifact, key=final.key, digest=final.digest)
    current = read_pointer(store)
    if current is not None and current.pointer.model == model:
        return
    previous = None if current is None else current.pointer.model
    if evaluation.identity["promoted"] != (None if previous is None else previous.digest):
        raise Refused(75, "another run promoted meanwhile")
    pointer = Pointer(model=model, previous=previous, promotion=key, run=None, moved_at="now")
    try:
        move_pointer(store, pointer, current)
    except PreconditionFailed:
        raise Refused(75, "another run promoted meanwhile") from None


def complete(cluster: MemoryCluster, job: str, now: datetime) -> None:
    """The Job controller says Complete."""
    _conclude(cluster, job, now, "Complete", "CompletionsReached", "")


def fail(
    cluster: MemoryCluster, job: str, now: datetime, *, code: int = 1, message: str = "",
    reason: str = "BackoffLimitExceeded", pods: bool = True,
) -> None:  # fmt: skip
    """A pod of the Job ends with this exit code and message, and the Job with it."""
    if pods:
        ended_pod(cluster, job, now, code=code, message=message)
    said = f"Container stage for pod selfalign/{job}-x failed with exit code {code} matching"
    _conclude(cluster, job, now, "Failed", reason, said if reason == "PodFailurePolicy" else "")


def ended_pod(
    cluster: MemoryCluster, job: str, now: datetime, *, code: int = 1, message: str = "",
    suffix: str = "x", disrupted: bool = False, index: str | None = None, reason: str = "Error",
) -> Resource:  # fmt: skip
    """A pod of the Job that has ended."""
    owner = cluster.get("jobs", job)
    labels = owner["spec"]["template"]["metadata"]["labels"]
    metadata: Resource = {
        "name": f"{job}-{suffix}-{owner['metadata']['uid'][:5]}",
        "labels": {**labels, "batch.kubernetes.io/job-name": job},
        "ownerReferences": [{"uid": owner["metadata"]["uid"], "controller": True}],
    }
    if index is not None:
        metadata["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
    moment = now.isoformat().replace("+00:00", "Z")
    terminated = {"exitCode": code, "message": message, "finishedAt": moment, "reason": reason}
    conditions = [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []
    return cluster.create(
        "pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "status": {
                "phase": "Failed" if code else "Succeeded",
                "conditions": conditions,
                "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}],
            },
        },
    )


def _conclude(
    cluster: MemoryCluster, job: str, now: datetime, kind: str, reason: str, message: str
) -> None:
    moment = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    condition = {
        "type": kind, "status": "True", "reason": reason, "message": message,
        "lastTransitionTime": moment,
    }  # fmt: skip
    cluster.set_status("jobs", job, {"conditions": [condition], "startTime": moment})
