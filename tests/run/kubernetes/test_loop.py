"""The loop with its threads: events lost, doubled and late, errors, leadership, an orderly end."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from selfalign.controller.cluster import Change, Cluster, ClusterUnavailable
from selfalign.controller.health import HealthServer, Heartbeats
from selfalign.controller.loop import Controller, Settings
from selfalign.controller.metrics import RunTable
from selfalign.controller.planner import Planner
from selfalign.controller.resources import new_run
from selfalign.run.decide import Attempt

from .unreliable import Unreliable
from .worlds import Refused, World, complete, fail, publish, template

PATIENCE_SECONDS = 60  # what a loaded machine may take; nothing waits this long when all is well


class Hints(Unreliable):
    """A cluster whose watches are unreliable: only hints, as the loop takes them.

    Attributes:
        shown: whether a watch shows what happens after its list.
        twice: whether it shows everything twice, and everything old again.
        failures: how many watches fail before one works.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.shown, self.twice, self.failures = True, False, 0
        self.lock = threading.Lock()

    def watch(self, kind: str, timeout_seconds: int, selector: str = "") -> Iterator[Change | None]:
        with self.lock:
            self.failures -= 1
            if self.failures >= 0:
                raise ClusterUnavailable("the API server restarts")
        listed = False
        seen: list[Change] = []
        for change in super().watch(kind, timeout_seconds, selector):
            if change is None:
                listed = True
            elif listed and not self.shown:
                continue
            elif self.twice:
                seen.append(change)
                yield from reversed(seen)
            yield change


