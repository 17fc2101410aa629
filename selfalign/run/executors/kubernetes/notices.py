"""Notices of runs that have ended or wait for a person, in a thread of their own, because receivers
may be slow.

    every AlignmentRun that has ended x every target of the platform's `notify` -> one request
    taken -> status.notified of the run, under the version that was read

Level-triggered: what is owed follows from the runs alone, so a controller that starts anew goes on.
One that ends between the answer and the status sends the same notice again, under the same id. A
run's creator cannot write a status, hence cannot keep a notice back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from selfalign.config import NotifyConfig
from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.run.drive import iso
from selfalign.run.executors.kubernetes import configuration, crd
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    Conflict,
    Gone,
    Resource,
    is_terminating,
    name_of,
)
from selfalign.run.executors.kubernetes.reconcile import emit
from selfalign.run.notify import NotDelivered, Notice, new_notice, notice_id, send, wait_seconds
from selfalign.store.base import Store
from selfalign.store.documents import first_problem
from selfalign.telemetry import log

STEP_SECONDS = 30.0  # between two looks where nothing is due
GIVE_UP = timedelta(days=1)  # after a run's end its notice is no news any more
_WRITES = 5  # of a status that others write too
_TARGETS = TypeAdapter(list[NotifyConfig])


class _Try(NamedTuple):
    """Failures in a row of one notice at one target, and when (monotonic) the next may be."""

    failures: int
    due: float


@dataclass(slots=True)
class Notices:
    """Sends what is owed.

    Attributes:
        open_store: opens the platform's store.
        monotonic: seconds, for the time between attempts.
        deliver: one attempt to deliver a notice.
    """

    cluster: Cluster
    open_store: Callable[[str], Store]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    deliver: Callable[[Notice, NotifyConfig], None] = send
    _tries: dict[tuple[str, str], _Try] = field(default_factory=dict, init=False)
    _taken: set[tuple[str, str]] = field(default_factory=set, init=False)

    def step(self) -> float:
        """Try once what is due.

        Returns:
            Seconds until something else is.

        Raises:
            SelfAlignError: API server or configuration fail; nothing is lost.
        """
        platform = configuration.config_in(configuration.read_platform(self.cluster))
        targets = _targets(platform)
        wait = STEP_SECONDS
        for run in self.cluster.list(crd.PLURAL) if targets else []:
            for target in targets:
                if self._owes(run, target):
                    wait = min(wait, self._try(run, target, str(platform.get("store"))))
        return wait

    def owes(self, run: Resource) -> bool:
        """Whether somebody is still to be told of a run; its deletion can wait so long."""
        try:
            platform = configuration.config_in(configuration.read_platform(self.cluster))
            return any(self._owes(run, target) for target in _targets(platform))
        except ConfigurationError:  # `run` logs it
            return False

    def _owes(self, run: Resource, target: NotifyConfig) -> bool:
        status = crd.status_of(run)
        if not (status.finished or status.awaits_approval) or is_terminating(run):
            return False
        if status.notified.get(target.url_variable) == _id(run):
            self._taken.discard((_id(run), target.url_variable))
            return False
        ended = datetime.fromisoformat(status.completed_at) if status.completed_at else self.clock()
        if self.clock() - ended <= GIVE_UP:
            return True
        if self._tries.pop((_id(run), target.url_variable), None):
            log.warning("notice.given_up", run=name_of(run), target=target.url_variable)
            told = f"nobody took the notice for {target.url_variable} within {GIVE_UP}"
            emit(self.cluster, run, "NoticeNotDelivered", told, True, iso(self.clock()))
        return False

    def _try(self, run: Resource, target: NotifyConfig, store: str) -> float:
        """One attempt, if it is due; seconds until the next one."""
        place = (_id(run), target.url_variable)
        before = self._tries.get(place, _Try(0, 0.0))
        if (left := before.due - self.monotonic()) > 0:
            return left
        told = {"run": name_of(run), "target": target.url_variable}
        try:
            # a status that cannot hold it, under an older CRD, is no reason to tell it twice
            if place not in self._taken:
                self.deliver(self._notice(run, store), target)
        except NotDelivered as error:
            wait = wait_seconds(before.failures + 1, error)
            self._tries[place] = _Try(before.failures + 1, self.monotonic() + wait)
            log.warning("notice.failed", **told, error=str(error), retry_seconds=wait)
            return wait
        self._tries.pop(place, None)
        if place not in self._taken:
            self._taken.add(place)
            log.info("notice.taken", **told)
        with contextlib.suppress(Gone):
            self._remember(run, target, place[0])
        return STEP_SECONDS

    def _remember(self, run: Resource, target: NotifyConfig, notice: str) -> None:
        """Write into the run's status that the target took the notice. Raises Gone, and Conflict
        where the run is written all the time; then the same notice is sent again."""
        uid = run["metadata"]["uid"]
        for left in reversed(range(_WRITES)):
            status = run.get("status") or {}
            notified = {**(status.get("notified") or {}), target.url_variable: notice}
            try:
                self.cluster.patch_status(run, {**status, "notified": notified})
                return
            except Conflict:  # somebody wrote the run meanwhile
                run = self.cluster.get(crd.PLURAL, name_of(run))
                if run["metadata"]["uid"] != uid or not left:
                    raise

    def _notice(self, run: Resource, url: str) -> Notice:
        namespace, name = run["metadata"]["namespace"], name_of(run)
        store = None
        with contextlib.suppress(SelfAlignError):  # the verdict matters more than its answers
            store = self.open_store(url)
        return new_notice(
            store,
            crd.status_of(run),
            unique=run["metadata"]["uid"],
            source=f"/namespaces/{namespace}/{crd.PLURAL}/{name}",
            where=f"-n {namespace}",
        )


def _id(run: Resource) -> str:
    return notice_id(run["metadata"]["uid"], crd.status_of(run))


def _targets(platform: Resource) -> list[NotifyConfig]:
    try:
        return _TARGETS.validate_python(platform.get("notify") or [])
    except ValidationError as error:
        raise ConfigurationError(
            f"ConfigMap {crd.PLATFORM_CONFIG}: notify.{first_problem(error)}",
            remedy="correct config.notify in the platform's values and run make deploy",
        ) from None
