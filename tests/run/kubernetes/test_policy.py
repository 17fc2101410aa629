"""What a run may ask for: hostile runs end with their cause, and nothing is read for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from selfalign.errors import SelfAlignError
from selfalign.load import validate_config
from selfalign.run.executors.kubernetes.crd import NIGHTLY_LABEL

from .worlds import World, config_map, nested, platform_values, policy_values

OPEN = {"overrides": ["evaluate", "seeds", "seed", "*.num_shards"]}


@pytest.fixture(autouse=True)
def _as_in_the_controller() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    yield
    sys.setrecursionlimit(before)


def test_no_policy_lets_a_run_say_whom_the_controller_sends_what() -> None:
    world = World(policy={"overrides": ["*", "notify"]})
    world.submit(config={"notify": [{"url_variable": "AWS_SECRET_ACCESS_KEY"}]})
    world.step()
    assert "spec.config.notify: a run may not set this" in world.status()["message"]


def test_no_policy_lets_a_run_choose_the_server_that_gets_prompts_and_key() -> None:
    world = World(policy={"overrides": ["*", "*.engine", "engine.server", "align"]})
    server = {"url": "http://elsewhere.example/v1", "key_variable": "AWS_SECRET_ACCESS_KEY"}
    world.submit(config={"align": {"engine": {"kind": "openai", "server": server}}})
    assert world.step() is None
    status = world.status()
    assert "spec.config.align.engine.server." in status["message"]
    assert "may not set this" in status["message"]
    assert status["exitCode"] == 2
    assert world.jobs() == []


def test_only_the_platform_names_the_judge() -> None:
    judge = {"model": {"path": "example/judge", "revision": "77"}}
    world = World(
        platform=platform_values(evaluate={"judge": judge}), policy={"overrides": ["*", "evaluate"]}
    )
    world.submit(config={"evaluate": {"judge": {"model": {"path": "evil/judge"}}}})
    assert world.step() is None
    assert (
        "spec.config.evaluate.judge.model.path: a run may not set this"
        in (world.status()["message"])
    )
    own = World(platform=platform_values(evaluate={"judge": judge}))
    own.submit()
    own.to_the_end()
    assert own.status()["verdict"] == "Promoted"


def test_no_run_names_python_that_tasks_hold_whatever_the_policy_allows() -> None:
    world = World(policy={"overrides": ["*", "evaluate"]})
    world.submit(config={"evaluate": {"harness": {"tasks": ["own"], "include_path": "evil"}}})
    world.step()
    assert (
        "spec.config.evaluate.harness.include_path: a run may not set this"
        in world.status()["message"]
    )


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (
            {"model": {"path": "/models/judge"}},
            "evaluate.judge.model.path: '/models/judge' is no store: name",
        ),
        (
            {"model": {"path": "a/judge", "revision": "0"}, "labelled": "people.jsonl"},
            "evaluate.judge.labelled: 'people.jsonl' is no store: name",
        ),
        ({"model": {"path": "b", "revision": "0123abcd"}}, "it is the base model (0123abcd)"),
    ],
)
def test_a_judge_that_no_pod_could_use_ends_the_run(judge: dict[str, Any], said: str) -> None:
    world = World(platform=platform_values(evaluate={"judge": judge}))
    world.submit()
    assert world.step() is None
    assert said in world.status()["message"]


@pytest.mark.parametrize(
    "path", ["/proc/self/pagemap", "/proc", "file:///etc/passwd", "~/secret", "relative.jsonl"]
)
@pytest.mark.parametrize("section", ["heldout", "seeds"])
def test_local_paths_are_refused_before_anything_is_read(section: str, path: str) -> None:
    world = World(policy=OPEN)
    config = {"seeds": {"directory": path}} if section == "seeds" else {"evaluate": {section: path}}
    world.submit(config=config)
    before = list(world.store.writes)  # type: ignore[attr-defined]
    assert world.step() is None
    assert world.condition("Failed")["reason"] == "ConfigurationError"
    assert "is no store: name" in world.status()["message"]
    assert world.store.writes == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"store": "s3://elsewhere/x"}, "spec.config.store"),
        ({"promote": {"rules": []}}, "spec.config.promote.rules"),
        ({"engine": {"options": {"trust_remote_code": True}}}, "spec.config.engine.options"),
        ({"align": {"engine": {"kind": "vllm"}}}, "spec.config.align.engine.kind"),
        ({"base_model": {"path": "evil/model", "revision": "0"}}, "spec.config.base_model."),
        ({"seeds": {"directory": "store:inputs/seeds/0"}}, "spec.config.seeds.directory"),
        ({"instruct": {"num_shards": 65}}, "instruct.num_shards is 65, expected at most 64"),
        ({"engrave": {"deepspeed": {}}}, "spec.config.engrave.deepspeed"),
        ({"align": {"engine": {}}}, "spec.config.align.engine"),
        (
            {"engrave": {"max_steps": 1e8}},
            "engrave.max_steps is 100000000, expected at most 1000000",
        ),
        ({"instruct": {"general_requests": 10**8}}, "expected at most 1000000"),
        ({"instruct": {"general_requests": "9_999_999"}}, "is 9999999, expected at most 1000000"),
        (nested(5000), "nested more than 20 deep"),
        ({"align": [nested(5000)]}, "nested more than 20 deep"),
        ({"seed": "x" * 1_200_000}, "spec.config holds 1200"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_the_policy_does_not_allow_ends_the_run_and_is_named(
    config: dict[str, Any], named: str
) -> None:
    sizes = ["*.num_shards", "*.max_steps", "instruct.general_requests"]
    limits = {"*.max_steps": 10**6, "instruct.general_requests": 10**6}
    world = World(policy={"overrides": ["seed", *sizes], "limits": limits})
    world.submit(config=config)
    assert world.step() is None
    status = world.status()
    assert world.condition("Failed")["status"] == "True"
    assert named in status["message"]
    assert status["remedy"]
    assert status["exitCode"] == 2
    assert len(str(status)) < 4000
    assert world.jobs() == []


@pytest.mark.parametrize(
    ("field", "value"), [("priority", "system-node-critical"), ("queueName", "somebody-s")]
)
def test_a_priority_or_queue_that_is_not_listed_ends_the_run(field: str, value: str) -> None:
    world = World()
    world.submit(**{field: value})
    world.step()
    assert f"spec.{field}: '{value}' is not allowed" in world.status()["message"]


def test_a_run_may_repeat_what_the_platform_has() -> None:
    values = platform_values(promote={"rules": [{"metric": "hhh", "against": "base"}]})
    world = World(platform=values, policy={"overrides": []})
    world.submit(config=values)
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_a_run_may_repeat_a_rule_that_the_platform_spells_out_with_its_nulls() -> None:
    rule = {"metric": "hhh", "against": "base", "min_difference": 0.0}
    written = validate_config(platform_values(promote={"rules": [rule]}), "x").promote
    platform = platform_values(promote=written.model_dump(mode="json"))
    assert platform["promote"]["rules"] != [rule]
    world = World(platform=platform, policy={"overrides": []})
    world.submit(config={"promote": {"rules": [rule]}})
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


@pytest.mark.parametrize("error", [PermissionError(13, "no"), ValueError("a bug"), MemoryError()])
def test_an_unexpected_error_is_explained_on_the_run_and_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.submit()

    def fail(*_arguments: object) -> None:
        raise error

    name = "selfalign.run.executors.kubernetes.reconcile.plan_from_store"
    with monkeypatch.context() as patched:
        patched.setattr(name, fail)
        with pytest.raises(type(error)):
            world.step()
    assert world.condition("Progressing")["reason"] == "InternalError"
    assert type(error).__name__ in world.status()["message"]
    world.to_the_end()
    assert world.status()["verdict"] == "Promoted"


def test_runs_beyond_the_limit_wait_their_turn_and_nightly_ones_go_first() -> None:
    world = World(policy=policy_values(maxActiveRuns=2))
    for name in ("one", "two", "three"):
        world.now += timedelta(seconds=1)
        world.submit(name, config={"seed": len(name) + len(world.jobs())})
        world.step(name)
    assert world.condition("Progressing", "three")["reason"] == "Queued"
    assert "2 runs are active (one, two)" in world.status("three")["message"]
    world.now += timedelta(seconds=1)
    world.submit("night", labels={NIGHTLY_LABEL: "true"})
    world.step("night")
    world.to_the_end("one")
    world.step("three")
    assert world.condition("Progressing", "three")["reason"] == "Queued"
    world.step("night")
    assert world.condition("Progressing", "night")["reason"] == "Running"


def test_runs_that_were_suspended_take_their_turn_again() -> None:
    world = World(policy=policy_values(maxActiveRuns=1))
    world.submit("one", config={"seed": 1})
    world.step("one")
    world.cluster.patch("alignmentruns", "one", {"spec": {"suspend": True}})
    world.step("one")
    world.now += timedelta(seconds=1)
    world.submit("two", config={"seed": 2})
    world.step("two")
    assert world.condition("Progressing", "two")["reason"] == "Queued"  # one's Job is at work
    world.finish("one-instruct-1")
    world.step("one")
    world.step("two")
    assert "two-instruct-1" in world.jobs()
    world.cluster.patch("alignmentruns", "one", {"spec": {"suspend": False}})
    world.step("one")
    assert world.condition("Progressing", "one")["reason"] == "Queued"
    assert "1 runs are active (two)" in world.status("one")["message"]
    world.to_the_end("two")
    world.to_the_end("one")
    assert world.status("one")["verdict"] is not None


def test_a_suspended_run_labelled_nightly_refuses_no_night() -> None:
    world = World()
    world.submit("hostile", labels={NIGHTLY_LABEL: "true"}, suspend=True)
    world.step("hostile")
    world.submit("night", labels={NIGHTLY_LABEL: "true"})
    world.step("night")
    assert world.condition("Progressing", "night")["reason"] == "Running"


def test_two_runs_never_make_the_same_artifact_at_once() -> None:
    world = World()
    world.submit("one")
    world.submit("two")
    world.step("one")
    with pytest.raises(SelfAlignError, match="is making"):
        world.step("two")
    assert world.condition("Progressing", "two")["reason"] == "ArtifactBusy"
    assert world.jobs() == ["one-instruct-1"]
    world.finish("one-instruct-1")
    world.step("two", after=60)
    assert world.jobs() == ["one-instruct-1", "two-curate-1"]


def test_a_broken_policy_ends_no_run_silently() -> None:
    world = World()
    body = config_map("x", {"overrides": "everything"})
    policy = {"data": {"policy.yaml": body["data"]["config.yaml"]}}
    world.cluster.patch("configmaps", "selfalign-config", policy)
    world.submit()
    world.step()
    assert "policy.yaml: overrides" in world.status()["message"]


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "seed: 1\nseed: 2", "a: " + "[" * 1500])
def test_a_broken_configuration_of_the_platform_is_named_on_the_run(text: str) -> None:
    world = World()
    platform = {"data": {"config.yaml": text}}
    world.cluster.patch("configmaps", "selfalign-config", platform)
    world.submit()
    world.step()
    assert "selfalign-config: config.yaml is not valid YAML" in world.status()["message"]
