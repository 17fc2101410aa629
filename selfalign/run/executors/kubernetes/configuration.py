"""A run's configuration on a cluster: what it may set, how it is merged, and where it is pinned.

Platform, then each stage's own section, then the run's overrides as far as the platform's policy
allows them. The result is pinned when the run is first seen, in a ControllerRevision, whose data
nobody can edit, and each Job carries it: what is deployed or edited later counts for later runs.

The controller reads no file that a run or a bucket names. Inputs are `store:` names, whose digests
stand in their manifests.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from selfalign.config import BaseModelConfig, RunConfig
from selfalign.errors import ConfigurationError, TemporaryError
from selfalign.identity import DATA_FIELDS, Inputs, data_of, default_sha256, is_default
from selfalign.inputs import read_input, revision_of, unstored
from selfalign.load import deep_merge, dump_config, read_yaml, validate_config, value_at
from selfalign.pipeline import STAGES
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Conflict,
    Gone,
    Resource,
    annotations_of,
    is_left_over,
    is_owned_by,
    labels_of,
    name_of,
    owned_by,
)
from selfalign.store.base import Store

_WIDEN = "ask the platform's administrator to allow it: `runs` in the values of charts/selfalign"
_MAX_BYTES = 200 * 1024  # all annotations of a pod: 256 KiB
_MAX_DEPTH = 20  # of spec.config; a RunConfig is 5 deep
_WHERE = "the run's configuration"


class NotDeployed(TemporaryError):
    """A stage's template is missing. The run waits, because a template is missing for a moment
    whenever a release is installed anew."""


class LeftOver(TemporaryError):
    """An object of an earlier run of the same name is still being deleted."""


class Policy(BaseModel):
    """What the platform's administrator allows runs (`runs` in the values of charts/selfalign).

    Attributes:
        overrides: dotted paths of the configuration that a run may set; `*` stands for one part,
            and a path allows everything below it.
        base_models: further values of base_model.path that a run may choose.
        priority_classes: PriorityClasses that a run may name.
        queues: Kueue LocalQueues that a run may name.
        max_active_runs: runs at work at once; the others wait.
        max_shards: of any stage.
        limits: dotted path, `*` as above -> the largest number that a run may set there.
        max_config_bytes: of spec.config.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    overrides: list[str] = Field(default_factory=lambda: ["seed"])
    base_models: list[str] = Field(default_factory=list)
    priority_classes: list[str] = Field(default_factory=list)
    queues: list[str] = Field(default_factory=list)
    max_active_runs: int = Field(4, ge=1)
    max_shards: int = Field(64, ge=1)
    limits: dict[str, float] = Field(default_factory=dict)
    max_config_bytes: int = Field(65_536, ge=1)


def read_platform(cluster: Cluster) -> Resource:
    """The ConfigMap that the platform was installed with.

    Raises ConfigurationError where it is not installed.
    """
    try:
        return cluster.get("configmaps", crd.PLATFORM_CONFIG)
    except Gone:
        raise ConfigurationError(
            f"ConfigMap {crd.PLATFORM_CONFIG} is missing in namespace {cluster.namespace}: the "
            "platform is not installed there",
            remedy=f"make deploy NAMESPACE={cluster.namespace}",
        ) from None