class Namespace:
    """A world whose Jobs end well by themselves, and controllers that work in it."""

    def __init__(self) -> None:
        self.world = World()
        self.hints = Hints(self.world.cluster)
        self.changed = threading.Event()

    @contextmanager
    def controller(self, identity: str = "a", *, resync_seconds: int = 300) -> Iterator[Controller]:
        planner = Planner(lambda _url: self.world.store)
        settings = Settings(workers=2, resync_seconds=resync_seconds, identity=identity)
        controller = Controller(self.hints, planner, settings)
        thread = threading.Thread(target=controller.run)
        thread.start()
        try:
            yield controller
        finally:
            controller.stop()
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    @contextmanager
    def kubelet(self) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                for change in self.world.cluster.watch("jobs", 1):
                    if change is None or change.deleted:
                        continue
                    name = change.resource["metadata"]["name"]
                    if not (change.resource.get("status") or {}).get("conditions"):
                        self._work(name)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE_SECONDS)

    def _work(self, job: str) -> None:
        world = self.world
        try:
            publish(world.cluster, world.store, job)
        except Refused as refused:
            fail(world.cluster, job, world.now, code=refused.code, message=str(refused))
        else:
            complete(world.cluster, job, world.now)

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until something holds; the changes of the cluster wake it."""
        for _ in range(PATIENCE_SECONDS * 10):
            if condition():
                return
            self.changed.wait(0.1)
        raise AssertionError("it did not happen")

    def succeeded(self, name: str = "toy") -> bool:
        return self.world.status(name).get("verdict") == "Promoted"


@pytest.fixture
def namespace() -> Namespace:
    return Namespace()


def test_runs_go_to_their_end_by_themselves(namespace: Namespace) -> None:
    with namespace.kubelet(), namespace.controller():
        for seed in range(3):
            namespace.world.submit(f"toy-{seed}", config={"seed": seed})
        for seed in range(3):
            namespace.wait(lambda seed=seed: namespace.succeeded(f"toy-{seed}"))
    assert len(namespace.world.jobs()) >= 16


def test_lost_events_cost_time_and_nothing_else(namespace: Namespace) -> None:
    namespace.hints.shown = False
    with namespace.kubelet(), namespace.controller(resync_seconds=1):
        namespace.world.submit()
        namespace.wait(namespace.succeeded)
    assert len(namespace.world.jobs()) == 8


def test_doubled_and_stale_events_do_no_harm(namespace: Namespace) -> None:
    namespace.hints.twice = True
    with namespace.kubelet(), namespace.controller():
        namespace.world.submit()
        namespace.wait(namespace.succeeded)
    assert len(namespace.world.jobs()) == 8


def test_watches_that_fail_are_begun_again(namespace: Namespace) -> None:
    namespace.hints.failures = 4
    with namespace.kubelet(), namespace.controller():
        namespace.world.submit()
        namespace.wait(namespace.succeeded)


def test_a_call_that_fails_is_made_again(namespace: Namespace) -> None:
    with namespace.kubelet(), namespace.controller():
        namespace.world.submit()
        for call in (0, 3, 5):
            namespace.hints.arm(call, "unheard")
        namespace.wait(namespace.succeeded)


def test_a_bug_that_one_run_meets_does_not_stop_the_others(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = namespace.world.cluster.get

    def broken(kind: str, name: str) -> Any:
        if name == "broken":
            raise KeyError("a bug")
        return get(kind, name)

    monkeypatch.setattr(namespace.world.cluster, "get", broken)
    with namespace.kubelet(), namespace.controller() as controller:
        namespace.world.submit("broken")
        namespace.world.submit()
        namespace.wait(namespace.succeeded)
        assert controller.problems() == []
        text = controller.metrics.render()[1].decode()
    assert 'selfalign_reconcile_errors_total{error="KeyError"}' in text


def test_of_two_replicas_one_acts_and_the_other_takes_over_when_it_ends(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.controller.loop.RETRY_SECONDS", 0.1)
    with namespace.kubelet(), namespace.controller("a") as first:
        namespace.wait(first.lease.held)
        with namespace.controller("b") as second:
            namespace.world.submit()
            namespace.wait(namespace.succeeded)
            assert first.lease.held()
            assert not second.lease.held()
            assert second.problems() == []
            first.stop()
            namespace.wait(second.lease.held)
            namespace.world.submit("later")
            namespace.wait(lambda: namespace.succeeded("later"))


def test_a_replica_whose_lease_is_taken_ends_and_says_so(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.controller.loop.RETRY_SECONDS", 0.1)
    with namespace.controller("a") as controller:
        namespace.wait(controller.lease.held)

        def take() -> bool:
            lease = namespace.world.cluster.get("leases", "selfalign-controller")
            lease["spec"]["holderIdentity"] = "b"
            try:
                namespace.world.cluster.replace("leases", lease)
            except Exception:  # noqa: BLE001 - it was renewed in between
                return False
            return True

        namespace.wait(take)
        namespace.wait(lambda: controller.lease.lost)
        assert controller.problems() == ["the lease is lost"]
        namespace.world.submit()
        assert not namespace.world.status()


def test_a_run_that_waits_for_a_stage_goes_on_as_soon_as_it_is_deployed(
    namespace: Namespace,
) -> None:
    cluster = namespace.world.cluster
    found = cluster.get("cronjobs", "selfalign-align")
    cluster.delete("cronjobs", "selfalign-align", uid=found["metadata"]["uid"])
    with namespace.kubelet(), namespace.controller() as controller:
        namespace.world.submit()
        namespace.wait(lambda: controller.runs.in_phase("NotDeployed") == ["toy"])
        for _ in range(20):  # it has been waiting for long
            controller.queue.retry("toy")
        cluster.create("cronjobs", template("align"))
        namespace.wait(namespace.succeeded)


def test_a_deleted_run_is_forgotten(namespace: Namespace) -> None:
    with namespace.controller() as controller:
        run = namespace.world.submit()
        namespace.wait(namespace.world.jobs)
        assert controller.runs.unfinished() == 1
        namespace.world.cluster.delete("alignmentruns", "toy", uid=run["metadata"]["uid"])
        namespace.wait(lambda: controller.runs.unfinished() == 0)


def test_it_is_ready_once_everything_was_listed(namespace: Namespace) -> None:
    with namespace.controller() as controller:
        namespace.wait(lambda: controller.missing() == [] and controller.lease.held())
        assert controller.problems() == []


def test_runs_that_have_ended_are_not_looked_at_again(namespace: Namespace) -> None:
    with namespace.kubelet(), namespace.controller():
        namespace.world.submit()
        namespace.wait(namespace.succeeded)
    namespace.hints.calls.clear()
    with namespace.controller("b") as controller:
        namespace.wait(lambda: controller.missing() == [] and controller.lease.held())
        namespace.wait(lambda: controller.queue.depth == 0)
    looked = [call for call in namespace.hints.calls if call[:2] == ("get", "configmaps")]
    assert looked == []


def test_a_silent_thread_has_stalled() -> None:
    now = 0.0
    beats = Heartbeats(clock=lambda: now)
    beats.beat("worker-0", 300)
    beats.beat("watch-jobs", 400)
    now = 350
    assert beats.stalled() == ["worker-0"]
    beats.beat("worker-0", 300)
    assert beats.stalled() == []
    now = 1000
    beats.stop("worker-0")
    assert beats.stalled() == ["watch-jobs"]


def fetch(port: int, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_readiness_and_metrics_are_served(namespace: Namespace) -> None:
    namespace.world.submit()
    namespace.world.to_the_end()
    with namespace.controller() as controller:
        controller.metrics.count_attempt(Attempt("align", "k", 1, "Failed", "disrupted"))
        namespace.wait(lambda: controller.missing() == [] and controller.lease.held())
        troubles: list[str] = []
        server = HealthServer(
            0, controller.metrics, lambda: controller.problems() + troubles, controller.missing
        )
        assert fetch(server.port, "/healthz") == (200, "ok\n")
        assert fetch(server.port, "/readyz") == (200, "ok\n")
        assert fetch(server.port, "/other")[0] == 404
        status, text = fetch(server.port, "/metrics")
        troubles.append("worker-0 has stalled")
        assert fetch(server.port, "/healthz") == (503, "worker-0 has stalled\n")
        server.close()
    assert status == 200
    for line in (
        'selfalign_runs{phase="Succeeded"} 1.0',
        "selfalign_queue_depth ",
        "selfalign_leader ",
        'selfalign_attempts_total{cause="disrupted",stage="align"} 1.0',
        "selfalign_reconcile_seconds_count",
        "selfalign_last_success_timestamp_seconds 1.79",
    ):
        assert line in text


def test_the_time_of_the_last_success_is_left_out_until_it_means_something() -> None:
    runs = RunTable()
    assert runs.last_success() is None
    run = new_run("toy", "ns", {})
    run["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
    runs.seen(run)
    created = runs.last_success()
    assert created is not None
    succeeded = [{"type": "Succeeded", "status": "True"}]
    runs.seen({**run, "status": {"completedAt": "2026-11-01T05:00:00Z", "conditions": succeeded}})
    assert runs.last_success() == created + 5 * 3600
    runs.gone("toy")
    assert runs.last_success() == created + 5 * 3600
