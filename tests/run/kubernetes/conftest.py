"""Clusters: in memory, behind HTTP, and a real API server where KUBECONFIG points at one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from selfalign.run.executors.kubernetes.api import Cluster, connect

from .api_server import ApiServer
from .memory import MemoryCluster

PROJECT = Path(__file__).resolve().parents[3]
CRD = PROJECT / "charts/selfalign/files/alignmentruns.selfalign.io.yaml"


@pytest.fixture(autouse=True)
def _no_cluster_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "SELFALIGN_NAMESPACE", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    server = ApiServer(MemoryCluster())
    yield server
    server.close()


@pytest.fixture
def http_cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    kubeconfig = api_server.kubeconfig(tmp_path / "kubeconfig")
    return connect(kubeconfig=str(kubeconfig))


@pytest.fixture(scope="session")
def real_crd() -> str:
    """The CRD, installed on the API server that KUBECONFIG points at; the kubeconfig's path."""
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig:
        pytest.skip("KUBECONFIG is not set: needs an API server that it may write to")
    from kubernetes import client, config

    api = client.ApiextensionsV1Api(config.new_client_from_config(kubeconfig))
    body = yaml.safe_load(CRD.read_text())
    name = body["metadata"]["name"]
    try:
        api.create_custom_resource_definition(body)
    except client.ApiException as error:
        if error.status != 409:
            raise
    for _ in range(100):
        found = api.read_custom_resource_definition(name)
        if any(
            c.type == "Established" and c.status == "True" for c in found.status.conditions or []
        ):
            return kubeconfig
    raise AssertionError(f"{name} is not established")


@pytest.fixture
def real_cluster(real_crd: str) -> Iterator[Cluster]:
    """A namespace of its own on a real API server."""
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config(real_crd))
    name = f"selfalign-test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield connect(name, kubeconfig=real_crd)
    core.delete_namespace(name)


@pytest.fixture(params=["memory", "http", pytest.param("real", marks=pytest.mark.cluster)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Each kind of cluster in turn: one contract."""
    if request.param == "memory":
        return MemoryCluster()
    found: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return found
