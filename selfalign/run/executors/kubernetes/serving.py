"""Promotion arrives: the serving Deployment follows `current`, and the run says what is served.

    current.json -> the Deployment's annotation selfalign.io/model-digest -> Kubernetes rolls it
    the Deployment's status -> condition Served of the AlignmentRun whose model it is

Level-triggered: each step compares the pointer with the Deployment and writes what differs, so it
may be killed, repeated or done twice. Kubernetes keeps the old pods until the new ones have
answered their probe. A rollback is nothing else than a pointer that moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import configuration, crd
from selfalign.run.executors.kubernetes.cluster import (
    Cluster,
    Conflict,
    Gone,
    Resource,
    annotations_of,
    is_terminating,
    name_of,
)
from selfalign.run.executors.kubernetes.reconcile import emit
from selfalign.store.base import Store
from selfalign.store.pointer import Pointer, PromotedModel, read_pointer
from selfalign.telemetry import log

DEPLOYMENT = "selfalign-serving"
DIGEST_ANNOTATION = f"{crd.GROUP}/model-digest"
STEP_SECONDS = 15.0
_SAID_LIMIT = 400  # characters of what a pod says
Reason = Literal["Served", "RollingOut", "NotReady", "NotDeployed", "NotServable", "Replaced"]


class Standing(NamedTuple):
    """How the current model stands.

    Attributes:
        digest: of the model that `current` names.
        reason: the reason of the condition Served.
        message: cause and remedy; the same text as long as nothing changes.
        promoted_at: when the pointer moved.
    """

    digest: str
    reason: Reason
    message: str
    promoted_at: str

    @property
    def served(self) -> bool:
        """Whether the current model, and no other, is served."""
        return self.reason == "Served"


@dataclass(slots=True)
class Serving:
    """Follows the pointer with one Deployment.

    Attributes:
        open_store: opens the platform's store.
        deployment: its name.
    """

    cluster: Cluster
    open_store: Callable[[str], Store]
    deployment: str = DEPLOYMENT
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _store: tuple[str, Store] | None = field(default=None, init=False)

    def step(self) -> Standing | None:
        """Roll the Deployment where the pointer has moved, and write what is served.

        Returns:
            How the current model stands; None while none is promoted.

        Raises:
            SelfAlignError: API server or store fail or refuse; the next step tries again.
        """
        current = read_pointer(self._platforms_store())
        if current is None:
            return None
        standing = self._follow(current.pointer)
        # where somebody else wrote the run meanwhile, the next step reads it anew
        with contextlib.suppress(Conflict, Gone):
            self._tell(current.pointer, standing)
        return standing

    def _platforms_store(self) -> Store:
        url = str(configuration.config_in(configuration.read_platform(self.cluster)).get("store"))
        if self._store is None or self._store[0] != url:
            self._store = (url, self.open_store(url))
        return self._store[1]

    def _follow(self, pointer: Pointer) -> Standing:
        model, moment = pointer.model, pointer.moved_at
        if model.directory is None:
            told = "the model was promoted by 0.4.0 or before and has no directory; promote another"
            return Standing(model.digest, "NotServable", told, moment)
        try:
            found = self.cluster.get("deployments", self.deployment)
            if _digest_of(found["spec"]["template"]) != model.digest:
                found = self._roll(model)
        except Gone:
            told = f"there is no Deployment {self.deployment}; remedy: make deploy-serving"
            return Standing(model.digest, "NotDeployed", told, moment)
        reason, message = self._progress(found, model.digest)
        return Standing(model.digest, reason, message, moment)

    def _roll(self, model: PromotedModel) -> Resource:
        """Change the annotation and nothing else; Kubernetes does the rest."""
        template = {"metadata": {"annotations": {DIGEST_ANNOTATION: model.digest}}}
        log.info("serving.rolled", deployment=self.deployment, model=model.digest)
        return self.cluster.patch("deployments", self.deployment, {"spec": {"template": template}})

    def _progress(self, deployment: Resource, digest: str) -> tuple[Reason, str]:
        """Whether every pod is of the current model and ready; else what holds it up."""
        wanted = int(deployment["spec"].get("replicas", 1))
        status = deployment.get("status") or {}
        seen = int(status.get("observedGeneration") or 0) >= deployment["metadata"]["generation"]
        counts = {
            name: int(status.get(name) or 0) if seen else 0
            for name in ("replicas", "updatedReplicas", "availableReplicas")
        }
        if seen and wanted and set(counts.values()) == {wanted}:
            return "Served", f"model {digest}"
        if not wanted:
            return "NotReady", f"Deployment {self.deployment} is scaled to 0"
        trouble = self._trouble(deployment, digest)
        if not trouble and _gave_up(status):
            trouble = f"no progress within {deployment['spec'].get('progressDeadlineSeconds')} s"
        if trouble:
            told = f"model {digest[:12]}: {trouble}; what was served before goes on"
            return "NotReady", f"{told}; remedy: kubectl describe pods, or selfalign rollback"
        return "RollingOut", f"model {digest[:12]}: its servers are starting"

    def _trouble(self, deployment: Resource, digest: str) -> str:
        """What the new model's pods complain of; empty when they do not."""
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        for pod in self.cluster.list("pods", selector):
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

    def _tell(self, pointer: Pointer, standing: Standing) -> None:
        """Write the condition on the run whose model is current, and on those it was before."""
        runs = self.cluster.list(crd.PLURAL)
        owner = _owner(pointer, runs)
        for run in runs:
            if owner is not None and name_of(run) == name_of(owner):
                self._write(run, standing)
                continue
            was = crd.condition(run, "Served")
            if was is None or was["reason"] == "Replaced":
                continue
            # the model before is served until the new one has taken its place
            if was["status"] == "False" or standing.served:
                told = f"model {standing.digest[:12]} is current since {standing.promoted_at}"
                self._write(run, standing._replace(reason="Replaced", message=told))

    def _write(self, run: Resource, standing: Standing) -> None:
        """Write the condition where it is news, and an Event where the reason changed."""
        was = crd.condition(run, "Served") or {}
        if (was.get("reason"), was.get("message")) == (standing.reason, standing.message):
            return
        status, moment = "True" if standing.served else "False", iso(self.clock())
        kept = [
            c for c in (run.get("status") or {}).get("conditions") or [] if c["type"] != "Served"
        ]
        condition: dict[str, Any] = {
            "type": "Served",
            "status": status,
            "reason": standing.reason,
            "message": standing.message,
            "observedGeneration": run["metadata"].get("generation", 1),
            "lastTransitionTime": was["lastTransitionTime"]
            if was.get("status") == status
            else moment,
        }
        body = {**(run.get("status") or {}), "conditions": [*kept, condition]}
        self.cluster.patch_status(run, body)
        if was.get("reason") != standing.reason:
            log.info("serving.changed", run=name_of(run), reason=standing.reason)
            warning = standing.reason in ("NotReady", "NotServable")
            emit(self.cluster, run, standing.reason, standing.message, warning, moment)


def _owner(pointer: Pointer, runs: list[Resource]) -> Resource | None:
    """The run that promoted the current model. After a rollback the pointer names none: then it is
    the latest run that made this model and had it served."""
    if pointer.run is not None:
        return next((run for run in runs if name_of(run) == pointer.run), None)
    made = [
        run
        for run in runs
        if crd.condition(run, "Served") is not None
        and any(stage.digest == pointer.model.digest for stage in crd.status_of(run).stages)
    ]
    return max(made, key=lambda run: run["metadata"]["creationTimestamp"], default=None)


def _digest_of(template: Resource) -> str | None:
    return ((template.get("metadata") or {}).get("annotations") or {}).get(DIGEST_ANNOTATION)


def _gave_up(status: Resource) -> bool:
    return any(
        c.get("type") == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
        for c in status.get("conditions") or []
    )


def _container_says(pod: Resource) -> str:
    """What a container of a pod that does not start ended with, or waits for."""
    status = pod.get("status") or {}
    for container in [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]:
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
