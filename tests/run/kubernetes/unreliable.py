"""A cluster between the controller and the API double on which calls fail, or something happens
just before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Change,
    ClusterUnavailable,
    Resource,
    Resources,
)


class Killed(BaseException):
    """The controller's process is killed at this call."""


class Unreliable:
    """Passes calls on until the one that was chosen.

    Attributes:
        calls: every call so far: (method, kind, name).
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.namespace = cluster.namespace
        self.calls: list[tuple[str, str, str]] = []
        self._countdown: int | None = None
        self._fault = ""
        self._meanwhile: Callable[[], None] | None = None

    def arm(self, call: int, fault: str, meanwhile: Callable[[], None] | None = None) -> None:
        """Let a later call go wrong.

        Args:
            call: how many calls from now; 0 is the next.
            fault: `lost` (never arrives), `unheard` (done, but the answer is lost),
                `killed-before`, `killed-after`, `meanwhile` (then `meanwhile` happens first).
        """
        self._countdown, self._fault, self._meanwhile = call, fault, meanwhile

    def disarm(self) -> None:
        self._countdown = None

    def fired(self) -> bool:
        """Whether the call that was armed last has gone wrong."""
        return self._countdown is None

    def list(self, kind: str, selector: str = "", fields: str = "") -> Resources:
        return self._call("list", kind, "", lambda: self._cluster.list(kind, selector, fields))

    def get(self, kind: str, name: str) -> Resource:
        return self._call("get", kind, name, lambda: self._cluster.get(kind, name))

    def create(self, kind: str, body: Resource) -> Resource:
        name = body["metadata"]["name"]
        return self._call("create", kind, name, lambda: self._cluster.create(kind, body))

    def patch(self, kind: str, name: str, change: Resource) -> Resource:
        return self._call("patch", kind, name, lambda: self._cluster.patch(kind, name, change))

    def patch_status(self, run: Resource, status: Resource) -> Resource:
        name = run["metadata"]["name"]
        return self._call(
            "status", "alignmentruns", name, lambda: self._cluster.patch_status(run, status)
        )

    def delete(self, kind: str, name: str, *, uid: str) -> None:
        self._call("delete", kind, name, lambda: self._cluster.delete(kind, name, uid=uid))

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        return self._cluster.watch(kind, timeout_seconds, selector)

    def log_lines(
        self, pod: str, *, container: str, follow: bool, tail_lines: int | None = None
    ) -> Iterator[str]:
        return self._cluster.log_lines(
            pod, container=container, follow=follow, tail_lines=tail_lines
        )

    def _call(self, verb: str, kind: str, name: str, act: Callable[[], Any]) -> Any:
        self.calls.append((verb, kind, name))
        if self._countdown is None:
            return act()
        if self._countdown > 0:
            self._countdown -= 1
            return act()
        self._countdown = None
        if self._fault == "meanwhile":
            assert self._meanwhile is not None
            self._meanwhile()
            return act()
        if self._fault == "killed-before":
            raise Killed
        if self._fault == "lost":
            raise ClusterUnavailable("the request never arrived")
        result = act()
        if self._fault == "killed-after":
            raise Killed
        assert self._fault == "unheard", self._fault
        raise ClusterUnavailable(f"the answer is lost, though it was {type(result).__name__}")
