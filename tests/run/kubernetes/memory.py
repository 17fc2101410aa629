"""A cluster in memory: versions, conflicts, owners, watches.

It passes the same contract suite as the real one (`test_cluster_contract.py`). Nothing here runs a
Job: whoever uses it plays the Job controller and the kubelet, and calls `collect_garbage`.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from selfalign.run.executors.kubernetes.cluster import (
    Change,
    ClusterRejected,
    Conflict,
    Gone,
    Resource,
    Resources,
    labels_of,
)

Labels = dict[str, str]
Encoded = list[bytes]
_KEPT_CHANGES = 20_000


class Noted(NamedTuple):
    """A change in the history that watches are served from."""

    version: int
    kind: str
    labels: Labels
    data: bytes
    deleted: bool


Noteds = list[Noted]


class MemoryCluster:
    """One namespace. Objects are copied on the way in and out. Safe to use from several threads.

    Args:
        clock: for creation and deletion times.
        collect: delete what a deleted object owned at once, instead of by `collect_garbage`.
    """

    def __init__(
        self,
        namespace: str = "selfalign",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        collect: bool = True,
    ) -> None:
        self.namespace = namespace
        self.logs: dict[str, list[str]] = {}
        self._clock = clock
        self._collect = collect
        self._objects: dict[str, dict[str, tuple[Labels, bytes]]] = {}
        self._versions = itertools.count(1)
        self._version = 0
        self._changes: deque[Noted] = deque(maxlen=_KEPT_CHANGES)
        self._compacted = 0
        self._changed = threading.Condition(threading.RLock())

    def list(self, kind: str, selector: str = "", fields: str = "") -> Resources:
        found = (json.loads(data) for data in self.select(kind, selector)[0])
        return [resource for resource in found if has_fields(resource, fields)]

    def get(self, kind: str, name: str) -> Resource:
        with self._changed:
            found: Resource = json.loads(self._stored(kind, name))
            return found

    def create(self, kind: str, body: Resource) -> Resource:
        name = body["metadata"].get("name")
        if not name or (kind in ("alignmentruns", "jobs") and "spec" not in body):
            raise ClusterRejected(f"create {kind}: metadata.name and spec are required")
        with self._changed:
            if name in self._objects.get(kind, {}):
                raise Conflict(f"{kind} {name} already exists")
            new: Resource = json.loads(json.dumps(body))
            if kind == "alignmentruns":
                new.pop("status", None)
            new["metadata"] |= {
                "namespace": self.namespace,
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "creationTimestamp": self._now(),
            }
            return self._store(kind, new)

    def replace(self, kind: str, body: Resource) -> Resource:
        with self._changed:
            old = self._expected(kind, body)
            new = {**body, "metadata": {**body["metadata"], **_identity(old)}}
            if kind == "alignmentruns":
                new["status"] = old.get("status") or {}
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            return self._store(kind, new)

    def patch(self, kind: str, name: str, change: Resource) -> Resource:
        with self._changed:
            old = json.loads(self._stored(kind, name))
            new = _merge_patch(old, change)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
            return self._store(kind, new)

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        with self._changed:
            old = self._expected("alignmentruns", run)
            return self._store("alignmentruns", {**old, "status": status})

    def set_status(self, kind: str, name: str, status: Resource) -> Resource:
        """Write any object's status, as the cluster's own controllers do."""
        with self._changed:
            old = json.loads(self._stored(kind, name))
            return self._store(kind, {**old, "status": status})

    def delete(self, kind: str, name: str, *, uid: str) -> None:
        with self._changed:
            try:
                found = json.loads(self._stored(kind, name))
            except Gone:
                return
            if found["metadata"]["uid"] != uid:
                return
            if found["metadata"].get("finalizers"):
                found["metadata"].setdefault("deletionTimestamp", self._now())
                self._store(kind, found)
                return
            del self._objects[kind][name]
            self._note(kind, found, deleted=True)
            if self._collect:
                self.collect_garbage()

    def collect_garbage(self) -> bool:
        """Delete what is owned by nothing that still exists; whether anything was."""
        with self._changed:
            alive = {
                json.loads(data)["metadata"]["uid"]
                for objects in self._objects.values()
                for _, data in objects.values()
            }
            orphans = [
                (kind, name)
                for kind, objects in self._objects.items()
                for name, (_, data) in objects.items()
                if (owners := json.loads(data)["metadata"].get("ownerReferences"))
                and not any(owner["uid"] in alive for owner in owners)
            ]
            for kind, name in orphans:
                gone = json.loads(self._objects[kind].pop(name)[1])
                self._note(kind, gone, deleted=True)
        return bool(orphans) and (self.collect_garbage() or True)

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        deadline = time.monotonic() + timeout_seconds
        version: int | None = None
        while True:
            if version is None:
                listed, version = self.select(kind, selector)
                yield from (Change(json.loads(data)) for data in listed)
                yield None
            changes = self.changes_since(version)
            if changes is None:  # too far behind: 410 on a real one
                return
            for change in changes:
                version = change.version
                if change.kind == kind and labelled(change.labels, selector):
                    yield Change(json.loads(change.data), change.deleted)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.wait_beyond(version, left)

    def select(self, kind: str, selector: str) -> tuple[Encoded, int]:
        """The encoded objects that a label selector matches, and the version of that list."""
        with self._changed:
            stored, version = list(self._objects.get(kind, {}).values()), self._version
        return [data for labels, data in stored if labelled(labels, selector)], version

    def changes_since(self, version: int) -> Noteds | None:
        """What changed after a version, oldest first; None when that is forgotten already."""
        with self._changed:
            if version < self._compacted:
                return None
            newest = itertools.takewhile(lambda c: c.version > version, reversed(self._changes))
            return list(reversed(list(newest)))

    def wait_beyond(self, version: int, seconds: float) -> None:
        """Wait until something changes after a version, or the time is over."""
        with self._changed:
            if self._version == version:
                self._changed.wait(seconds)

    def compact(self) -> None:
        """Forget the history of changes: who watches has to list again."""
        with self._changed:
            self._changes.clear()
            self._compacted = self._version
            self._note("", {"metadata": {}}, deleted=True)

    def log_lines(
        self, pod: str, *, container: str, follow: bool, tail_lines: int | None = None
    ) -> Iterator[str]:
        self.get("pods", pod)
        lines = self.logs.get(pod, [])
        yield from lines if tail_lines is None else lines[-tail_lines:]

    def _stored(self, kind: str, name: str) -> bytes:
        try:
            return self._objects[kind][name][1]
        except KeyError:
            raise Gone(f"{kind} {name} not found") from None

    def _expected(self, kind: str, body: Resource) -> Resource:
        old: Resource = json.loads(self._stored(kind, body["metadata"]["name"]))
        for name in ("resourceVersion", "uid"):
            given = body["metadata"].get(name)
            if given is not None and given != old["metadata"][name]:
                raise Conflict(f"{kind} {body['metadata']['name']}: another {name} is stored")
        return old

    def _store(self, kind: str, new: Resource) -> Resource:
        metadata = new["metadata"]
        going = bool(metadata.get("deletionTimestamp")) and not metadata.get("finalizers")
        noted = self._note(kind, new, deleted=going)
        if going:
            self._objects[kind].pop(metadata["name"], None)
        else:
            self._objects.setdefault(kind, {})[metadata["name"]] = (noted.labels, noted.data)
        stored: Resource = json.loads(noted.data)
        return stored

    def _note(self, kind: str, changed: Resource, *, deleted: bool) -> Noted:
        """Give the object a new version and tell those who watch."""
        self._version = next(self._versions)
        changed["metadata"]["resourceVersion"] = str(self._version)
        data = json.dumps(changed).encode()
        if len(self._changes) == _KEPT_CHANGES:
            self._compacted = self._changes[0].version
        self._changes.append(Noted(self._version, kind, labels_of(changed), data, deleted))
        self._changed.notify_all()
        return self._changes[-1]

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds").replace("+00:00", "Z")


def _identity(stored: Resource) -> Resource:
    kept = ("uid", "creationTimestamp", "generation", "deletionTimestamp")
    return {name: stored["metadata"][name] for name in kept if name in stored["metadata"]}


def labelled(labels: Labels, selector: str) -> bool:
    """Whether a label selector of the forms `name` and `name=value`, joined by commas, matches."""
    for term in filter(None, selector.split(",")):
        name, separator, value = term.partition("=")
        if name not in labels or (separator and labels[name] != value):
            return False
    return True


def has_fields(resource: Resource, fields: str) -> bool:
    """Whether a field selector `path=value`, joined by commas, matches."""
    for term in filter(None, fields.split(",")):
        path, _, value = term.partition("=")
        found: Any = resource
        for name in path.split("."):
            found = found.get(name, {}) if isinstance(found, dict) else {}
        if found != value:
            return False
    return True


def _merge_patch(old: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_patch(merged.get(name), value)
    return merged
