"""Start one stage of a run by hand, as the controller would.

The Job carries the same labels and owner, so the controller counts it as an attempt of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from selfalign.controller.attempts import next_number, observe
from selfalign.controller.cluster import Cluster, Conflict, Resource, is_going, name_of
from selfalign.controller.configuration import pinned_config, stage_template
from selfalign.controller.job import build_job
from selfalign.controller.names import job_name
from selfalign.controller.observe import look_at
from selfalign.controller.resources import is_true, parse_spec, status_of
from selfalign.controller.view import find_run
from selfalign.errors import ConfigurationError, DataError, TemporaryError
from selfalign.run.decide import Start

_ACCEPTED_WITHIN_SECONDS = 60


def start_by_hand(
    cluster: Cluster,
    run_name: str,
    stage: str,
    *,
    tell: Callable[[str], None],
    sleep: Callable[[float], None],
) -> str | None:
    """Start a stage; the name of its Job, or None when there is nothing to do.

    Raises:
        ConfigurationError: no such run, or it is on its way out.
        DataError: what the stage reads is not published.
        TemporaryError: the controller has not accepted the run, or the number was just taken.
    """
    run = _accepted(cluster, run_name, sleep)
    row = next(row for row in status_of(run)["stages"] if row["name"] == stage)
    if row["phase"] in ("Done", "Reused"):
        tell(f"{stage}: published already as {row['key']}; nothing to do")
        return None
    if "key" not in row:
        raise DataError(
            f"{stage} of run {run_name}: what it reads is not published yet",
            remedy="start the stages before it first, or let the run go on by itself",
        )
    look = look_at(cluster, run, datetime.now(UTC))
    attempts = observe(run, look.jobs, look.pods, "")
    for seen in attempts:
        attempt = seen.attempt
        if (attempt.stage, attempt.key, attempt.condition) == (stage, row["key"], "Active"):
            name = job_name(run_name, stage, attempt.number)
            tell(f"{stage}: Job {name} is at it already")
            return name
    return _start(cluster, run, Start(stage, row["key"], next_number(stage, attempts)), tell)


def _start(cluster: Cluster, run: Resource, start: Start, tell: Callable[[str], None]) -> str:
    spec = parse_spec(run)
    config = pinned_config(cluster, run, spec)
    body = build_job(
        stage_template(cluster, start.stage),
        run=run,
        spec=spec,
        start=start,
        num_shards=getattr(config, start.stage).num_shards,
    )
    try:
        cluster.create("jobs", body)
    except Conflict as error:
        raise TemporaryError(
            f"Job {name_of(body)} was made by the controller at the same moment",
            remedy=f"follow it: selfalign cluster logs {start.stage} --run {name_of(run)} --follow",
        ) from error
    tell(f"{start.stage}: started Job {name_of(body)}")
    return name_of(body)


def _accepted(cluster: Cluster, name: str, sleep: Callable[[float], None]) -> Resource:
    """The run, once the controller has planned it."""
    for _ in range(_ACCEPTED_WITHIN_SECONDS):
        run = find_run(cluster, name)
        if is_going(run):
            raise ConfigurationError(
                f"AlignmentRun {name} is being deleted", remedy="submit a new run"
            )
        if status_of(run).get("stages"):
            return run
        if is_true(run, "Failed"):
            raise ConfigurationError(
                f"AlignmentRun {name} has failed: {status_of(run).get('message', '')}",
                remedy="put it right and submit a new run",
            )
        sleep(1.0)
    raise TemporaryError(
        f"AlignmentRun {name} was not accepted within {_ACCEPTED_WITHIN_SECONDS} s: "
        f"{status_of(run).get('message') or 'the controller has not seen it'}",
        remedy=f"see that it runs: kubectl get deployment selfalign-controller -n "
        f"{cluster.namespace}",
    )
