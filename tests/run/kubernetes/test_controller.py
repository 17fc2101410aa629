"""The controller with its threads: events lost, doubled and late, errors, an orderly end."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from selfalign.errors import ConfigurationError
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import Change, ClusterUnavailable, Resource
from selfalign.run.executors.kubernetes.controller import Controller, open_shared_store
from selfalign.run.executors.kubernetes.server import Metrics, Server
from selfalign.run.executors.kubernetes.serving import Reason, Target, Wanted
from selfalign.run.record import Attempt
from selfalign.store.pointer import move_pointer, read_pointer

from .unreliable import Unreliable
from .worlds import Refused, World, complete, fail, publish, template

CONTROLLER = "selfalign.run.executors.kubernetes.controller"
ERRORS = "selfalign_reconcile_errors_total"
PATIENCE_SECONDS = 60  # what a loaded machine may take; nothing waits this long when all is well


class Hints(Unreliable):
    """A cluster whose watches are unreliable.

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

    @contextmanager
    def controller(
        self, *, resync_seconds: float = 300, serving: Target | None = None
    ) -> Iterator[Controller]:
        opener = lambda _url: self.world.store  # noqa: E731
        controller = Controller(self.hints, opener, resync_seconds=resync_seconds, serving=serving)
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
                for change in self.world.cluster.watch("jobs", 0.05):
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
        """Wait until something holds."""
        for _ in range(PATIENCE_SECONDS * 50):
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError("it did not happen")

    def succeeded(self, name: str = "toy") -> bool:
        return self.world.status(name).get("verdict") == "Promoted"

    def to_the_end(self, *, runs: int = 1, **options: Any) -> None:
        """So many runs are submitted and go to their end; one alone makes 8 Jobs."""
        with self.kubelet(), self.controller(**options):
            for seed in range(runs):
                self.world.submit(f"toy-{seed}", config={"seed": seed})
            for seed in range(runs):
                self.wait(partial(self.succeeded, f"toy-{seed}"))
        assert runs > 1 or len(self.world.jobs()) == 8

    def make_servable(self) -> None:
        """Give the current model a directory, as `promote` does with real models."""
        current = read_pointer(self.world.store)
        model = current.pointer.model
        model = model.model_copy(update={"directory": f"models/{model.digest}"})
        move_pointer(self.world.store, current.pointer.model_copy(update={"model": model}), current)


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    for name in ("_POLL_SECONDS", "STEP_SECONDS", "_BESIDE_SECONDS"):
        monkeypatch.setattr(f"{CONTROLLER}.{name}", 0.05)
    return Namespace()


def test_runs_go_to_their_end_by_themselves(namespace: Namespace) -> None:
    namespace.to_the_end(runs=3)
    assert len(namespace.world.jobs()) >= 16


