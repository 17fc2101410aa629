"""The seam to the Kubernetes API: what selfalign asks of it, as plain dicts, and its errors.

`api.py` is the real cluster. The tests have one in memory, and both pass one contract suite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

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


class Cluster(Protocol):
    """One namespace of a cluster.

    Kinds are plural names: alignmentruns, jobs, pods, cronjobs, configmaps, events, deployments,
    inferenceservices.
    Every method raises ClusterUnavailable or ClusterDenied where that is the cause.
    """

    namespace: str

    def list(self, kind: str, selector: str = "", fields: str = "") -> Resources:
        """All objects of a kind that match a label selector and a field selector."""
        ...

    def get(self, kind: str, name: str) -> Resource:
        """One object. Raises Gone."""
        ...

    def create(self, kind: str, body: Resource) -> Resource:
        """Raises Conflict when the name is taken, ClusterRejected when the object is wrong."""
        ...

    def patch(self, kind: str, name: str, change: Resource) -> Resource:
        """Apply a JSON merge patch. Raises Gone."""
        ...

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        """Replace an AlignmentRun's status. Raises Gone, and Conflict when another version of the
        run is stored than the one given."""
        ...

    def delete(self, kind: str, name: str, *, uid: str) -> None:
        """Delete this very object and, in the background, what it owns; it may be gone already."""
        ...

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        """All objects, None when that list is complete, then each as it changes.

        Ends at the timeout, or when the server no longer has the history: list again then.
        """
        ...

    def log_lines(
        self, pod: str, *, container: str, follow: bool, tail_lines: int | None = None
    ) -> Iterator[str]:
        """Lines of a container's log; with `follow` until the container ends. Raises Gone."""
        ...


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
