"""`selfalign controller`, and `selfalign cluster ...`: runs on a cluster, seen from a laptop."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable

import click

from selfalign.cli.cluster_logs import logs_command, start_stage_command
from selfalign.cli.cluster_options import cluster_options, connect_to
from selfalign.cli.cluster_status import cluster_status_command
from selfalign.cli.options import json_option, print_json
from selfalign.controller.attempts import observe
from selfalign.controller.cluster import Cluster, Resource, name_of
from selfalign.controller.resources import is_finished, phase_of, status_of
from selfalign.controller.view import exit_code_of, find_run
from selfalign.errors import ConfigurationError, TemporaryError

_WATCH_SECONDS = 300


@click.command("controller", short_help="Drive the AlignmentRuns of a namespace (runs in a pod).")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Runs that are looked at at the same time.",
)
@click.option(
    "--resync-seconds",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Everything is listed anew this often.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Of /healthz, /readyz and /metrics; 0 chooses one.",
)
@click.option(
    "--lease-name",
    default="selfalign-controller",
    show_default=True,
    metavar="NAME",
    help="Lease that replicas compete for; one acts, the others wait.",
)
@cluster_options
def controller_command(
    workers: int,
    resync_seconds: int,
    metrics_port: int,
    lease_name: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Drive the AlignmentRuns of a namespace to their ends.

    Losing it loses nothing: it recovers from the store and the cluster. SIGTERM lets it finish
    what it is doing and hand the lease over.
    """
    from selfalign.controller.health import HealthServer
    from selfalign.controller.lease import LeaseLost
    from selfalign.controller.loop import Controller, Settings
    from selfalign.controller.planner import Planner, open_shared_store
    from selfalign.store.open import open_store

    cluster = connect_to(namespace, context, kubeconfig, connections=workers + 8)
    settings = Settings(workers, resync_seconds, lease_name, _identity())
    in_a_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    planner = Planner(open_shared_store if in_a_pod else open_store)
    controller = Controller(cluster, planner, settings)
    server = HealthServer(metrics_port, controller.metrics, controller.problems, controller.missing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: controller.stop())
    try:
        kept = controller.run()
    finally:
        server.close()
    if not kept:
        raise LeaseLost(
            f"the lease {lease_name} was taken by another replica",
            remedy="nothing: this one starts anew and waits for its turn",
        )


def _identity() -> str:
    # A container that is started anew in its pod goes on at once with the lease it had.
    pod = os.environ.get("SELFALIGN_POD_NAME")
    return pod or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


@click.group("cluster", short_help="Runs on a cluster: status, logs, wait, start one stage.")
def cluster_group() -> None:
    """Runs on a cluster, by kubeconfig; nothing here needs the store."""


@cluster_group.command("wait")
@click.argument("run", required=False)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.IntRange(min=1),
    default=None,
    metavar="SECONDS",
    help="Give up (exit code 75) after this long.  [default: never]",
)
@cluster_options
@json_option
def wait_command(
    run: str | None,
    timeout_seconds: int | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    as_json: bool,
) -> int:
    """Wait until RUN (default: the newest that goes on) has ended.

    Exit code 0 when it succeeded, whatever the verdict; else that of the stage that ended it.
    Ctrl-C stops waiting, not the run.
    """
    cluster = connect_to(namespace, context, kubeconfig)
    name = name_of(find_run(cluster, run))
    return wait_for(cluster, name, timeout_seconds=timeout_seconds, as_json=as_json)


def wait_for(
    cluster: Cluster,
    name: str,
    *,
    timeout_seconds: int | None,
    as_json: bool,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Tell how a run goes until it has ended; its exit code."""
    deadline = None if timeout_seconds is None else clock() + timeout_seconds
    told = ""
    while True:
        left = _WATCH_SECONDS if deadline is None else min(_WATCH_SECONDS, deadline - clock())
        if left <= 0:
            raise TemporaryError(
                f"AlignmentRun {name} has not ended within {timeout_seconds} s; it goes on",
                remedy=f"see why: selfalign cluster status {name}",
            )
        for change in cluster.watch("alignmentruns", max(1, int(left))):
            if change is None or name_of(change.resource) != name:
                continue
            if change.deleted:
                raise _deleted(name)
            run = change.resource
            line = _line(run)
            if line != told and not as_json:
                click.echo(line)
            told = line
            if is_finished(run):
                return _ended(cluster, run, as_json)
        find_run(cluster, name)  # says so when it was deleted between two watches


def _deleted(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"AlignmentRun {name} was deleted while it was waited for",
        remedy="submit a new run: it reuses what is finished",
    )


def _line(run: Resource) -> str:
    status = status_of(run)
    words = [status.get("progress", ""), status.get("stage", ""), phase_of(run)]
    return f"{' '.join(word for word in words if word)}: {status.get('message', '')}".rstrip(": ")


def _ended(cluster: Cluster, run: Resource, as_json: bool) -> int:
    code = exit_code_of(run, observe(run, [], [], ""))
    if as_json:
        status = status_of(run)
        print_json(
            {
                "run": name_of(run),
                "namespace": cluster.namespace,
                "phase": phase_of(run),
                "verdict": status.get("verdict"),
                "message": status.get("message", ""),
                "exit_code": code,
            }
        )
    return code


cluster_group.add_command(cluster_status_command)
cluster_group.add_command(logs_command)
cluster_group.add_command(start_stage_command)