def policy_in(platform: Resource) -> Policy:
    """What the platform allows runs. Raises ConfigurationError where that is wrong."""
    try:
        return Policy.model_validate(_file_of(platform, crd.POLICY_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"ConfigMap {crd.PLATFORM_CONFIG}: {crd.POLICY_FILE}: {where}: {first['msg']}",
            remedy="correct `runs` in the platform's values and run make deploy",
        ) from error


def check_allowed(spec: crd.AlignmentRunSpec, policy: Policy, platform: dict[str, Any]) -> None:
    """Refuse what the policy does not allow. Raises ConfigurationError naming the field.

    Args:
        platform: the platform's configuration; a run may repeat its values.
    """
    for field, value, allowed in (
        ("priority", spec.priority, policy.priority_classes),
        ("queueName", spec.queue_name, policy.queues),
    ):
        if value is not None and value not in allowed:
            known = ", ".join(allowed) or "none"
            raise ConfigurationError(
                f"spec.{field}: {value[:100]!r} is not allowed; allowed are: {known}", remedy=_WIDEN
            )
    leaves = _leaves(spec.config)
    size = sum(len(path) + len(str(value)) for path, value in leaves)
    if size > policy.max_config_bytes:
        raise ConfigurationError(
            f"spec.config holds {size} bytes, expected at most {policy.max_config_bytes}",
            remedy="name large inputs by store: names instead (selfalign inputs push)",
        )
    for path, value in leaves:
        if path == "base_model.path" and value in policy.base_models:
            continue
        never = _is_the_platforms(path)
        if never or not any(_matches(path, pattern) for pattern in policy.overrides):
            if _without_nulls(value_at(platform, path.split("."))) == _without_nulls(value):
                continue
            raise ConfigurationError(
                f"spec.config.{path[:200]}: a run may not set this here",
                remedy="only the platform's configuration says it" if never else _WIDEN,
            )


def check_limits(spec: crd.AlignmentRunSpec, policy: Policy, config: RunConfig) -> None:
    """Refuse numbers above the policy's limits. Raises ConfigurationError naming the field.

    Args:
        config: what the run's configuration came to: "9" in a spec is the number 9 in it.
    """
    written = config.model_dump(mode="json")
    for path, _ in _leaves(spec.config):
        value = value_at(written, path.split("."))
        for pattern, limit in policy.limits.items():
            if isinstance(value, int | float) and value > limit and _matches(path, pattern):
                raise ConfigurationError(
                    f"spec.config.{path[:200]} is {str(value)[:50]}, expected at most {limit:.15g}",
                    remedy=f"ask for less, or {_WIDEN}",
                )


def platform_store(cluster: Cluster) -> str:
    """URL of the platform's store; empty where its configuration names none."""
    return str(config_in(read_platform(cluster)).get("store") or "")


def config_in(platform: Resource) -> dict[str, Any]:
    """The platform's own configuration. Raises ConfigurationError where it is no mapping."""
    return _file_of(platform, crd.CONFIG_FILE)


def pinned_config(cluster: Cluster, run: Resource, spec: crd.AlignmentRunSpec) -> RunConfig:
    """The configuration that this run was first seen with; pins it the first time.

    Raises:
        ConfigurationError: it is wrong or not allowed, or another object has that name.
        NotDeployed, LeftOver: it cannot be pinned yet.
    """
    name = crd.config_name(name_of(run))
    try:
        found = cluster.get("controllerrevisions", name)
    except Gone:
        found = _pin(cluster, run, merged_config(cluster, spec))
    where = f"ControllerRevision {name}"
    if is_owned_by(found, run):
        return validate_config(_parse((found.get("data") or {}).get(crd.CONFIG_FILE), where), where)
    if is_left_over(found, run):
        raise LeftOver(f"{where} of an earlier run of this name is being deleted")
    raise ConfigurationError(
        f"{where} exists and belongs to something else",
        remedy=f"delete it (kubectl delete controllerrevision {name}), or name the run otherwise",
    )


def merged_config(cluster: Cluster, spec: crd.AlignmentRunSpec) -> RunConfig:
    """Check against the policy, merge and validate. Raises ConfigurationError, NotDeployed."""
    platform = read_platform(cluster)
    policy, raw = policy_in(platform), config_in(platform)
    check_allowed(spec, policy, raw)
    for stage, template in stage_templates(cluster).items():
        pod = {"metadata": {}, **template["spec"]["jobTemplate"]["spec"]["template"]}
        own = _parse(annotations_of(pod).get(crd.CONFIG_ANNOTATION), f"CronJob {name_of(template)}")
        if own.get(stage):
            raw = deep_merge(raw, {stage: own[stage]})
    config = validate_config(deep_merge(raw, spec.config), _WHERE)
    check_limits(spec, policy, config)
    for row in STAGES:
        shards = getattr(config, row.name).num_shards
        limit = policy.max_shards if row.sharded else 1
        if shards > limit:
            why = "" if row.sharded else f", because {row.name} cannot be sharded"
            raise ConfigurationError(
                f"{_WHERE}: {row.name}.num_shards is {shards}, expected at most {limit}{why}",
                remedy=f"set {row.name}.num_shards to {limit} or less",
            )
    check_inputs(config)
    return config


def check_inputs(config: RunConfig) -> None:
    """Refuse inputs that are not in the store, before anything is read."""
    for name, path in unstored(config).items():
        raise ConfigurationError(
            f"{_WHERE}: {name}: {path[:200]!r} is no store: name, and pods share no directory",
            remedy="upload it (selfalign inputs push) and use the store: name that it prints; a "
            "model that is mounted or on the Hub needs its revision",
        )


def declared_inputs(config: RunConfig, store: Store) -> Inputs:
    """The digests of a run's inputs, read from their manifests alone."""
    seeds = read_input(store, str(config.seeds.directory))
    judge = config.evaluate.judge
    return Inputs(
        seeds={entry.name.removeprefix("files/"): entry.sha256 for entry in seeds.files},
        base_model=_revision(config.base_model),
        data={
            field: default_sha256()
            if is_default(field, path)
            else read_input(store, str(path)).digest
            for field in DATA_FIELDS
            if (path := data_of(config.evaluate, field)) is not None
        },
        judge=_revision(judge.model) if judge else None,
    )


def _revision(model: BaseModelConfig) -> str:
    return model.revision or revision_of(model.path)


def stage_templates(cluster: Cluster) -> dict[str, Resource]:
    """Every stage's template. Raises NotDeployed when one is missing or there are two."""
    templates: dict[str, list[Resource]] = {stage.name: [] for stage in STAGES}
    for found in cluster.list("cronjobs", crd.TEMPLATE_LABEL):
        templates.get(labels_of(found)[crd.TEMPLATE_LABEL], []).append(found)
    return {stage: _only(cluster, stage, found) for stage, found in templates.items()}


def stage_template(cluster: Cluster, stage: str) -> Resource:
    """A stage's template. Raises NotDeployed."""
    return _only(cluster, stage, cluster.list("cronjobs", f"{crd.TEMPLATE_LABEL}={stage}"))


def _only(cluster: Cluster, stage: str, found: list[Resource]) -> Resource:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(name_of(template) for template in found)
        raise NotDeployed(
            f"stage {stage} is deployed more than once: CronJobs {names}",
            remedy="uninstall all but one of these releases",
        )
    raise NotDeployed(
        f"stage {stage} is not deployed in namespace {cluster.namespace}",
        remedy=f"make deploy-stage STAGE={stage} NAMESPACE={cluster.namespace}; the run then goes "
        "on by itself",
    )


def _pin(cluster: Cluster, run: Resource, config: RunConfig) -> Resource:
    name, text = crd.config_name(name_of(run)), dump_config(config)
    if len(text.encode()) > _MAX_BYTES:
        raise ConfigurationError(
            f"{_WHERE} has {len(text.encode()):,} bytes, expected at most {_MAX_BYTES:,}: a pod "
            "carries it as an annotation",
            remedy="shorten it",
        )
    body = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": run["metadata"]["namespace"],
            "labels": {crd.RUN_LABEL: name_of(run), crd.MANAGED_BY_LABEL: crd.MANAGER},
            "ownerReferences": owned_by(run),
        },
        "revision": 1,
        "data": {crd.CONFIG_FILE: text},
    }
    try:
        return cluster.create("controllerrevisions", body)
    except Conflict:
        pass
    try:
        return cluster.get("controllerrevisions", name)
    except Gone:
        raise LeftOver(
            f"ControllerRevision {name} was deleted while the run was starting"
        ) from None


