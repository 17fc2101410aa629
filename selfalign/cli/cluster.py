"""`selfalign controller` and `selfalign start-stage`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import click

from selfalign.cli.options import Place, cluster_options
from selfalign.errors import Interrupted
from selfalign.pipeline import STAGES

STAGE_NAME = click.Choice([stage.name for stage in STAGES])


@click.command("controller")
@click.option(
    "--resync-seconds",
    type=click.IntRange(min=1),
    default=300,
    help="Everything is listed anew this often.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=8080,
    help="Of /healthz, /readyz and /metrics; 0 chooses one.",
)
@click.option(
    "--serving",
    type=click.Choice(["vllm", "kserve", "webhook", "none"]),
    default="none",
    help="What follows the promoted model: vllm is the Deployment of charts/serving, kserve an "
    "InferenceService, webhook whoever answers at $SELFALIGN_WEBHOOK_URL.",
)
@click.option(
    "--serving-name",
    metavar="NAME",
    default="selfalign-serving",
    help="Of the Deployment or InferenceService.",
)
@cluster_options
def controller_command(
    resync_seconds: int, metrics_port: int, serving: str, serving_name: str, where: Place
) -> None:
    """Drive the AlignmentRuns of a namespace to their ends.

    Losing it loses nothing: it recovers from the store and the cluster. SIGTERM lets it finish the
    step at hand.
    """
    from selfalign.run.executors.kubernetes.controller import Controller, open_shared_store
    from selfalign.run.executors.kubernetes.deployment import DeploymentTarget
    from selfalign.run.executors.kubernetes.kserve import InferenceServiceTarget
    from selfalign.run.executors.kubernetes.server import Server
    from selfalign.run.executors.kubernetes.serving import Target
    from selfalign.run.executors.kubernetes.webhook import WebhookTarget
    from selfalign.store.open import open_store

    in_a_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    cluster = where.connect()
    targets: dict[str, Callable[[], Target]] = {
        "vllm": lambda: DeploymentTarget(cluster, serving_name),
        "kserve": lambda: InferenceServiceTarget(cluster, serving_name),
        "webhook": WebhookTarget,
    }
    controller = Controller(
        cluster,
        open_shared_store if in_a_pod else open_store,
        resync_seconds=resync_seconds,
        serving=None if serving == "none" else targets[serving](),
    )
    server = Server(metrics_port, controller.metrics, controller.problems, controller.missing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: controller.stop())
    # The API server accepts objects nested 10,000 deep, and one such run must not end every watch.
    # Both hold for the whole process, so the command sets them and not the controller.
    sys.setrecursionlimit(50_000)
    threading.stack_size(64 * 1024 * 1024)
    try:
        controller.run()
    finally:
        server.close()


@click.command("start-stage")
@click.argument("stage", type=STAGE_NAME)
@click.option("--run", required=True, metavar="NAME", help="Of which run.")
@click.option("--follow/--no-follow", default=True, help="Show its log and end with its exit code.")
@cluster_options
def start_stage_command(stage: str, run: str, follow: bool, where: Place) -> int:
    """Start STAGE of a run by hand, as the controller would, and follow it to its exit code.

    The run must exist (`selfalign submit --suspend` makes one that starts nothing by itself) and
    the stage's inputs must be published. A stage that is published already, or is running, is not
    started again.
    """
    from selfalign.cli.logs import follow_job, tell
    from selfalign.run.executors.kubernetes.submit import start_by_hand

    cluster = where.connect()
    try:
        job = start_by_hand(cluster, run, stage, tell=tell, sleep=time.sleep)
        return follow_job(cluster, job) if job is not None and follow else 0
    except Interrupted:
        tell(f"the Job goes on; to stop it: kubectl delete job NAME -n {cluster.namespace}")
        raise
