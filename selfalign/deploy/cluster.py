"""What must be there before anything is installed: kubeconfig, kubectl, an API server, a namespace.

Everything goes through the `kubectl` command with the person's own kubeconfig.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from selfalign.errors import ConfigurationError, StoreDenied, StoreUnavailable

NAMESPACE_LABELS = {"pod-security.kubernetes.io/enforce": "restricted"}
RESOURCE = "alignmentruns.selfalign.io"


def require_cluster() -> None:
    """Refuse without kubeconfig, kubectl or an API server that answers."""
    configured = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    files = [Path(name) for name in configured.split(os.pathsep) if name]
    if not any(path.is_file() for path in files):
        raise ConfigurationError(
            f"no kubeconfig: {', '.join(map(str, files))} does not exist",
            remedy="set KUBECONFIG to your cluster's file, or let your provider's tool write it "
            "(aws eks update-kubeconfig, gcloud container clusters get-credentials, az aks "
            "get-credentials)",
        )
    if shutil.which("kubectl") is None:
        raise ConfigurationError(
            "kubectl: not found on PATH",
            remedy="install it: https://kubernetes.io/docs/tasks/tools/",
        )
    answer = kubectl("get", "--raw", "/readyz")
    if answer.returncode != 0:
        raise StoreUnavailable(
            f"the cluster does not answer: {_last_line(answer.stderr)}",
            remedy="check `kubectl cluster-info` and `kubectl config current-context`; credentials "
            "may have expired",
        )


def ensure_namespace(namespace: str) -> bool:
    """Make the namespace, enforcing Pod Security `restricted`; True when it was not there."""
    if _get("namespace", namespace, f"`kubectl get namespace {namespace}` must answer"):
        return False
    metadata = {"name": namespace, "labels": NAMESPACE_LABELS}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    answer = kubectl("create", "-f", "-", stdin=json.dumps(body))
    if answer.returncode != 0:
        raise ConfigurationError(
            f"namespace {namespace} is not there and cannot be made: {_last_line(answer.stderr)}",
            remedy="ask an administrator for it, or use another one with NAMESPACE=...",
        )
    return True


def resource_owner() -> str | None:
    """namespace/release that owns the AlignmentRun resource; "": no release; None: not there."""
    remedy = "allow it, or let an administrator install it and set crd.create: false (VALUES=...)"
    found = _get("crd", RESOURCE, remedy)
    if not found:
        return None
    marks = json.loads(found)["metadata"].get("annotations") or {}
    release = marks.get("meta.helm.sh/release-name")
    return f"{marks.get('meta.helm.sh/release-namespace')}/{release}" if release else ""


def _get(kind: str, name: str, remedy: str) -> str:
    """An object as JSON; empty where it is not there.

    Raises StoreDenied or StoreUnavailable where that cannot be found out.
    """
    answer = kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
    if answer.returncode != 0:
        failure = StoreDenied if "(Forbidden)" in answer.stderr else StoreUnavailable
        raise failure(f"{kind} {name}: {_last_line(answer.stderr)}", remedy=remedy)
    return answer.stdout.strip()


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run kubectl; what it printed and its exit code."""
    command = ["kubectl", "--request-timeout=15s", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
