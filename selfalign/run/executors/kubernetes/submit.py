"""Make an AlignmentRun, by a person or every night, and start one stage of it by hand.

A nightly run is refused while another one is running. A submission that was killed after it made
its run, and is tried again, finds its own run and is content.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from selfalign.errors import ConfigurationError, DataError, TemporaryError
from selfalign.load import deep_merge, validate_config
from selfalign.pipeline import BY_NAME
from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Conflict,
    Resource,
    annotations_of,
    is_terminating,
    name_of,
)
from selfalign.run.executors.kubernetes.configuration import (
    check_allowed,
    check_limits,
    config_in,
    pinned_config,
    policy_in,
    read_platform,
)
from selfalign.run.executors.kubernetes.job import JobExecutor, attempts_of
from selfalign.run.executors.kubernetes.logs import find_run
from selfalign.run.executors.kubernetes.reconcile import emit, overlap, running_nightly
from selfalign.run.plan import Planned
from selfalign.run.record import check_run_name

_ACCEPTED_WITHIN_SECONDS = 60


def submit(cluster: Cluster, name: str, config: Resource, spec: Resource) -> Resource:
    """Make a run. Raises ConfigurationError when the name is taken.

    Args:
        spec: of the AlignmentRun, beside its configuration; None leaves a field to its default.
    """
    try:
        return _create(cluster, name, config, spec)
    except Conflict:
        raise ConfigurationError(
            f"an AlignmentRun {name!r} exists in namespace {cluster.namespace}",
            remedy="give the run another name with --name, or leave it out: a new run reuses "
            "what an earlier one finished",
        ) from None


def submit_nightly(
    cluster: Cluster, config: Resource, spec: Resource, *, submitter: str = ""
) -> Resource:
    """Make tonight's run, or find the one that an earlier try of this submitter made.

    Raises NightlyOverlap while another nightly run is running.

    Args:
        submitter: what makes it; the same for each try of one nightly Job, else empty.
    """
    for run in cluster.list(crd.PLURAL, crd.NIGHTLY_LABEL):
        if submitter and annotations_of(run).get(crd.SUBMITTED_BY_ANNOTATION) == submitter:
            return run
    moment = datetime.now(UTC)
    name = f"nightly-{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    running = running_nightly(cluster)
    if running is not None:
        error = overlap(name_of(running), name)
        emit(cluster, running, "NightlyRefused", error.message, True, iso(moment))
        raise error
    mark = {crd.SUBMITTED_BY_ANNOTATION: submitter} if submitter else None
    return _create(
        cluster, name, config, spec, labels={crd.NIGHTLY_LABEL: "true"}, annotations=mark
    )


def _create(
    cluster: Cluster, name: str, config: Resource, spec: Resource, **metadata: Any
) -> Resource:
    check_run_name(name)
    platform = read_platform(cluster)
    own = config_in(platform)
    # The stages' own sections are merged when the run starts.
    merged = validate_config(deep_merge(own, config), "the run's configuration")
    spec = {key: value for key, value in spec.items() if value is not None}
    if config:
        spec["config"] = config
    body = crd.new_run(name, cluster.namespace, spec, **metadata)
    parsed, policy = crd.parse_spec(body), policy_in(platform)
    check_allowed(parsed, policy, own)
    check_limits(parsed, policy, merged)
    return cluster.create(crd.PLURAL, body)


def start_by_hand(
    cluster: Cluster,
    run_name: str,
    stage: str,
    *,
    tell: Callable[[str], None],
    sleep: Callable[[float], None],
) -> str | None:
    """Start a stage as the controller would; the name of its Job, or None when nothing is to do.

    The Job carries the same labels and owner, so the controller counts it as an attempt of the run.

    Raises:
        ConfigurationError: no such run, or it is terminating.
        DataError: what the stage reads is not published.
        TemporaryError: the controller has not accepted the run, or starts the stage just now.
    """
    run = _accepted(cluster, run_name, sleep)
    status = crd.status_of(run)
    state = next(state for state in status.stages if state.name == stage)
    if state.phase in ("Done", "Reused"):
        tell(f"{stage}: published already as {state.key}; nothing to do")
        return None
    if state.key is None:
        raise DataError(
            f"{stage} of run {run_name}: what it reads is not published yet",
            remedy="start the stages before it first, or let the run go on by itself",
        )
    now = datetime.now(UTC)
    of_stage = [a for a in attempts_of(cluster, run, status.attempts, now) if a.stage == stage]
    for attempt in of_stage:
        if attempt.key == state.key and attempt.condition == "Active":
            name = crd.job_name(run_name, stage, attempt.number)
            tell(f"{stage}: Job {name} is running already")
            return name
    pending = [a.number for a in of_stage if a.key == state.key and a.condition == "Pending"]
    number = max(pending or [1 + max((attempt.number for attempt in of_stage), default=0)])
    spec = crd.parse_spec(run)
    config = pinned_config(cluster, run, spec)
    planned = Planned(BY_NAME[stage], state.key, {}, {}, None)
    JobExecutor(cluster, run, spec, config, now).start(planned, number)
    name = crd.job_name(run_name, stage, number)
    tell(f"{stage}: started Job {name}")
    return name


def _accepted(cluster: Cluster, name: str, sleep: Callable[[float], None]) -> Resource:
    """The run, once the controller has planned it."""
    for _ in range(_ACCEPTED_WITHIN_SECONDS):
        run = find_run(cluster, name)
        status = crd.status_of(run)
        if is_terminating(run):
            raise ConfigurationError(
                f"AlignmentRun {name} is being deleted", remedy="submit a new run"
            )
        if status.stages:
            return run
        if status.phase == "Failed":
            raise ConfigurationError(
                f"AlignmentRun {name} has failed: {status.message}",
                remedy=status.remedy or "correct it and submit a new run",
            )
        sleep(1.0)
    raise TemporaryError(
        f"AlignmentRun {name} was not accepted within {_ACCEPTED_WITHIN_SECONDS} s: "
        f"{status.message or 'the controller has not seen it'}",
        remedy=f"see that it runs: kubectl get deployment selfalign-controller -n "
        f"{cluster.namespace}",
    )
