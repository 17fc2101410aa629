"""`selfalign controller`, `selfalign start-stage`, and the connection to a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from selfalign.errors import ConfigurationError, Interrupted
from selfalign.pipeline import STAGES

if TYPE_CHECKING:
    from selfalign.run.executors.kubernetes.api import KubernetesCluster

STAGE_NAME = click.Choice([stage.name for stage in STAGES])
_Function = TypeVar("_Function", bound=Callable[..., Any])


def cluster_options(function: _Function) -> _Function:
    """`--namespace`, `--context`, `--kubeconfig`."""
    function = click.option(
        "--kubeconfig",
        default=None,
        metavar="FILE",
        help="How to reach the cluster.  [default: $KUBECONFIG or ~/.kube/config; in a pod, its "
        "service account]",
    )(function)
    function = click.option(
        "--context", default=None, metavar="NAME", help="Context of the kubeconfig."
    )(function)
    return click.option(
        "--namespace",
        "-n",
        default=None,
        metavar="NAME",
        envvar="SELFALIGN_NAMESPACE",
        show_envvar=True,
        help="Where the platform is installed.  [default: the context's namespace]",
    )(function)


def connect_to(
    namespace: str | None, context: str | None, kubeconfig: str | None
) -> KubernetesCluster:
    """Open the connection; the Kubernetes client is imported here and not before."""
    from selfalign.run.executors.kubernetes.api import connect

    return connect(namespace, context=context, kubeconfig=kubeconfig)


def store_of_platform(
    store_url: str | None, namespace: str | None, context: str | None, kubeconfig: str | None
) -> str | None:
    """The store that was named, or that of the platform where a cluster was named; its
    credentials are this person's own."""
    if store_url is not None or not (namespace or context or kubeconfig):
        return store_url
    from selfalign.run.executors.kubernetes.configuration import platform_store

    cluster = connect_to(namespace, context, kubeconfig)
    found = platform_store(cluster)
    if not found:
        raise ConfigurationError(
            f"the platform in namespace {cluster.namespace} has no store configured",
            remedy=f"make deploy CONFIG=resolved.yaml NAMESPACE={cluster.namespace}",
        )
    return found


@click.command("controller")
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
    "--serving",
    type=click.Choice(["vllm", "kserve", "webhook", "none"]),
    default="none",
    show_default=True,
    help="What follows the promoted model: vllm is the Deployment of charts/serving, kserve an "
    "InferenceService, webhook whoever answers at $SELFALIGN_WEBHOOK_URL.",
)
@click.option(
    "--serving-name",
    metavar="NAME",
    default="selfalign-serving",
    show_default=True,
    help="Of the Deployment or InferenceService.",
)
@cluster_options
def controller_command(
    resync_seconds: int,
    metrics_port: int,
    serving: str,
    serving_name: str,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
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
    cluster = connect_to(namespace, context, kubeconfig)
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
    try:
        controller.run()
    finally:
        server.close()


@click.command("start-stage")
@click.argument("stage", type=STAGE_NAME)
@click.option("--run", required=True, metavar="NAME", help="Of which run.")
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Show its log and end with its exit code.",
)
@cluster_options
def start_stage_command(
    stage: str,
    run: str,
    follow: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> int:
    """Start STAGE of a run by hand, as the controller would, and follow it to its exit code.

    The run must exist (`selfalign submit --suspend` makes one that starts nothing by itself) and
    the stage's inputs must be published. A stage that is published already, or is running, is not
    started again.
    """
    from selfalign.cli.logs import follow_job, tell
    from selfalign.run.executors.kubernetes.submit import start_by_hand

    cluster = connect_to(namespace, context, kubeconfig)
    try:
        job = start_by_hand(cluster, run, stage, tell=tell, sleep=time.sleep)
        return follow_job(cluster, job) if job is not None and follow else 0
    except Interrupted:
        tell(f"the Job goes on; to stop it: kubectl delete job NAME -n {cluster.namespace}")
        raise
