"""What must be there before anything is installed: kubeconfig, kubectl, an API server, a namespace.

Everything goes through the `kubectl` command with the person's own kubeconfig.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError, SelfAlignError, StoreUnavailable

_TIMEOUT = "--request-timeout=15s"
_RESOURCE = "alignmentruns.selfalign.io"
NAMESPACE_LABELS = {"pod-security.kubernetes.io/enforce": "restricted"}


def require_cluster() -> None:
    """Refuse without kubeconfig, kubectl or an API server that answers."""
    _require_kubeconfig()
    if shutil.which("kubectl") is None:
        raise ConfigurationError(
            "kubectl: not found on PATH",
            remedy="install it: https://kubernetes.io/docs/tasks/tools/",
        )
    answer = _kubectl("get", "--raw", "/readyz", _TIMEOUT)
    if answer.returncode != 0:
        raise StoreUnavailable(
            f"the cluster does not answer: {_first_line(answer.stderr)}",
            remedy="check `kubectl cluster-info` and `kubectl config current-context`; credentials "
            "may have expired",
        )


def ensure_namespace(namespace: str) -> bool:
    """Make the namespace, enforcing Pod Security `restricted`; True when it was not there."""
    if _kubectl("get", "namespace", namespace, _TIMEOUT).returncode == 0:
        return False
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace, "labels": NAMESPACE_LABELS},
    }
    answer = _kubectl("create", "-f", "-", _TIMEOUT, stdin=json.dumps(manifest))
    if answer.returncode != 0:
        raise ConfigurationError(
            f"namespace {namespace} is not there and cannot be made: {_first_line(answer.stderr)}",
            remedy="ask an administrator for it, or use another one with NAMESPACE=...",
        )
    return True


def dry_run(manifests: list[dict[str, Any]], namespace: str) -> list[str]:
    """Let the API server validate manifests strictly, storing nothing; what it says is wrong."""
    stream = {"apiVersion": "v1", "kind": "List", "items": manifests}
    answer = _kubectl(
        "create", "-f", "-", "--dry-run=server", "--validate=strict", "-n", namespace, _TIMEOUT,
        stdin=json.dumps(stream),
    )  # fmt: skip
    if answer.returncode == 0:
        return []
    said = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return [line for line in said if "(AlreadyExists)" not in line]


def remaining_runs(namespace: str) -> list[str]:
    """Names of the AlignmentRuns there are; they outlive the releases."""
    answer = _kubectl("get", _RESOURCE, "-n", namespace, "-o", "name", _TIMEOUT)
    return answer.stdout.split() if answer.returncode == 0 else []


def resource_owner() -> str | None:
    """Whose the AlignmentRun resource is: namespace/release, "" where nobody's; None: not there."""
    answer = _kubectl("get", "crd", _RESOURCE, "-o", "json", _TIMEOUT)
    if answer.returncode != 0:
        return None
    marks = json.loads(answer.stdout)["metadata"].get("annotations") or {}
    release = marks.get("meta.helm.sh/release-name")
    return f"{marks.get('meta.helm.sh/release-namespace')}/{release}" if release else ""


def create_job(cronjob: str, job: str, namespace: str) -> None:
    """Start a CronJob's Job now."""
    answer = _kubectl("create", "job", job, f"--from=cronjob/{cronjob}", "-n", namespace, _TIMEOUT)
    if answer.returncode != 0:
        raise SelfAlignError(
            f"{cronjob}: no Job could be made from it in {namespace}: {_first_line(answer.stderr)}",
            remedy=f"install the platform first: make deploy NAMESPACE={namespace}",
        )


def _require_kubeconfig() -> None:
    configured = os.environ.get("KUBECONFIG")
    files = (
        [Path(name) for name in configured.split(os.pathsep) if name]
        if configured
        else [Path.home() / ".kube" / "config"]
    )
    if any(path.is_file() for path in files):
        return
    raise ConfigurationError(
        f"no kubeconfig: {', '.join(map(str, files))} does not exist",
        remedy="set KUBECONFIG to your cluster's file, or let your provider's tool write it (aws "
        "eks update-kubeconfig, gcloud container clusters get-credentials, az aks get-credentials)",
    )


def _kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
