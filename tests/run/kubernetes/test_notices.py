"""Notices of runs on a cluster: the real controller, a real receiver, restarts in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from selfalign.config import NotifyConfig
from selfalign.run import notify
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.run.executors.kubernetes.notices import Notices
from selfalign.run.notify import NotDelivered, Notice
from tests.run.receiver import Answer, Receiver

from .test_controller import Hints, Namespace
from .worlds import World, fail, platform_values

TARGETS = [{"url_variable": "HOOK"}, {"url_variable": "CHAT", "format": "slack"}]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Takes whatever comes, unless a test gives it other answers."""
    server = Receiver()
    monkeypatch.setenv("HOOK", server.url)
    monkeypatch.setattr(notify, "FIRST_WAIT_SECONDS", 0.05)
    yield server
    server.close()


def a_world(targets: list[dict[str, str]] = TARGETS[:1]) -> World:
    return World(platform=platform_values(notify=targets))


def test_a_notice_arrives_once_though_the_receiver_fails_is_slow_and_the_controller_restarts(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "POST_SECONDS", 1.0)
    receiver.answers.extend([Answer(503, {"Retry-After": "0"}), Answer(500), Answer(slow=True)])
    namespace = Namespace()
    namespace.world = world = a_world()
    namespace.hints = Hints(world.cluster)
    world.submit()
    with capture_logs() as logs, namespace.kubelet():
        for failures in (1, 3):  # the second controller meets the rest
            with namespace.controller():
                namespace.wait(lambda failures=failures: len(receiver.requests) >= failures)
        with namespace.controller():
            namespace.wait(lambda: world.status().get("notified"))
        with namespace.controller():
            namespace.wait(lambda: not receiver.answers)
            Notices(world.cluster, lambda _url: world.store).step()
    assert len(receiver.requests) >= 4  # 503, 500, too late, well
    (key,) = receiver.taken
    assert {each.headers["Idempotency-Key"] for each in receiver.requests} == {key}
    assert {each.body["id"] for each in receiver.requests} == {key}
    assert world.status()["notified"] == {"HOOK": key}
    assert world.status()["verdict"] == "Promoted"  # what was there stays
    assert "a-secret-path" not in repr(logs) + repr(world.run()) + repr(world.events())


def test_a_cloud_event_says_verdict_answers_gpu_hours_and_the_command(receiver: Receiver) -> None:
    world = a_world()
    give_gpus(world, "selfalign-align", 4)
    world.submit()
    world.to_the_end()
    Notices(world.cluster, lambda _url: world.store, clock=lambda: world.now).step()
    (request,) = receiver.requests
    event, data = request.body, request.body["data"]
    assert request.headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert (event["specversion"], event["type"]) == ("1.0", "io.selfalign.run.Promoted")
    assert event["source"] == "/namespaces/selfalign/alignmentruns/toy"
    assert event["time"] == world.status()["completedAt"]
    assert data["message"] == "better than the base"
    assert data["report"] == "selfalign report toy -n selfalign"
    assert data["answers"]["most_changed"][0]["item"] == "h1"
    held = {a["stage"]: a["gpus"] for a in world.status()["attempts"]}
    assert (held["align"], held["promote"]) == (12, 0)  # three shards at once, of 4 GPUs each
    assert data["gpu_hours"] == 0.0  # the clock stands still here


def give_gpus(world: World, template: str, count: int) -> None:
    found = world.cluster.get("cronjobs", template)
    (container,) = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    container["resources"] = {"limits": {"nvidia.com/gpu": count}}
    world.cluster.replace("cronjobs", found)


def test_a_run_that_failed_is_told_too_and_its_deletion_waits_for_that(receiver: Receiver) -> None:
    world = a_world()
    notices = Notices(world.cluster, lambda _url: world.store, clock=lambda: world.now)
    world.reconciler.is_owed = notices.owes
    world.submit(ttlSecondsAfterFinished=0)
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=2, message="seeds wrong\nremedy: mend")
    world.step()
    assert world.step(after=1) == 30  # owed
    notices.step()
    data = receiver.requests[-1].body["data"]
    assert (data["verdict"], data["exit_code"], data["remedy"]) == ("Failed", 2, "mend")
    assert "seeds wrong" in data["message"]
    world.step(after=1)
    assert world.cluster.list("alignmentruns") == []


def test_a_target_that_fails_does_not_keep_the_notice_from_another() -> None:
    world = a_world(TARGETS)
    world.submit()
    world.to_the_end()
    sent: list[str] = []

    def deliver(notice: Notice, target: NotifyConfig) -> None:
        sent.append(target.url_variable)
        if target.url_variable == "HOOK":
            raise NotDelivered("HTTP status 503", 40.0)

    now = [0.0]
    notices = Notices(
        world.cluster, lambda _url: world.store, clock=lambda: world.now, monotonic=lambda: now[0],
        deliver=deliver,
    )  # fmt: skip
    assert notices.step() == 30
    assert list(world.status()["notified"]) == ["CHAT"]
    now[0] = 39.0
    assert notices.step() == 1.0  # as the receiver asked
    now[0] = 40.0
    notices.step()
    assert sent == ["HOOK", "CHAT", "HOOK"]
    world.now += timedelta(days=2)
    now[0] = 9999.0
    notices.step()
    assert sent[3:] == []
    assert ("NoticeNotDelivered", "nobody took the notice for HOOK within 1 day, 0:00:00") in (
        world.events()
    )


def test_a_status_that_cannot_hold_it_does_not_repeat_the_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = a_world()
    world.submit()
    world.to_the_end()
    patch_status, sent = world.cluster.patch_status, []

    def pruned(run: Resource, status: Resource) -> Resource:
        kept = {name: value for name, value in status.items() if name != "notified"}
        return patch_status(run, kept)

    monkeypatch.setattr(world.cluster, "patch_status", pruned)
    notices = Notices(
        world.cluster, lambda _url: world.store, clock=lambda: world.now,
        deliver=lambda notice, _target: sent.append(notice.id),
    )  # fmt: skip
    for _ in range(3):
        notices.step()
    assert len(sent) == 1
    monkeypatch.undo()
    notices.step()
    assert world.status()["notified"] == {"HOOK": sent[0]}
    assert len(sent) == 1


def test_a_run_written_meanwhile_keeps_what_the_other_wrote() -> None:
    world = a_world()
    world.submit()
    world.to_the_end()

    def deliver(_notice: Notice, _target: NotifyConfig) -> None:
        run = world.run()
        world.cluster.patch_status(run, {**run["status"], "message": "written meanwhile"})

    notices = Notices(world.cluster, lambda _url: world.store, clock=lambda: world.now)
    notices.deliver = deliver
    notices.step()
    assert world.status()["message"] == "written meanwhile"
    assert world.status()["notified"]