def test_lost_events_cost_time_and_nothing_else(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.hints.shown = False
    monkeypatch.setattr(f"{CONTROLLER}.backoff_seconds", lambda *_: 0.05)  # after a short watch
    namespace.to_the_end(resync_seconds=0.1)


def test_doubled_and_stale_events_do_no_harm(namespace: Namespace) -> None:
    namespace.hints.twice = True
    namespace.to_the_end()


def test_watches_that_fail_are_begun_again(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{CONTROLLER}.backoff_seconds", lambda *_: 0.05)
    namespace.hints.failures = 4
    namespace.to_the_end()


def test_a_call_that_fails_is_made_again(namespace: Namespace) -> None:
    with namespace.kubelet(), namespace.controller():
        namespace.world.submit()
        for call in (0, 3, 5):
            namespace.hints.arm(call, "unheard")
            namespace.wait(namespace.hints.fired)
        namespace.wait(namespace.succeeded)


class SlowAndBroken:
    """What serves: it answers nothing until it is released, and then has a bug."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def follow(self, wanted: Wanted, was: Resource | None) -> tuple[Reason, str]:
        self.asked.set()
        self.released.wait(PATIENCE_SECONDS)
        raise KeyError("a bug")


def test_serving_that_is_slow_or_fails_delays_no_run_and_goes_on_by_itself(
    namespace: Namespace,
) -> None:
    target = SlowAndBroken()
    with namespace.kubelet(), namespace.controller(serving=target) as controller:
        namespace.world.submit()
        namespace.wait(namespace.succeeded)
        namespace.make_servable()
        namespace.wait(target.asked.is_set)
        namespace.world.submit("another", config={"seed": 1})
        namespace.wait(lambda: namespace.succeeded("another"))
        errors = partial(
            controller.metrics.registry.get_sample_value, ERRORS, {"error": "KeyError"}
        )
        before = controller.metrics.standing
        assert errors() is None
        target.released.set()
        namespace.wait(lambda: controller.metrics.standing != before)  # it is of the other's model
        assert errors() == 1


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
        count = controller.metrics.registry.get_sample_value(
            "selfalign_reconcile_errors_total", {"error": "KeyError"}
        )
    assert count


def test_two_controllers_at_once_make_each_job_once(namespace: Namespace) -> None:
    with namespace.controller():
        namespace.to_the_end()


def test_a_run_that_waits_for_a_stage_goes_on_as_soon_as_it_is_deployed(
    namespace: Namespace,
) -> None:
    cluster = namespace.world.cluster
    found = cluster.get("cronjobs", "selfalign-align")
    cluster.delete("cronjobs", "selfalign-align", uid=found["metadata"]["uid"])
    with namespace.kubelet(), namespace.controller() as controller:
        namespace.world.submit()
        namespace.wait(lambda: controller._phases.get("toy") == "NotDeployed")
        controller._failures["toy"] = 100  # it has been waiting for long
        cluster.create("cronjobs", template("align"))
        namespace.wait(namespace.succeeded)


def test_a_queued_run_begins_when_another_ends(namespace: Namespace) -> None:
    namespace.world = World(policy={"overrides": ["seed"], "maxActiveRuns": 1})
    namespace.hints = Hints(namespace.world.cluster)
    namespace.to_the_end(runs=3)


def test_a_deleted_run_is_forgotten(namespace: Namespace) -> None:
    with namespace.controller() as controller:
        run = namespace.world.submit()
        namespace.wait(namespace.world.jobs)
        namespace.wait(lambda: controller._phases)
        namespace.world.cluster.delete("alignmentruns", "toy", uid=run["metadata"]["uid"])
        namespace.wait(lambda: not controller._phases)


def test_a_new_run_does_not_wait_for_those_that_have_ended(namespace: Namespace) -> None:
    world = namespace.world
    world.submit("first")
    world.to_the_end("first")
    ended = world.run("first")["status"]
    for number in range(200):
        made = world.submit(f"old-{number}")
        world.cluster.patch_status(made, ended)
    namespace.hints.calls.clear()
    world.submit()
    with namespace.controller() as controller:
        namespace.wait(world.status)
        namespace.wait(lambda: controller.missing() == [])
    read = {name for verb, kind, name in namespace.hints.calls if kind == "controllerrevisions"}
    assert read
    assert not any(name.startswith(("old", "first")) for name in read)


def test_watches_that_end_at_once_are_not_begun_many_times_a_second(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: Counter[str] = Counter()

    def watch(kind: str, *_arguments: object) -> Iterator[Change | None]:
        begun[kind] += 1
        yield None

    monkeypatch.setattr(namespace.hints, "watch", watch)
    with namespace.controller():
        threading.Event().wait(1.5)
    assert 1 <= begun["jobs"] <= 4


def fetch(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_readiness_and_metrics_are_served(namespace: Namespace) -> None:
    namespace.world.submit()
    namespace.world.to_the_end()
    with namespace.controller() as controller:
        attempt = Attempt(stage="align", key="k", number=1, condition="Failed", cause="disrupted")
        controller.metrics.count_attempt(attempt)
        namespace.wait(lambda: controller.missing() == [])
        wrong: list[str] = []
        server = Server(
            0, controller.metrics, lambda: controller.problems() + wrong, controller.missing
        )
        assert fetch(server.port, "/healthz") == (200, "ok\n")
        assert fetch(server.port, "/readyz") == (200, "ok\n")
        assert fetch(server.port, "/other")[0] == 404
        if socket.has_dualstack_ipv6():
            assert fetch(server.port, "/healthz", host="[::1]") == (200, "ok\n")
        status, text = fetch(server.port, "/metrics")
        wrong.append("no step has ended for 400 s")
        assert fetch(server.port, "/healthz") == (503, "no step has ended for 400 s\n")
        server.close()
    assert status == 200
    for line in (
        'selfalign_runs{phase="Succeeded"} 1.0',
        "selfalign_queue_depth ",
        'selfalign_attempts_total{cause="disrupted",stage="align"} 1.0',
        "selfalign_reconcile_seconds_count",
        "selfalign_last_success_timestamp_seconds 1.79",
    ):
        assert line in text


def test_a_step_that_does_not_end_is_told() -> None:
    world = World()
    controller = Controller(world.cluster, lambda _url: world.store)
    assert controller.problems() == []
    controller._beat -= 1000
    (problem,) = controller.problems()
    assert problem.startswith("no step has ended for 10")


def test_the_time_of_the_last_success_is_left_out_until_it_means_something() -> None:
    metrics = Metrics(Counter, lambda: 0)

    def last() -> float | None:
        name = "selfalign_last_success_timestamp_seconds"
        return metrics.registry.get_sample_value(name)

    assert last() is None
    metrics.created("2026-11-01T00:00:00Z")
    created = last()
    assert created is not None
    metrics.succeeded("2026-11-01T05:00:00Z")
    metrics.created("2026-11-02T00:00:00Z")
    assert last() == created + 5 * 3600


def test_a_directory_is_no_store_for_pods() -> None:
    with pytest.raises(ConfigurationError, match="pods share no directory"):
        open_shared_store("/scratch/store")
