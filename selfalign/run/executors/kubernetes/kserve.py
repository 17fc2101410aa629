"""serving.kind kserve: an InferenceService is pointed at the current model.

    current.json -> spec.predictor.model.storageUri -> KServe makes a new revision
    its condition Ready -> Served

The InferenceService is made by people, with its runtime, format and resources; only where the model
lies is changed here (https://kserve.github.io/website/docs/reference/crd-api).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Gone, Resource, annotations_of
from selfalign.run.executors.kubernetes.serving import Reason, Wanted
from selfalign.telemetry import log

INFERENCE_SERVICES = "inferenceservices"
POINTED_ANNOTATION = f"{crd.GROUP}/pointed-at-model-time"
# Not every KServe says which generation its conditions speak of, and it takes a while to look at a
# change: a condition that is older than the change counts only after so many seconds.
SETTLED_SECONDS = 60.0
_SAID_LIMIT = 400  # characters of what KServe says


@dataclass(frozen=True, slots=True)
class InferenceServiceTarget:
    """Points one InferenceService at the wanted model."""

    cluster: Cluster
    name: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def follow(self, wanted: Wanted, _was: Resource | None) -> tuple[Reason, str]:
        """Change storageUri where it is another; what the condition Ready says of it."""
        try:
            found = self.cluster.get(INFERENCE_SERVICES, self.name)
            model = (found["spec"].get("predictor") or {}).get("model")
            if not model:
                return "NotServable", (
                    f"InferenceService {self.name} has no spec.predictor.model; remedy: give it "
                    "one, with modelFormat huggingface"
                )
            if model.get("storageUri") != wanted.uri:
                found = self._point(wanted)
        except Gone:
            return "NotDeployed", (
                f"there is no InferenceService {self.name}; remedy: create it, or name another in "
                "serving.kserve.name"
            )
        return self._progress(found, wanted.digest)

    def _point(self, wanted: Wanted) -> Resource:
        log.info("serving.pointed", inference_service=self.name, model=wanted.digest)
        change = {
            "metadata": {"annotations": {POINTED_ANNOTATION: iso(self.clock())}},
            "spec": {"predictor": {"model": {"storageUri": wanted.uri}}},
        }
        return self.cluster.patch(INFERENCE_SERVICES, self.name, change)

    def _progress(self, service: Resource, digest: str) -> tuple[Reason, str]:
        status = service.get("status") or {}
        states = status.get("modelStatus") or {}
        conditions: list[Resource] = status.get("conditions") or []
        ready: Resource = next((c for c in conditions if c.get("type") == "Ready"), {})
        if not self._is_news(service, ready):
            return "RollingOut", f"model {digest[:12]}: KServe has not looked at it yet"
        if states.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
            failure = states.get("lastFailureInfo") or {}
            return _not_ready(digest, states["transitionStatus"], failure.get("message"))
        if ready.get("status") == "True":
            return "Served", f"model {digest}"
        if ready.get("status") == "False":
            return _not_ready(digest, ready.get("reason"), ready.get("message"))
        return "RollingOut", f"model {digest[:12]}: its servers are starting"

    def _is_news(self, service: Resource, ready: Resource) -> bool:
        """Whether the status speaks of the model that the spec names now."""
        observed = int((service.get("status") or {}).get("observedGeneration") or 0)
        if observed >= service["metadata"]["generation"]:
            return True
        pointed = annotations_of(service).get(POINTED_ANNOTATION)
        if pointed is None:  # it named this model before it was followed
            return True
        changed = datetime.fromisoformat(pointed)
        since = ready.get("lastTransitionTime")
        if since is not None and datetime.fromisoformat(since) > changed:
            return True
        return (self.clock() - changed).total_seconds() > SETTLED_SECONDS


def _not_ready(digest: str, reason: object, message: object) -> tuple[Reason, str]:
    said = " ".join(f"{reason}: {message or 'no message'}".split())[:_SAID_LIMIT]
    return "NotReady", (
        f"model {digest[:12]}: {said}; remedy: kubectl describe inferenceservice, or selfalign "
        "rollback"
    )
