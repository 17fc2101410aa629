"""From a stage's template, a suspended CronJob, to the Job of one attempt. Pure."""

from __future__ import annotations

import copy

from selfalign.controller.cluster import Resource, annotations_of, name_of
from selfalign.controller.names import (
    ATTEMPT_LABEL,
    CONFIG_FILE,
    KEY_LABEL,
    KUEUE_QUEUE_LABEL,
    MANAGED_BY_LABEL,
    MANAGER,
    MAX_PARALLELISM_ANNOTATION,
    RUN_LABEL,
    SPEC_DIGEST_ANNOTATION,
    STAGE_CONTAINER,
    STAGE_LABEL,
    config_name,
    job_name,
)
from selfalign.controller.resources import AlignmentRunSpec
from selfalign.errors import ConfigurationError
from selfalign.pipeline import BY_NAME
from selfalign.records import digest
from selfalign.run.decide import Start


def build_job(
    template: Resource, *, run: Resource, spec: AlignmentRunSpec, start: Start, num_shards: int
) -> Resource:
    """The Job of one attempt. Raises ConfigurationError for a template that is none.

    Args:
        run: the AlignmentRun that owns it.
        num_shards: workers of a sharded stage; ignored for others, whose template says how many
            pods (nodes) they have.
    """
    source = copy.deepcopy(template["spec"]["jobTemplate"])
    job_spec: Resource = source["spec"]
    pod: Resource = job_spec["template"]
    name = job_name(name_of(run), start.stage, start.attempt)
    mine = {
        RUN_LABEL: name_of(run),
        STAGE_LABEL: start.stage,
        ATTEMPT_LABEL: str(start.attempt),
        KEY_LABEL: start.key,
        MANAGED_BY_LABEL: MANAGER,
    }
    labels = {**(source.get("metadata") or {}).get("labels", {}), **mine}
    if spec.queue_name:
        labels[KUEUE_QUEUE_LABEL] = spec.queue_name
    pod.setdefault("metadata", {}).setdefault("labels", {}).update(mine)
    if BY_NAME[start.stage].sharded:
        _shard(job_spec, num_shards, template)
    if spec.priority:
        pod["spec"]["priorityClassName"] = spec.priority
    _use_config(pod["spec"], config_name(name_of(run)), template)
    container = _stage_container(pod["spec"], template)
    _add_arguments(container, name_of(run), start, num_shards)
    _meet_at_pod_zero(pod["spec"], container, name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": run["metadata"]["namespace"],
            "labels": labels,
            "annotations": {SPEC_DIGEST_ANNOTATION: digest(job_spec)[:16]},
            "ownerReferences": [owner_reference(run)],
        },
        "spec": job_spec,
    }


def owner_reference(run: Resource) -> Resource:
    """Deleting the run deletes what it owns; artifacts are in the store and stay."""
    return {
        "apiVersion": run["apiVersion"],
        "kind": run["kind"],
        "name": name_of(run),
        "uid": run["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned_by(resource: Resource, run: Resource) -> bool:
    """Whether it belongs to this very run: by uid, for names are used again."""
    owner = _controller_of(resource)
    return owner is not None and owner.get("uid") == run["metadata"]["uid"]


def is_left_over(resource: Resource, run: Resource) -> bool:
    """Whether it is on its way out: being deleted, or of an earlier run of the same name, which
    is gone, so that the garbage collector is about to delete it."""
    if resource["metadata"].get("deletionTimestamp"):
        return True
    owner = _controller_of(resource)
    return (
        owner is not None
        and (owner.get("kind"), owner.get("name")) == (run["kind"], name_of(run))
        and owner.get("uid") != run["metadata"]["uid"]
    )


def _controller_of(resource: Resource) -> Resource | None:
    owners = resource["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def _shard(job_spec: Resource, num_shards: int, template: Resource) -> None:
    limit = annotations_of(template).get(MAX_PARALLELISM_ANNOTATION, str(num_shards))
    if not limit.isdigit() or int(limit) < 1:
        raise ConfigurationError(
            f"stage template {name_of(template)}: {MAX_PARALLELISM_ANNOTATION} is {limit!r}, "
            "expected a number of at least 1",
            remedy="set maxParallelism in the stage's values and deploy it again",
        )
    job_spec["completionMode"] = "Indexed"
    job_spec["completions"] = num_shards
    job_spec["parallelism"] = min(num_shards, int(limit))
    if job_spec.get("maxFailedIndexes") is not None:
        job_spec["maxFailedIndexes"] = min(job_spec["maxFailedIndexes"], num_shards)


def _use_config(pod_spec: Resource, name: str, template: Resource) -> None:
    for volume in pod_spec.get("volumes") or []:
        if volume["name"] == "config":
            items = [{"key": CONFIG_FILE, "path": CONFIG_FILE}]
            volume["configMap"] = {"name": name, "items": items}
            return
    raise _not_a_template(template, "volume named 'config'")


def _stage_container(pod_spec: Resource, template: Resource) -> Resource:
    for container in pod_spec.get("containers") or []:
        if container["name"] == STAGE_CONTAINER:
            found: Resource = container
            return found
    raise _not_a_template(template, f"container named {STAGE_CONTAINER!r}")


def _not_a_template(template: Resource, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"stage template {name_of(template)} has no {what}",
        remedy="install the stage with charts/stage: make deploy-stage STAGE=...",
    )


def _add_arguments(container: Resource, run: str, start: Start, num_shards: int) -> None:
    arguments = ["--run", run, "--expect-key", start.key]
    if BY_NAME[start.stage].sharded:
        arguments += ["--num-shards", str(num_shards)]
    container["args"] = [*(container.get("args") or []), *arguments]


def _meet_at_pod_zero(pod_spec: Resource, container: Resource, job: str) -> None:
    """Tell pods that train together where: pod 0 of an Indexed Job is `<job>-0.<subdomain>`."""
    if not pod_spec.get("subdomain"):
        return
    name = "SELFALIGN_MASTER_ADDR"
    others = [entry for entry in container.get("env") or [] if entry["name"] != name]
    address = {"name": name, "value": f"{job}-0.{pod_spec['subdomain']}"}
    container["env"] = [*others, address]
