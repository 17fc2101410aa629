"""Promotion arrives: what serves follows `current`, and the run says what is served.

    current.json -> a target: Deployment, InferenceService or webhook (serving.kind)
    how the target stands -> condition Served of the AlignmentRun whose model it is

Level-triggered: each step compares the pointer with the target and writes what differs, so it may
be killed, repeated or done twice. A rollback is nothing else than a pointer that moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import configuration, crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Conflict, Gone, Resource, name_of
from selfalign.run.executors.kubernetes.reconcile import emit
from selfalign.store.base import Store
from selfalign.store.pointer import Pointer, read_pointer
from selfalign.telemetry import log

STEP_SECONDS = 15.0
Reason = Literal[
    "Served", "RollingOut", "NotReady", "NotDeployed", "NotServable", "Replaced", "NotFollowed"
]


class Wanted(NamedTuple):
    """The model that is to be served.

    Attributes:
        uri: where its files lie, complete and under their real names: STORE/models/<digest>.
        run: that promoted it; None after a rollback.
    """

    digest: str
    uri: str
    run: str | None
    moved_at: str


class Target(Protocol):
    """What serves, or hands on, the current model."""

    def follow(self, wanted: Wanted, was: Resource | None) -> tuple[Reason, str]:
        """Bring the target closer to the wanted model; may be repeated at any time.

        Args:
            was: the condition Served of the run whose model it is, as it was written last.

        Returns:
            How it stands now, and cause and remedy for people.
        """
        ...


class Standing(NamedTuple):
    """How the current model stands.

    Attributes:
        reason: the reason of the condition Served; NotFollowed where nothing is to serve it.
        message: cause and remedy; the same text as long as nothing changes.
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
    """Follows the pointer with one target; without one it only reads it, for the metrics."""

    cluster: Cluster
    open_store: Callable[[str], Store]
    target: Target | None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def step(self) -> Standing | None:
        """Roll the target where the pointer has moved, write what is served, and return it; None
        while no model is promoted. Raises SelfAlignError; the next step tries again."""
        store = self.open_store(configuration.platform_store(self.cluster))
        current = read_pointer(store)
        if current is None:
            return None
        pointer = current.pointer
        if self.target is None:
            return Standing(pointer.model.digest, "NotFollowed", "", pointer.moved_at)
        runs = self.cluster.list(crd.PLURAL)
        owner = _owner(pointer, runs)
        standing = self._follow(self.target, pointer, store.url, owner)
        # where somebody else wrote the run meanwhile, the next step reads it anew
        with contextlib.suppress(Conflict, Gone):
            self._tell(standing, runs, owner)
        return standing

    def _follow(
        self, target: Target, pointer: Pointer, store_url: str, owner: Resource | None
    ) -> Standing:
        model, moment = pointer.model, pointer.moved_at
        if model.directory is None:
            told = "the model was promoted by 0.4.0 or before and has no directory; promote another"
            return Standing(model.digest, "NotServable", told, moment)
        wanted = Wanted(model.digest, f"{store_url}/{model.directory}", pointer.run, moment)
        was = None if owner is None else crd.condition(owner, "Served")
        reason, message = target.follow(wanted, was)
        return Standing(model.digest, reason, message, moment)

    def _tell(self, standing: Standing, runs: list[Resource], owner: Resource | None) -> None:
        """Write the condition on the run whose model is current, and on those it was before."""
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
