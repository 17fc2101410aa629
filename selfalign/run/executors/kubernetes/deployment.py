"""serving.kind vllm: the Deployment of charts/serving is rolled to the current model.

    current.json -> the Deployment's annotation selfalign.io/model-digest -> Kubernetes rolls it

Kubernetes keeps the old pods until the new ones have answered their probe. In the form adapter the
pods follow `current.json` themselves, and are rolled only where they say that they cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.adapters import Told, ask_pods, serves_adapters
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Gone,
    Resource,
    annotations_of,
    container_statuses,
    is_terminating,
    is_true,
    name_of,
)
from selfalign.run.executors.kubernetes.serving import Reason, Wanted
from selfalign.telemetry import log

DEPLOYMENT = "selfalign-serving"
DIGEST_ANNOTATION = f"{crd.GROUP}/model-digest"
_SAID_LIMIT = 400  # characters of what a pod says


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """Rolls one Deployment. Its pods' annotation says which model they serve."""

    cluster: Cluster
    name: str = DEPLOYMENT
    ask: Callable[[list[Resource], str], Told] = ask_pods

    def follow(self, wanted: Wanted, _was: Resource | None) -> tuple[Reason, str]:
        """Roll the Deployment where it serves another model; how it stands."""
        try:
            found = self.cluster.get("deployments", self.name)
            told = self._told(found, wanted.digest) if serves_adapters(found) else None
            pinned = _digest_of(found["spec"]["template"])
            if pinned != wanted.digest and (told is None or told.standing == "OtherServer"):
                found, told = self._roll(wanted.digest), None
        except Gone:
            return "NotDeployed", (
                f"there is no Deployment {self.name}; remedy: make deploy-serving"
            )
        if told is not None and told.standing == "Served":
            return "Served", f"model {wanted.digest}"
        if told is None:
            return self._progress(found, wanted.digest)
        if trouble := told.message or self._trouble(found, pinned):
            return self._not_ready(wanted.digest, trouble)
        return "RollingOut", f"model {wanted.digest[:12]}: its adapter is being loaded"

    def _told(self, deployment: Resource, digest: str) -> Told | None:
        """What the pods say of the model; None while a roll is under way or no pod is ready: they
        are then looked at as those of the form merged are."""
        wanted, counts = int(deployment["spec"].get("replicas", 1)), _counts(deployment)
        settled = counts["replicas"] == counts["updatedReplicas"] == wanted
        if not settled or not counts["availableReplicas"]:
            return None
        ready = [pod for pod in self._pods(deployment) if _is_ready(pod)]
        told = self.ask(ready, digest)
        return Told("Loading") if told.standing == "Served" and len(ready) < wanted else told

    def _roll(self, digest: str) -> Resource:
        """Change the annotation and nothing else; Kubernetes does the rest."""
        template = {"metadata": {"annotations": {DIGEST_ANNOTATION: digest}}}
        log.info("serving.rolled", deployment=self.name, model=digest)
        return self.cluster.patch("deployments", self.name, {"spec": {"template": template}})

    def _progress(self, deployment: Resource, digest: str) -> tuple[Reason, str]:
        """Whether every pod is of the current model and ready; else what holds it up."""
        wanted = int(deployment["spec"].get("replicas", 1))
        status = deployment.get("status") or {}
        if wanted and set(_counts(deployment).values()) == {wanted}:
            return "Served", f"model {digest}"
        if not wanted:
            return "NotReady", f"Deployment {self.name} is scaled to 0"
        trouble = self._trouble(deployment, digest)
        if not trouble and _gave_up(status):
            trouble = f"no progress within {deployment['spec'].get('progressDeadlineSeconds')} s"
        if trouble:
            return self._not_ready(digest, trouble)
        return "RollingOut", f"model {digest[:12]}: its servers are starting"

    def _not_ready(self, digest: str, trouble: str) -> tuple[Reason, str]:
        told = f"model {digest[:12]}: {trouble[:_SAID_LIMIT]}; what was served before goes on"
        return "NotReady", f"{told}; remedy: kubectl describe pods, or selfalign rollback"

    def _pods(self, deployment: Resource) -> list[Resource]:
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        return self.cluster.list("pods", selector)

    def _trouble(self, deployment: Resource, digest: str | None) -> str:
        """What the pods with this annotation complain of; empty when they do not."""
        for pod in self._pods(deployment):
            if annotations_of(pod).get(DIGEST_ANNOTATION) != digest or is_terminating(pod):
                continue
            said = _container_says(pod) or self._event_says(pod)
            if said:
                return said[:_SAID_LIMIT]
        return ""

    def _event_says(self, pod: Resource) -> str:
        """The latest warning on a pod, such as its failed probe."""
        events = self.cluster.list("events", fields=f"involvedObject.name={name_of(pod)}")
        warnings = [
            event
            for event in events
            if event.get("type") == "Warning" and not _only_starting(str(event.get("message")))
        ]
        if not warnings:
            return ""
        latest = max(warnings, key=lambda event: str(event.get("lastTimestamp") or ""))
        return f"{latest.get('reason')}: {' '.join(str(latest.get('message')).split())}"


def _counts(deployment: Resource) -> dict[str, int]:
    """The numbers of pods; 0 each where they are not those of what the Deployment says now."""
    status = deployment.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= deployment["metadata"]["generation"]
    names = ("replicas", "updatedReplicas", "availableReplicas")
    return {name: int(status.get(name) or 0) if seen else 0 for name in names}


def _digest_of(template: Resource) -> str | None:
    return ((template.get("metadata") or {}).get("annotations") or {}).get(DIGEST_ANNOTATION)


def _is_ready(pod: Resource) -> bool:
    return is_true(pod, "Ready") and not is_terminating(pod)


def _gave_up(status: Resource) -> bool:
    return any(
        c.get("type") == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
        for c in status.get("conditions") or []
    )


def _container_says(pod: Resource) -> str:
    """What a container of a pod that does not start ended with, or waits for."""
    for container in container_statuses(pod):
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            ended = state.get("terminated") or {}
            if ended.get("exitCode"):
                said = " ".join(str(ended.get("message") or ended.get("reason")).split())
                return f"{container.get('name')} ended with {ended['exitCode']}: {said}"
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{container.get('name')}: {waiting['reason']}: {waiting.get('message', '')}"
    return ""


def _only_starting(message: str) -> bool:
    """Whether a failed probe says no more than that the server does not listen yet."""
    return "refused" in message
