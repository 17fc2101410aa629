"""Attempts as Jobs: a stage's template, a suspended CronJob, becomes the Job of one attempt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError, TemporaryError
from selfalign.load import dump_config
from selfalign.pipeline import BY_NAME
from selfalign.records import digest
from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Conflict,
    Gone,
    Resource,
    Resources,
    annotations_of,
    is_left_over,
    is_owned_by,
    name_of,
    owned_by,
)
from selfalign.run.executors.kubernetes.configuration import LeftOver, stage_template
from selfalign.run.executors.kubernetes.outcome import attempt_of, job_end, pods_of
from selfalign.run.executors.kubernetes.waiting import has_pods, why_waiting
from selfalign.run.plan import Planned
from selfalign.run.record import Attempt
from selfalign.telemetry import log


class ArtifactBusy(TemporaryError):
    """A Job of another run is making the same artifact."""


@dataclass(frozen=True, slots=True)
class JobExecutor:
    """Carries out the attempts of one AlignmentRun.

    Attributes:
        config: the run's pinned configuration.
        moment: the time of this step.
        is_stale: whether the decision to start something is too old to be carried out.
    """

    cluster: Cluster
    run: Resource
    spec: crd.AlignmentRunSpec
    config: RunConfig
    moment: datetime
    is_stale: Callable[[], bool] = lambda: False

    def attempts(self, remembered: Sequence[Attempt]) -> list[Attempt]:
        """Every attempt of the run, from its Jobs and from its status."""
        return attempts_of(self.cluster, self.run, remembered, self.moment)

    def start(self, planned: Planned, number: int) -> None:
        """Create the Job of this attempt, or find that it exists.

        Raises:
            NotDeployed, LeftOver, ArtifactBusy: not yet; nothing was created.
            ConfigurationError: the template is wrong, or the name belongs to something else.
        """
        stage = planned.stage.name
        for job in self.cluster.list("jobs", f"{crd.KEY_LABEL}={planned.key}"):
            if job_end(job) is None and not is_owned_by(job, self.run):
                raise ArtifactBusy(
                    f"{stage}: Job {name_of(job)} of another run is making {planned.key} already",
                    remedy="wait: this run uses the artifact once it is published",
                )
        shards = getattr(self.config, stage).num_shards
        template = stage_template(self.cluster, stage)
        body = build_job(
            template,
            run=self.run,
            spec=self.spec,
            config=self.config,
            stage=stage,
            key=planned.key,
            number=number,
            num_shards=shards,
        )
        name = name_of(body)
        if self.is_stale():
            raise Conflict(f"Job {name}: the decision to start it is outdated")
        try:
            self.cluster.create("jobs", body)
        except Conflict:
            self._adopt(name)
        else:
            log.info("job.created", run=name_of(self.run), job=name, key=planned.key)

    def _adopt(self, name: str) -> None:
        """A Job of this name exists: it is ours if this very run owns it, by uid."""
        try:
            found = self.cluster.get("jobs", name)
        except Gone:
            return  # deleted meanwhile: the attempt stays Pending, the next step starts it
        if is_owned_by(found, self.run):
            log.info("job.adopted", run=name_of(self.run), job=name)
            return
        if is_left_over(found, self.run):
            raise LeftOver(f"Job {name} of an earlier run of this name is being deleted")
        raise ConfigurationError(
            f"Job {name} exists and belongs to something else",
            remedy=f"delete it (kubectl delete job {name}), or give the run another name",
        )


def attempts_of(
    cluster: Cluster, run: Resource, remembered: Sequence[Attempt], moment: datetime
) -> list[Attempt]:
    """What a run's Jobs say, and what its status remembers of Jobs that are gone. Reads only.

    A Job that was seen active and is gone was deleted by somebody: a disruption, free of charge. An
    absent Job never means that the attempt was not started, except where nobody ever saw it.
    """
    jobs, pods = _jobs_and_pods(cluster, run)
    before = {attempt.identity: attempt for attempt in remembered}
    found: dict[tuple[str, str, int], Attempt] = {}
    for job in jobs:
        mine = pods_of(job, pods)
        attempt = attempt_of(job, mine)
        if attempt is None:
            continue
        known = before.get(attempt.identity)
        if known is not None and known.disrupted and not attempt.disrupted:
            attempt = attempt_of(job, mine, disrupted=True) or attempt
        if attempt.condition == "Active":
            attempt = _explain(cluster, attempt, job, mine, moment)
        # The end that was seen first stands: its pods, which said why, may be gone by now.
        seen_before = known is not None and known.condition == attempt.condition == "Failed"
        found[attempt.identity] = known if known and seen_before else attempt
    for attempt in remembered:
        found.setdefault(attempt.identity, _vanished(attempt, moment))
    return sorted(found.values(), key=lambda a: (a.stage, a.number))


def _jobs_and_pods(cluster: Cluster, run: Resource) -> tuple[Resources, Resources]:
    """The run's own Jobs, and the pods where they are needed to explain something."""
    selector = crd.of_run(name_of(run))
    jobs = [job for job in cluster.list("jobs", selector) if is_owned_by(job, run)]
    needed = any((job_end(job) or {}).get("type") != "Complete" for job in jobs)
    return jobs, cluster.list("pods", selector) if needed else []