def _file_of(config_map: Resource, file: str) -> dict[str, Any]:
    """A file of a ConfigMap. Raises ConfigurationError where it is no mapping."""
    text = (config_map.get("data") or {}).get(file)
    return _parse(text, f"ConfigMap {name_of(config_map)}: {file}")


def _parse(text: str | None, where: str) -> dict[str, Any]:
    remedy = "correct the values it was installed with, and deploy again"
    try:
        value = read_yaml(text or "{}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not valid YAML", remedy=remedy) from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} is not a mapping", remedy=remedy)
    return value


def _leaves(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """Dotted paths and values; a list is one value, and so is an empty mapping, which in the place
    of null makes a section of defaults. Iterative, because a spec may be nested thousands deep,
    which is refused here."""
    leaves: list[tuple[str, Any]] = []
    open_nodes: list[tuple[str, Any, int, bool]] = [("", config, 0, False)]
    while open_nodes:
        path, value, depth, in_list = open_nodes.pop()
        if depth > _MAX_DEPTH:
            raise ConfigurationError(
                f"spec.config.{path[:200]}: nested more than {_MAX_DEPTH} deep",
                remedy="see `selfalign config --schema` for what a configuration holds",
            )
        below = in_list or isinstance(value, list)
        if isinstance(value, dict):
            names = {f"{path}.{name}" if path else str(name): v for name, v in value.items()}
            open_nodes += [(name, child, depth + 1, below) for name, child in names.items()]
        elif isinstance(value, list):
            open_nodes += [(path, child, depth + 1, below) for child in value]
        # a section of a run has no null in whose place an empty one could come
        if not in_list and path and not (isinstance(value, dict) and (value or "." not in path)):
            leaves.append((path, value))
    return leaves


def _is_the_platforms(path: str) -> bool:
    """Whether no policy opens the path: it says where an engine sends prompts and the key, who
    judges or approves a model, which Python its tasks run, or whom the controller sends what."""
    parts = path.split(".")
    return (
        ("engine", "server") in pairwise(parts)
        or parts[:2] in (["evaluate", "judge"], ["promote", "approval"])
        or parts[:3] == ["evaluate", "harness", "include_path"]
        or parts[0] == "notify"
    )


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(
        want in ("*", part) for part, want in zip(parts, wanted, strict=False)
    )


def _without_nulls(value: Any) -> Any:
    """A value whose objects leave out what is null: the file that `inputs push` writes spells out
    every field of a rule, a run only what it sets."""
    if isinstance(value, dict):
        return {name: _without_nulls(v) for name, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
