"""Runs on a cluster that wait for a person: they hold up nobody, and end when he has decided."""

from __future__ import annotations

import pytest

from selfalign.run.executors.kubernetes.cluster import ClusterDenied, annotations_of
from selfalign.run.executors.kubernetes.crd import NIGHTLY_LABEL, PLURAL
from selfalign.run.executors.kubernetes.notices import Notices
from selfalign.run.notify import Notice
from selfalign.stages.approval import Approval, decide_on
from selfalign.store.pointer import read_pointer

from .worlds import World, platform_values

MANUAL = {"approval": "manual"}


@pytest.fixture
def world() -> World:
    notify = [{"url_variable": "HOOK"}]
    policy = {"overrides": ["seed", "promote"], "maxActiveRuns": 1}
    return World(platform=platform_values(promote=MANUAL, notify=notify), policy=policy)


def to_approval(world: World, name: str = "toy") -> None:
    for _ in range(30):
        world.step(name, after=1)
        for job in world.cluster.list("jobs"):
            if not (job.get("status") or {}).get("conditions"):
                world.finish(job["metadata"]["name"])
        if world.condition("Progressing", name)["reason"] == "AwaitingApproval":
            return
    raise AssertionError(world.status(name).get("message"))


def decide(world: World, name: str = "toy", *, approved: bool = True) -> Approval:
    key = world.stage("promote", name)["key"]
    return decide_on(world.store, name, key, approved=approved, by="anna", reason="seen")


def test_a_run_waits_without_serving_anything_and_is_promoted_once_approved(world: World) -> None:
    world.submit(maxAttempts=1)
    to_approval(world)
    world.restart()
    assert world.step(after=60) == 20
    assert world.jobs()[-1] == "toy-promote-1"
    assert read_pointer(world.store) is None
    assert "verdict" not in world.status()
    assert world.stage("promote")["phase"] == "Pending"
    told = [message for reason, message in world.events() if reason == "AwaitingApproval"]
    assert told == ["the gate passed the final model; a person decides whether it is promoted"]
    decide(world)
    world.restart()
    world.step(after=60)
    assert "toy-promote-2" in world.jobs()  # an attempt that asked is not charged
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"
    assert read_pointer(world.store) is not None


@pytest.mark.parametrize(("approved", "decision"), [(True, "approved"), (False, "rejected")])
def test_a_run_is_annotated_with_who_decided_what_and_when(
    world: World, approved: bool, decision: str
) -> None:
    world.submit()
    to_approval(world)
    found = decide(world, approved=approved)
    assert "selfalign.io/decision" not in annotations_of(world.cluster.get(PLURAL, "toy"))
    world.to_the_end()
    assert annotations_of(world.cluster.get(PLURAL, "toy")) == {
        "selfalign.io/decision": decision,
        "selfalign.io/decided-by": "anna",
        "selfalign.io/decided-at": found.at,
    }


def test_a_controller_that_may_not_annotate_ends_the_run_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(kind: str, name: str, change: object) -> None:
        raise ClusterDenied(f"may not patch {kind}")

    world.submit()
    to_approval(world)
    decide(world)
    monkeypatch.setattr(world.cluster, "patch", denied)
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_a_rejected_run_ends_with_who_and_why(world: World) -> None:
    world.submit()
    to_approval(world)
    decide(world, approved=False)
    world.to_the_end()
    assert world.status()["verdict"] == "Rejected"
    assert world.condition("Succeeded")["reason"] == "Rejected"
    assert "Rejected by anna at" in world.status()["message"]
    assert read_pointer(world.store) is None


def test_a_run_that_waits_for_a_person_holds_up_no_other(world: World) -> None:
    world.submit("first", labels={NIGHTLY_LABEL: "true"})
    to_approval(world, "first")
    world.submit("second", labels={NIGHTLY_LABEL: "true"}, config={"seed": 1})
    to_approval(world, "second")


def test_approving_one_ends_the_others_that_waited_without_judging_them_anew(world: World) -> None:
    for seed in range(2):
        world.submit(f"toy-{seed}", config={"seed": seed})
        to_approval(world, f"toy-{seed}")
    decide(world, "toy-1")
    world.to_the_end("toy-1")
    before = world.jobs()
    world.step("toy-0", after=60)
    assert world.status("toy-0")["exitCode"] == 75
    assert world.condition("Failed", "toy-0")["reason"] == "Superseded"
    assert world.jobs() == before


def test_no_policy_lets_a_run_do_without_approval(world: World) -> None:
    world.submit(config={"promote": {"approval": "automatic"}})
    world.step()
    assert "spec.config.promote.approval: a run may not set this" in world.status()["message"]


def test_waiting_and_the_end_are_told_apart(world: World) -> None:
    sent: list[Notice] = []
    notices = Notices(
        world.cluster, lambda _url: world.store, clock=lambda: world.now,
        deliver=lambda notice, _target: sent.append(notice),
    )  # fmt: skip
    world.submit()
    to_approval(world)
    notices.step()
    notices.step()
    decide(world)
    world.to_the_end()
    notices.step()
    assert [notice.verdict for notice in sent] == ["AwaitingApproval", "Promoted"]
    decided = (
        "selfalign approve toy -n selfalign, or selfalign reject toy -n selfalign --reason WHY"
    )
    assert (sent[0].remedy, sent[1].remedy) == (decided, None)
    assert sent[0].answers.most_changed[0].item == "h1"  # of the request
    assert sent[0].id != sent[1].id