def _explain(
    cluster: Cluster, attempt: Attempt, job: Resource, pods: Resources, moment: datetime
) -> Attempt:
    events: Resources = []
    if not pods and not has_pods(job) and not job["spec"].get("suspend"):
        uid = job["metadata"]["uid"]
        events = cluster.list("events", fields=f"involvedObject.uid={uid}")
    waiting = why_waiting(job, pods, events, moment)
    if waiting is None:
        return attempt
    return attempt.model_copy(update={"waiting": waiting.reason, "remedy": waiting.remedy})


def _vanished(attempt: Attempt, moment: datetime) -> Attempt:
    if attempt.condition != "Active":
        return attempt
    return attempt.model_copy(
        update={
            "condition": "Failed",
            "cause": "disrupted",
            "message": "its Job was deleted",
            "waiting": "",
            "remedy": None,
            "finished_at": iso(moment),
        }
    )


def build_job(
    template: Resource,
    *,
    run: Resource,
    spec: crd.AlignmentRunSpec,
    config: RunConfig,
    stage: str,
    key: str,
    number: int,
    num_shards: int,
) -> Resource:
    """The Job of one attempt. Pure. Raises ConfigurationError for a template that is none.

    Args:
        run: the AlignmentRun that owns it.
        config: its pinned configuration, which the pods carry.
        num_shards: workers of a sharded stage. The template of any other stage says how many pods
            (nodes) it has.
    """
    source = copy.deepcopy(template["spec"]["jobTemplate"])
    job_spec: Resource = source["spec"]
    pod: Resource = job_spec["template"]
    name = crd.job_name(name_of(run), stage, number)
    mine = {
        crd.RUN_LABEL: name_of(run),
        crd.STAGE_LABEL: stage,
        crd.ATTEMPT_LABEL: str(number),
        crd.KEY_LABEL: key,
        crd.MANAGED_BY_LABEL: crd.MANAGER,
    }
    labels = {**(source.get("metadata") or {}).get("labels", {}), **mine}
    if spec.queue_name:
        labels[crd.KUEUE_QUEUE_LABEL] = spec.queue_name
    pod.setdefault("metadata", {}).setdefault("labels", {}).update(mine)
    if spec.priority:
        pod["spec"]["priorityClassName"] = spec.priority
    arguments = ["--run", name_of(run), "--expect-key", key]
    if BY_NAME[stage].sharded:
        _shard(job_spec, num_shards, template)
        arguments += ["--num-shards", str(num_shards)]
    pod["metadata"].setdefault("annotations", {})[crd.CONFIG_ANNOTATION] = dump_config(config)
    _mount_config(pod["spec"], template)
    container = _stage_container(pod["spec"], template)
    container["args"] = [*(container.get("args") or []), *arguments]
    _meet_at_pod_zero(pod["spec"], container, name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": run["metadata"]["namespace"],
            "labels": labels,
            "annotations": {crd.SPEC_DIGEST_ANNOTATION: digest(job_spec)[:16]},
            "ownerReferences": owned_by(run),
        },
        "spec": job_spec,
    }


def _shard(job_spec: Resource, num_shards: int, template: Resource) -> None:
    limit = annotations_of(template).get(crd.MAX_PARALLELISM_ANNOTATION, str(num_shards))
    if not limit.isdigit() or int(limit) < 1:
        raise ConfigurationError(
            f"stage template {name_of(template)}: {crd.MAX_PARALLELISM_ANNOTATION} is {limit!r}, "
            "expected a number of at least 1",
            remedy="set maxParallelism in the stage's values and deploy it again",
        )
    job_spec["completionMode"] = "Indexed"
    job_spec["completions"] = num_shards
    job_spec["parallelism"] = min(num_shards, int(limit))
    if job_spec.get("maxFailedIndexes") is not None:
        job_spec["maxFailedIndexes"] = min(job_spec["maxFailedIndexes"], num_shards)


def _mount_config(pod_spec: Resource, template: Resource) -> None:
    """The pod's own annotation as a file: nothing that is deleted or edited can change it."""
    field = {"fieldPath": f"metadata.annotations['{crd.CONFIG_ANNOTATION}']"}
    for volume in pod_spec.get("volumes") or []:
        if volume["name"] == "config":
            items = [{"path": crd.CONFIG_FILE, "fieldRef": field}]
            volume.clear()
            volume.update({"name": "config", "downwardAPI": {"items": items}})
            return
    raise _not_a_template(template, "volume named 'config'")


def _stage_container(pod_spec: Resource, template: Resource) -> Resource:
    for container in pod_spec.get("containers") or []:
        if container["name"] == crd.STAGE_CONTAINER:
            found: Resource = container
            return found
    raise _not_a_template(template, f"container named {crd.STAGE_CONTAINER!r}")


def _not_a_template(template: Resource, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"stage template {name_of(template)} has no {what}",
        remedy="install the stage with charts/stage: make deploy-stage STAGE=...",
    )


def _meet_at_pod_zero(pod_spec: Resource, container: Resource, job: str) -> None:
    """Tell pods that train together where: pod 0 of an Indexed Job is `<job>-0.<subdomain>`."""
    if not pod_spec.get("subdomain"):
        return
    name = "SELFALIGN_MASTER_ADDR"
    others = [entry for entry in container.get("env") or [] if entry["name"] != name]
    address = {"name": name, "value": f"{job}-0.{pod_spec['subdomain']}"}
    container["env"] = [*others, address]
