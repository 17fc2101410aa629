"""`selfalign submit`: make an AlignmentRun on a cluster."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfalign.cli.options import Place, cluster_options, json_option, print_json
from selfalign.errors import ConfigurationError
from selfalign.inputs import is_stored, push_inputs
from selfalign.load import load_config, override_values
from selfalign.run.record import new_run_id
from selfalign.seeds import load_seeds
from selfalign.store.open import open_store

if TYPE_CHECKING:
    from selfalign.run.executors.kubernetes.api import Cluster

# <CronJob>-<minutes since 1970>-<suffix>
_POD_OF_CRON_JOB = re.compile(r"(.+-\d{8,})-[a-z0-9]{5}")


@click.command("submit")
@click.option(
    "--config",
    "-c",
    "config_path",
    type=click.Path(path_type=Path),
    help="A run configuration; what it names locally is uploaded to its store first. Without it "
    "the run is the one that the platform was installed with.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one value of the configuration. May be repeated.",
)
@click.option("--name", metavar="NAME", help="Of the run.  [default: by time]")
@click.option(
    "--nightly",
    is_flag=True,
    help="Tonight's run, as the CronJob submits it: the platform's configuration, named by time, "
    "refused with exit code 2 and an Event while another nightly run is running.",
)
@click.option(
    "--fresh-seed",
    is_flag=True,
    help="Take today's date (UTC, as YYYYMMDD) as the seed, so that the run explores anew instead "
    "of reusing what an earlier night generated from the same inputs.",
)
@click.option("--suspend", is_flag=True, help="Make it, but start nothing yet (start-stage does).")
@click.option(
    "--max-attempts",
    type=click.IntRange(min=1),
    help="Attempts per stage at failures that may pass.  [default: 3]",
)
@click.option("--queue", metavar="NAME", help="Kueue LocalQueue of its Jobs.")
@click.option("--priority", metavar="NAME", help="PriorityClass of its pods.")
@click.option(
    "--ttl-seconds",
    type=click.IntRange(min=0),
    help="Delete the AlignmentRun (never its artifacts) this long after its end.",
)
@cluster_options
@json_option
def submit_command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    name: str | None,
    nightly: bool,
    fresh_seed: bool,
    suspend: bool,
    max_attempts: int | None,
    queue: str | None,
    priority: str | None,
    ttl_seconds: int | None,
    where: Place,
    as_json: bool,
) -> int:
    """Start a run on a cluster: make an AlignmentRun, which the controller drives to its end.

    What earlier runs have finished under the same inputs is reused. --set and --config win over
    the configuration that the platform and the stages were installed with.
    """
    from selfalign.run.executors.kubernetes.submit import submit, submit_nightly

    if fresh_seed:
        overrides = (f"seed={datetime.now(UTC):%Y%m%d}", *overrides)
    cluster = where.connect()
    spec = {
        "suspend": suspend or None,
        "maxAttempts": max_attempts,
        "queueName": queue,
        "priority": priority,
        "ttlSecondsAfterFinished": ttl_seconds,
    }
    if nightly:
        if config_path is not None or name is not None:
            raise ConfigurationError(
                "--nightly takes the platform's configuration and a name by time",
                remedy="leave --config and --name out, or leave --nightly out",
            )
        run = submit_nightly(cluster, override_values(overrides), spec, submitter=_this_job())
    else:
        config = _configuration(cluster, config_path, overrides)
        run = submit(cluster, name or new_run_id(), config, spec)
    name = run["metadata"]["name"]
    if as_json:
        print_json({"run": name, "namespace": cluster.namespace})
    else:
        click.echo(f"submitted {name} in namespace {cluster.namespace}")
        click.echo(f"next: selfalign status {name} -n {cluster.namespace}")
    return 0


def _configuration(
    cluster: Cluster, path: Path | None, overrides: tuple[str, ...]
) -> dict[str, Any]:
    """What the run says itself; local inputs are uploaded, defaults are left to the platform."""
    if path is None:
        return override_values(overrides)
    from selfalign.run.executors.kubernetes.configuration import platform_store

    loaded = load_config(path, overrides)
    config = loaded.config
    if "store" not in loaded.origins:
        config = config.model_copy(update={"store": platform_store(cluster)})
    if not config.store.startswith("s3://"):
        raise ConfigurationError(
            f"store {config.store!r}: pods cannot reach it",
            remedy="give `store: s3://bucket/prefix` in the file, or install the platform with one",
        )
    if not is_stored(config.seeds.directory):
        load_seeds(config.seeds)
    resolved = push_inputs(config, open_store(config.store))
    values: dict[str, Any] = resolved.model_dump(mode="json", exclude_unset=True)
    return values


def _this_job() -> str:
    """The CronJob's Job whose pod this is; empty in any other pod, which may submit many nights."""
    found = _POD_OF_CRON_JOB.fullmatch(os.environ.get("HOSTNAME", ""))
    return found[1] if found and "KUBERNETES_SERVICE_HOST" in os.environ else ""
