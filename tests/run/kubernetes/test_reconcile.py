"""One step of a run after the other, in the situations of which each has a rule of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from selfalign.errors import SelfAlignError, StoreDenied, StoreUnavailable
from selfalign.run.executors.kubernetes.api import Cluster
from selfalign.run.executors.kubernetes.cluster import (
    ClusterDenied,
    ClusterRejected,
    ClusterUnavailable,
    Resource,
)
from selfalign.run.executors.kubernetes.crd import NIGHTLY_LABEL
from selfalign.store.local import LocalStore
from selfalign.store.pointer import read_pointer

from .unreliable import Killed, Unreliable
from .worlds import DictStore, World, complete, ended_pod, fail, platform_values, publish, template

NIGHTLY = {NIGHTLY_LABEL: "true"}


@pytest.fixture
def world() -> World:
    return World()


def create_fails(error: SelfAlignError) -> Callable[[Cluster], Cluster]:
    """A cluster that refuses to create Jobs."""

    class Refusing(Unreliable):
        def create(self, kind: str, body: Resource) -> Resource:
            if kind == "jobs":
                raise error
            return super().create(kind, body)

    return Refusing


def test_a_run_goes_through_every_stage_to_promotion(tmp_path: Path) -> None:
    world = World(store=LocalStore(tmp_path / "store"))
    world.submit()
    world.to_the_end()
    assert world.status()["progress"] == "8/8"
    assert world.status()["verdict"] == "Promoted"
    assert world.condition("Progressing")["reason"] == "Succeeded"
    assert [row["phase"] for row in world.status()["stages"]] == ["Done"] * 8
    assert len(world.jobs()) == 8
    assert read_pointer(world.store) is not None
    reasons = [reason for reason, _ in world.events()]
    assert reasons.count("StageStarted") == 8
    assert reasons.count("RunSucceeded") == 1


def test_an_identical_run_ends_by_reuse_at_the_first_look(world: World) -> None:
    world.submit()
    world.to_the_end()
    world.submit("again")
    world.step("again")
    assert world.status("again")["verdict"] == "Promoted"
    assert {row["phase"] for row in world.status("again")["stages"]} == {"Reused"}
    assert not [job for job in world.jobs() if job.startswith("again")]


def test_stage_templates_bring_their_own_sections_and_the_run_wins(world: World) -> None:
    world.submit(config={"elaborate": {"num_shards": 5}})
    world.step()
    text = world.cluster.get("controllerrevisions", "toy-config")["data"]["config.yaml"]
    sections = [text.split(f"\n{name}:")[1] for name in ("align", "elaborate")]
    assert "num_shards: 3" in sections[0].split("\nengrave")[0]
    assert "num_shards: 5" in sections[1].split("\nclone")[0]


def test_what_is_edited_or_deployed_later_is_for_later_runs(world: World) -> None:
    world.submit()
    world.step()
    key = world.stage("instruct")["key"]
    world.cluster.patch("alignmentruns", "toy", {"spec": {"config": {"seed": 7}}})
    world.cluster.patch(
        "configmaps", "selfalign-config", {"data": {"config.yaml": "store: elsewhere"}}
    )
    world.restart()
    world.step()
    assert world.stage("instruct")["key"] == key


def test_a_wrong_configuration_ends_the_run_with_the_key_and_a_remedy(world: World) -> None:
    world.submit(config={"align": {"temprature": 1}})
    world.step()
    assert world.condition("Failed")["status"] == "True"
    assert world.condition("Failed")["reason"] == "ConfigurationError"
    assert world.condition("Accepted")["status"] == "False"
    assert "temprature" in world.status()["message"]
    assert world.status()["remedy"]
    assert world.status()["exitCode"] == 2
    assert world.jobs() == []


def test_shards_of_a_stage_that_has_none_are_refused_before_anything_runs(world: World) -> None:
    world.submit(config={"curate": {"num_shards": 2}})
    world.step()
    assert "curate cannot be sharded" in world.status()["message"]


def test_a_run_waits_for_a_stage_that_is_not_deployed_and_goes_on_by_itself(world: World) -> None:
    found = world.cluster.get("cronjobs", "selfalign-align")
    world.cluster.delete("cronjobs", "selfalign-align", uid=found["metadata"]["uid"])
    world.submit()
    with pytest.raises(SelfAlignError):
        world.step()
    assert world.condition("Progressing")["reason"] == "NotDeployed"
    assert "make deploy-stage STAGE=align" in world.status()["remedy"]
    world.cluster.create("cronjobs", template("align"))
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_a_permanent_failure_ends_the_run_and_says_why(world: World) -> None:
    world.submit()
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=2, message="seeds wrong\nremedy: mend")
    world.step()
    assert world.condition("Failed")["reason"] == "PermanentFailure"
    assert world.status()["message"] == "instruct: seeds wrong"
    assert (world.status()["remedy"], world.status()["exitCode"]) == ("mend", 2)
    assert world.status()["stage"] == "instruct"
    assert world.stage("instruct")["phase"] == "Failed"
    assert ("PermanentFailure", "instruct: seeds wrong; remedy: mend") in world.events()


def test_what_may_pass_is_tried_again_after_a_while_and_then_given_up(world: World) -> None:
    world.submit(maxAttempts=2)
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=69, message="store down")
    again = world.step(after=10)
    assert again == 20
    assert world.condition("Progressing")["reason"] == "Waiting"
    assert "the last one: store down" in world.status()["message"]
    assert world.jobs() == ["toy-instruct-1"]
    world.step(after=20)
    assert world.jobs() == ["toy-instruct-1", "toy-instruct-2"]
    fail(world.cluster, "toy-instruct-2", world.now, code=69, message="store down")
    world.step()
    assert world.condition("Failed")["reason"] == "AttemptsExhausted"
    assert [attempt.cause for attempt in world.ended] == ["temporary", "temporary"]


def test_a_deleted_job_is_started_anew_at_once_and_not_charged(world: World) -> None:
    world.submit(maxAttempts=1)
    for number in (1, 2):
        world.step(after=3600)
        world.step()
        name = f"toy-instruct-{number}"
        world.cluster.delete("jobs", name, uid=world.cluster.get("jobs", name)["metadata"]["uid"])
    assert world.step() == 2  # the second time in a row it waits a little
    world.step(after=2)
    assert world.jobs() == ["toy-instruct-3"]
    assert world.stage("instruct")["attempts"] == 1
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_a_job_complete_whose_manifest_is_missing_counts_as_a_failed_attempt(world: World) -> None:
    world.submit(maxAttempts=1)
    world.step()
    complete(world.cluster, "toy-instruct-1", world.now)
    world.step()
    assert world.condition("Failed")["reason"] == "AttemptsExhausted"
    assert "without publishing" in world.status()["message"]


def test_a_job_that_publishes_and_completes_during_the_look_is_not_run_again(world: World) -> None:
    """Manifests are read after Jobs: what is seen Complete has published before."""
    unreliable = world.api = Unreliable(world.cluster)
    world.restart()
    world.submit()
    world.step()
    count = len(unreliable.calls)
    world.step()
    calls = unreliable.calls[count:]
    for call in range(len(calls)):
        fresh = World()
        spy = fresh.api = Unreliable(fresh.cluster)
        fresh.restart()
        fresh.submit(maxAttempts=1)
        fresh.step()
        spy.arm(call, "meanwhile", lambda fresh=fresh: fresh.finish("toy-instruct-1"))
        fresh.step()
        assert "toy-instruct-2" not in fresh.jobs(), calls[call]
        assert fresh.condition("Progressing")["status"] == "True", calls[call]


@pytest.mark.parametrize("fault", ["killed-before", "killed-after"])
def test_a_controller_killed_as_it_creates_a_job_starts_or_adopts_the_same_number(
    world: World, fault: str
) -> None:
    unreliable = world.api = Unreliable(world.cluster)
    world.restart()
    world.submit()
    calls = _calls_until("create", "jobs", "toy-instruct-1")
    unreliable.arm(calls, fault)
    with pytest.raises(Killed):
        world.step()
    world.restart()
    for _ in range(2):
        world.step()
        assert world.jobs() == ["toy-instruct-1"]
        assert world.stage("instruct")["attempts"] == 1


def _calls_until(*wanted: str) -> int:
    """How many calls a look at a new run makes before this one, by trying it on a copy."""
    rehearsal = World()
    spy = rehearsal.api = Unreliable(rehearsal.cluster)
    rehearsal.restart()
    rehearsal.submit()
    rehearsal.step()
    return spy.calls.index(wanted)


def test_of_two_controllers_that_decide_at_once_one_starts_nothing(world: World) -> None:
    world.submit()
    unreliable = world.api = Unreliable(world.cluster)
    world.restart()
    second = World(store=world.store)
    second.cluster = second.api = world.cluster
    second.restart()
    calls = _calls_until("status", "alignmentruns", "toy")
    unreliable.arm(calls, "meanwhile", lambda: second.reconciler.reconcile("toy"))
    assert world.step() == 0.2
    assert world.jobs() == ["toy-instruct-1"]
    created = [call for call in unreliable.calls if call[:2] == ("create", "jobs")]
    assert created == []


def test_a_run_made_anew_waits_for_what_is_left_of_the_one_before(world: World) -> None:
    world.submit()
    world.step()
    world.cluster.delete("alignmentruns", "toy", uid=world.run()["metadata"]["uid"])
    world.submit(config={"seed": 9})
    with pytest.raises(SelfAlignError):
        world.step()
    assert world.condition("Progressing")["reason"] == "LeftOver"
    assert world.condition("Progressing")["status"] == "True"
    world.cluster.collect_garbage()
    world.step()
    assert world.jobs() == ["toy-instruct-1"]
    assert (
        "seed: 9" in world.cluster.get("controllerrevisions", "toy-config")["data"]["config.yaml"]
    )


def test_a_job_of_the_run_before_is_no_attempt_of_this_one(world: World) -> None:
    """The garbage collector deletes one object after the other."""
    world.submit()
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=2, message="of the run before")
    world.cluster.delete("alignmentruns", "toy", uid=world.run()["metadata"]["uid"])
    config = world.cluster.get("controllerrevisions", "toy-config")
    world.cluster.delete("controllerrevisions", "toy-config", uid=config["metadata"]["uid"])
    world.submit()
    for _ in range(3):
        with pytest.raises(SelfAlignError):
            world.step(after=60)
        assert world.condition("Progressing")["reason"] == "LeftOver"
        assert world.status()["attempts"] == []
    world.cluster.collect_garbage()
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_a_job_of_somebody_else_under_our_name_ends_the_run_with_the_way_out(world: World) -> None:
    stranger = {"metadata": {"name": "toy-instruct-1"}, "spec": {}}
    world.cluster.create("jobs", stranger)
    world.submit()
    world.step()
    assert "kubectl delete job toy-instruct-1" in world.status()["remedy"]


def test_a_refused_job_is_told_and_its_number_is_not_used_up(world: World) -> None:
    quota = ClusterDenied("create jobs: exceeded quota: gpus", remedy="raise it")
    world.api = create_fails(quota)(world.cluster)
    world.restart()
    world.submit()
    for _ in range(3):
        with pytest.raises(ClusterDenied):
            world.step(after=60)
        assert world.condition("Progressing")["reason"] == "ClusterDenied"
        assert "exceeded quota" in world.status()["message"]
        assert world.status()["attempts"] == []
    (event,) = world.cluster.list("events")  # and none of a Job that is not there
    assert (event["reason"], event["count"]) == ("ClusterDenied", 1)
    world.api = world.cluster
    world.restart()
    world.step()
    assert world.jobs() == ["toy-instruct-1"]


def test_a_bug_is_told_without_the_secrets_in_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise KeyError("https://me:hunter2@proxy [31m")

    world.submit()
    monkeypatch.setattr("selfalign.run.executors.kubernetes.reconcile.plan_from_store", broken)
    with pytest.raises(KeyError):
        world.step()
    for told in (world.status()["message"], world.events()[0][1]):
        assert "hunter2" not in told
        assert told.isprintable()


def test_a_job_that_the_api_server_finds_wrong_ends_the_run(world: World) -> None:
    world.api = create_fails(ClusterRejected("spec.template: wrong"))(world.cluster)
    world.restart()
    world.submit()
    world.step()
    assert world.condition("Failed")["reason"] == "ClusterRejected"


def test_an_api_server_that_does_not_answer_changes_nothing(world: World) -> None:
    world.submit()
    world.step()
    before = world.run()
    unreliable = world.api = Unreliable(world.cluster)
    world.restart()
    unreliable.arm(2, "lost")
    with pytest.raises(ClusterUnavailable):
        world.step()
    assert world.run() == before


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreDenied("no access")])
def test_a_store_that_cannot_be_read_never_ends_a_run(world: World, error: SelfAlignError) -> None:
    """Healthy work is not stopped because its state cannot be read, for whatever reason."""
    assert isinstance(world.store, DictStore)
    world.submit()
    world.step()
    world.store.failure = error
    for _ in range(3):
        with pytest.raises(type(error)):
            world.step(after=60)
    assert world.condition("Progressing")["reason"] == type(error).__name__
    assert [c["type"] for c in world.status()["conditions"] if c["status"] == "True"] == [
        "Accepted",
        "Progressing",
    ]
    assert len([e for e in world.events() if e[0] == type(error).__name__]) == 1
    world.store.failure = None
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_what_happened_while_the_store_was_down_is_remembered(world: World) -> None:
    assert isinstance(world.store, DictStore)
    world.submit()
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=70, message="engine died")
    world.store.failure = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        world.step()
    uid = world.cluster.get("jobs", "toy-instruct-1")["metadata"]["uid"]
    world.cluster.delete("jobs", "toy-instruct-1", uid=uid)
    world.store.failure = None
    world.step()
    (attempt,) = world.status()["attempts"]
    assert (attempt["cause"], attempt["message"]) == ("temporary", "engine died")


def test_a_suspended_run_lets_go_on_what_runs_and_starts_nothing(world: World) -> None:
    world.submit()
    world.step()
    world.cluster.patch("alignmentruns", "toy", {"spec": {"suspend": True}})
    world.finish("toy-instruct-1")
    world.step()
    assert world.jobs() == ["toy-instruct-1"]
    assert world.condition("Progressing")["reason"] == "Suspended"
    world.cluster.patch("alignmentruns", "toy", {"spec": {"suspend": False}})
    world.step()
    assert "toy-curate-1" in world.jobs()


def test_a_job_that_kueue_suspended_is_left_suspended(world: World) -> None:
    world.submit(queueName="night")
    world.step()
    world.cluster.patch("jobs", "toy-instruct-1", {"spec": {"suspend": True}})
    world.step()
    assert world.cluster.get("jobs", "toy-instruct-1")["spec"]["suspend"] is True
    assert world.condition("Progressing")["reason"] == "Waiting"
    assert "queued in night" in world.status()["message"]


def overtaken(world: World) -> str:
    """While the run's evaluation is at work, another run promotes; the evaluation's key."""
    world.submit()
    for stage in ("instruct", "curate", "align", "engrave", "elaborate", "clone"):
        world.step()
        world.finish(f"toy-{stage}-1")
    world.step()
    other = World(store=world.store, platform=platform_values(seed=99))
    other.submit("other")
    other.to_the_end("other")
    return str(world.stage("evaluate")["key"])


def test_another_promotion_meanwhile_evaluates_anew_under_a_number_of_its_own(world: World) -> None:
    before = overtaken(world)
    world.step()
    assert world.stage("evaluate")["key"] != before
    assert "toy-evaluate-2" in world.jobs()
    assert (
        world.cluster.get("jobs", "toy-evaluate-2")["metadata"]["labels"]["selfalign.io/key"]
        == (world.stage("evaluate")["key"])
    )


def test_a_stage_whose_own_key_went_stale_does_not_end_the_run(world: World) -> None:
    """It refuses with exit code 2, permanent, but for a key that nobody asks for any more."""
    overtaken(world)
    fail(
        world.cluster,
        "toy-evaluate-1",
        world.now,
        code=2,
        message="another key was asked for",
        reason="PodFailurePolicy",
    )
    world.step()
    assert world.condition("Progressing")["status"] == "True"
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_an_overlapping_nightly_run_is_refused_and_said(world: World) -> None:
    world.submit("nightly-1", labels=NIGHTLY)
    world.step("nightly-1")
    world.now += timedelta(days=1)
    world.submit("nightly-2", labels=NIGHTLY)
    world.step("nightly-2")
    assert world.condition("Failed", "nightly-2")["reason"] == "NightlyOverlap"
    assert "nightly-1 has not ended" in world.status("nightly-2")["message"]
    world.step("nightly-1")
    assert world.condition("Progressing", "nightly-1")["status"] == "True"


def test_of_two_new_nightly_runs_exactly_one_goes_on(world: World) -> None:
    world.submit("nightly-a", labels=NIGHTLY)
    world.submit("nightly-b", labels=NIGHTLY)
    world.step("nightly-b")
    world.step("nightly-a")
    world.step("nightly-b")
    refused = [n for n in ("nightly-a", "nightly-b") if world.status(n).get("completedAt")]
    assert refused == ["nightly-b"]


def test_a_nightly_run_that_ended_does_not_block_the_next(world: World) -> None:
    world.submit("nightly-1", labels=NIGHTLY)
    world.to_the_end("nightly-1")
    world.now += timedelta(days=1)
    world.submit("nightly-2", labels=NIGHTLY)
    world.step("nightly-2")
    assert world.status("nightly-2")["verdict"] == "Promoted"


def test_a_nightly_run_that_is_being_deleted_does_not_block_the_next(world: World) -> None:
    run = world.submit("nightly-1", labels=NIGHTLY)
    world.step("nightly-1")
    held = {"metadata": {"finalizers": ["example.com/hold"]}}
    world.cluster.patch("alignmentruns", "nightly-1", held)
    world.cluster.delete("alignmentruns", "nightly-1", uid=run["metadata"]["uid"])
    assert world.run("nightly-1")["metadata"]["deletionTimestamp"]
    world.submit("nightly-2", labels=NIGHTLY, config={"seed": 9})
    world.step("nightly-2")
    assert world.condition("Accepted", "nightly-2")["status"] == "True"


def test_a_finished_run_expires_after_its_ttl_and_not_before(world: World) -> None:
    world.submit(ttlSecondsAfterFinished=100)
    world.to_the_end()
    assert world.step() == 100
    assert world.step(after=99) == 1
    assert world.run()
    world.step(after=1)
    assert world.cluster.list("alignmentruns") == []
    world.cluster.collect_garbage()
    assert world.jobs() == []


def test_a_run_is_not_expired_in_the_place_of_its_namesake(world: World) -> None:
    unreliable = world.api = Unreliable(world.cluster)
    world.restart()
    world.submit(ttlSecondsAfterFinished=1)
    world.to_the_end()
    old = world.run()["metadata"]["uid"]

    def made_anew() -> None:
        world.cluster.delete("alignmentruns", "toy", uid=old)
        world.submit()

    unreliable.arm(1, "meanwhile", made_anew)
    world.step(after=2)
    assert unreliable.calls[-1] == ("delete", "alignmentruns", "toy")
    assert world.run()["metadata"]["uid"] != old


def test_a_pod_s_trouble_inside_a_running_attempt_is_told(world: World) -> None:
    world.submit()
    world.step()
    ended_pod(
        world.cluster, "toy-instruct-1", world.now, code=71, message="out of memory", index="2"
    )
    world.step()
    assert world.condition("Progressing")["reason"] == "Running"
    assert "shard 2: out of memory" in world.status()["message"]
    assert world.stage("instruct")["message"] == "shard 2: out of memory"


def test_finished_shards_are_shown(world: World) -> None:
    world.submit()
    world.step()
    world.cluster.set_status("jobs", "toy-instruct-1", {"succeeded": 2, "active": 1})
    world.step()
    assert (world.stage("instruct")["done"], world.stage("instruct")["total"]) == (2, 3)


def test_looking_again_without_news_writes_nothing(world: World) -> None:
    world.submit()
    world.step()
    world.step(after=1)
    version = world.run()["metadata"]["resourceVersion"]
    writes = len(world.store.writes)  # type: ignore[attr-defined]
    for _ in range(5):
        world.step(after=60)
    assert world.run()["metadata"]["resourceVersion"] == version
    assert len(world.store.writes) == writes  # type: ignore[attr-defined]


def test_conditions_keep_their_transition_time_while_they_stay(world: World) -> None:
    world.submit()
    world.step()
    first = world.condition("Progressing")["lastTransitionTime"]
    world.finish("toy-instruct-1")
    world.step(after=500)
    assert world.condition("Progressing")["lastTransitionTime"] == first
    assert "curate" in world.condition("Progressing")["message"]
    assert world.condition("Progressing")["observedGeneration"] == 1


def test_stage_publishing_before_its_job_ends_lets_the_next_one_start(world: World) -> None:
    world.submit()
    world.step()
    publish(world.cluster, world.store, "toy-instruct-1")
    world.step()
    assert "toy-curate-1" in world.jobs()
