"""What the Kubernetes API answers, as plain dicts, and its errors; `api.py` asks it."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from selfalign.errors import ConfigurationError, StoreDenied, StoreUnavailable

Resource = dict[str, Any]
Resources = list[Resource]  # `list` is a method's name inside the classes


class Change(NamedTuple):
    """An object that a watch shows: listed, changed or deleted."""

    resource: Resource
    deleted: bool = False


class Conflict(Exception):
    """The object exists already, or its version is not the one that was read. Expected."""


class Gone(Exception):
    """The object does not exist (any more). Expected."""


class ClusterUnavailable(StoreUnavailable):
    """The API server cannot be reached, fails, or has no quota left. Whether it did what was asked
    is not known."""


class ClusterDenied(StoreDenied):
    """The API server refuses these credentials, or a policy of the cluster refuses the object."""


class ClusterRejected(ConfigurationError):
    """The API server finds the object wrong."""


def backoff_seconds(failures: int, limit_seconds: float = 15.0) -> float:
    """Before the next try: it doubles up to the limit, with jitter so that clients spread out."""
    longest: float = min(0.5 * 2 ** min(failures, 10), limit_seconds)
    return round(longest * random.uniform(0.5, 1.0), 3)


def name_of(resource: Resource) -> str:
    """The object's name."""
    return str(resource["metadata"]["name"])


def labels_of(resource: Resource) -> dict[str, str]:
    """The object's labels; empty when it has none."""
    return resource["metadata"].get("labels") or {}


def annotations_of(resource: Resource) -> dict[str, str]:
    """The object's annotations; empty when it has none."""
    return resource["metadata"].get("annotations") or {}


def is_terminating(resource: Resource) -> bool:
    """Whether the object is being deleted and waits for its finalizers."""
    return bool(resource["metadata"].get("deletionTimestamp"))


def container_statuses(pod: Resource) -> list[Resource]:
    """How a pod's containers stand, those that run before the others first."""
    status = pod.get("status") or {}
    kinds = ("initContainerStatuses", "containerStatuses")
    return [container for kind in kinds for container in status.get(kind) or []]


def is_true(resource: Resource, kind: str) -> bool:
    """Whether the object's condition of this type is there and true."""
    conditions = (resource.get("status") or {}).get("conditions") or []
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions)


def owner_of(resource: Resource) -> Resource:
    """The reference to the object's controller; empty when it has none."""
    owners = resource["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def is_owned_by(resource: Resource, run: Resource) -> bool:
    """Whether this very run controls the object: by uid, because names are used again."""
    return bool(owner_of(resource).get("uid") == run["metadata"]["uid"])


def is_left_over(resource: Resource, run: Resource) -> bool:
    """Whether the object will vanish by itself: it is terminating, or it belongs to an earlier run
    of the same name, so that the garbage collector deletes it."""
    owner = owner_of(resource)
    same_name = (owner.get("kind"), owner.get("name")) == (run["kind"], name_of(run))
    return is_terminating(resource) or (same_name and not is_owned_by(resource, run))


def owned_by(run: Resource) -> list[Resource]:
    """ownerReferences: deleting the run deletes the object. Artifacts are in the store and stay."""
    about = {"apiVersion": run["apiVersion"], "kind": run["kind"], "name": name_of(run)}
    uid = run["metadata"]["uid"]
    return [{**about, "uid": uid, "controller": True, "blockOwnerDeletion": True}]
