"""Options of the commands that talk to a cluster, and the connection they open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from selfalign.errors import ConfigurationError

if TYPE_CHECKING:
    from selfalign.controller.kubernetes_api import KubernetesCluster

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
    namespace: str | None, context: str | None, kubeconfig: str | None, *, connections: int = 16
) -> KubernetesCluster:
    """Open the connection; the Kubernetes client is imported here and not before."""
    from selfalign.controller.kubernetes_api import connect

    return connect(namespace, context=context, kubeconfig=kubeconfig, connections=connections)


def store_or_platform_s(
    store_url: str | None, namespace: str | None, context: str | None, kubeconfig: str | None
) -> str | None:
    """The store that was named, or else that of the platform where a cluster was named; its
    credentials are this person's own."""
    if store_url is not None or not (namespace or context or kubeconfig):
        return store_url
    from selfalign.controller.configuration import platform_config

    cluster = connect_to(namespace, context, kubeconfig)
    found = platform_config(cluster).get("store")
    if not found:
        raise ConfigurationError(
            f"the platform in namespace {cluster.namespace} has no store configured",
            remedy=f"make deploy CONFIG=resolved.yaml NAMESPACE={cluster.namespace}",
        )
    return str(found)
