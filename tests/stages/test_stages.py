"""All eight stages in order, scripted generation and real training; what each leaves behind."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfalign.config import EngineConfig, RunConfig
from selfalign.errors import ConfigurationError, DataError, EngineError, TemporaryError
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.identity import collect_inputs
from selfalign.load import load_config
from selfalign.pipeline import STAGES
from selfalign.records import AlignedResponse, Candidate, Prompt, VerboseResponse
from selfalign.report.tables import funnel
from selfalign.run.plan import Planned, plan_from_store
from selfalign.run.stage import run_stage
from selfalign.serving.directory import read_served
from selfalign.stages.notice import read_notice
from selfalign.stages.rollback import roll_back
from selfalign.store.artifact import read_file, read_file_as, read_records
from selfalign.store.files import file_sha256
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import Pointer, PromotedModel, VersionedPointer, read_pointer
from selfalign.training.base import Example
from tests.artifacts import promote
from tests.pipeline_world import forget_after, run_stages, write_gemma3


def load(world: Path, *overrides: str) -> RunConfig:
    return load_config(world, overrides).config


Made = tuple[RunConfig, LocalStore, dict[str, Manifest]]


@pytest.fixture(scope="module")
def made(finished_store: Path) -> Made:
    """`finished_store` itself, for those who only read it."""
    config = load(finished_store.parent / "selfalign.yaml")
    return config, LocalStore(finished_store), run_stages(config)


def published(config: RunConfig) -> set[str]:
    """Names of the stages that have nothing to do."""
    store = LocalStore(Path(config.store))
    return {
        p.stage.name
        for p in plan_from_store(config, collect_inputs(config), store)
        if p.manifest is not None
    }


def test_the_whole_method_ends_in_a_promoted_model_and_runs_only_once(made: Made) -> None:
    config, store, manifests = made
    assert set(manifests) == {stage.writes for stage in STAGES}
    assert manifests["promotion"].details["promoted"] is True
    for stage in STAGES:
        if stage.workload in ("generate", "evaluate"):
            engine = manifests[stage.writes].provenance.engine
            assert float(engine["seconds_to_load"]) <= float(engine["seconds_to_first_answer"])
    notice = read_notice(store, manifests["promotion"].key)
    assert (notice.against, notice.compared, notice.failed_rules) == ("base", 4, [])
    current = read_pointer(store)
    assert current.pointer.model.digest == manifests["final_model"].digest
    _loads_as_it_lies(store, current.pointer.model)
    # what is current now is no new input: the same run finds all it made
    assert run_stages(config, "promote") == manifests
    assert published(config) == {stage.name for stage in STAGES}


def _loads_as_it_lies(store: LocalStore, model: PromotedModel) -> None:
    """The directory that the pointer names is whole, and a server's library takes it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    assert model.directory == f"models/{model.digest}"
    directory = Path(store.url) / model.directory
    served = read_served(store, model.digest)
    named = {entry.name: entry.sha256 for entry in served.files}
    found = {path.name: file_sha256(path) for path in directory.iterdir()}
    found.pop("selfalign.json")
    assert named == found
    card = (directory / "README.md").read_text()
    assert "| heldout.aligned | final | 4 | " in card
    assert "| seeds: principles.txt | " in card
    components = json.loads((directory / "bom.cdx.json").read_text())["metadata"]["component"]
    assert "model.safetensors" in {file["name"] for file in components["components"]}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "A plain chat.\n\nUser: How?\nAssistant:"
    defaults = GenerationConfig.from_pretrained(directory, max_new_tokens=4)
    inputs = tokenizer(asked, return_tensors="pt")
    AutoModelForCausalLM.from_pretrained(directory).generate(**inputs, generation_config=defaults)
    assert (defaults.eos_token_id, defaults.temperature) == ([2], 0.0)
    stated = json.loads((directory / "generation_config.json").read_text())
    assert stated.get("stop_strings", "not stated") is None


def test_a_base_that_takes_images_too_ends_in_a_text_model_whose_card_says_so(
    world: Path, tiny_base_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = tmp_path / "gemma3"
    shutil.copytree(tiny_base_model, base)
    write_gemma3(base)
    config = load(world, f"base_model.path={base}", "engrave.method=full")
    manifests = run_stages(config)
    store = LocalStore(Path(config.store))
    assert manifests["engraved_model"].details["base_model"]["multimodal"] == "gemma3"
    current = read_pointer(store)
    _loads_as_it_lies(store, current.pointer.model)
    directory = Path(store.url) / current.pointer.model.directory
    said = (
        "| part of the base model | the language model of gemma3 alone: this model takes text, and"
    )
    assert said in (directory / "README.md").read_text()
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert (type(model).__name__, any(report.values())) == ("Gemma3ForCausalLM", False)


def test_every_row_can_be_traced(made: Made) -> None:
    _, store, manifests = made
    prompts = {p.id: p for p in read_records(store, manifests["prompts"], Prompt)}
    candidates = {c.id for c in read_records(store, manifests["candidates"], Candidate)}
    rows = list(read_records(store, manifests["aligned_responses"], AlignedResponse))
    assert rows
    assert {row.id for row in rows} <= set(prompts) <= candidates
    for row in rows:
        assert row.prompt == prompts[row.id].text
        assert row.rules == (3,)
        assert "3 (helpful)" in row.thought
        assert row.response.startswith("To do that")
        assert row.verdicts["exemplar_leak"] == "kept"
        assert row.model == manifests["aligned_responses"].identity["base_model"]
    sources = {p.source for p in prompts.values()}
    assert sources == {"self_instruct", "topic_guided"}


def test_counts_add_up_and_each_filter_has_its_own(made: Made) -> None:
    manifests = made[2]
    for name in ("candidates", "prompts", "aligned_responses"):
        counts = manifests[name].counts
        assert counts.read == counts.kept + sum(counts.dropped.values()), name
    assert manifests["candidates"].counts.dropped["too_short"] == 12
    assert manifests["prompts"].counts.read == manifests["candidates"].counts.kept
    assert manifests["aligned_responses"].counts.read == manifests["prompts"].counts.kept


def test_editing_a_principle_redoes_align_and_what_follows(finished: Path) -> None:
    config = load(finished)
    principles = finished.parent / "seeds" / "principles.txt"
    principles.write_text(principles.read_text().replace("refuse to help", "decline to help"))
    assert published(config) == {"instruct", "curate"}


def test_a_setting_that_only_says_how_work_is_done_redoes_nothing(finished_store: Path) -> None:
    path = finished_store.parent / "selfalign.yaml"
    changed = load(path, "instruct.num_shards=3", "align.num_shards=2")
    assert published(changed) == {stage.name for stage in STAGES}
    assert published(load(path, "align.sampling.temperature=0.6")) == {"instruct", "curate"}
    assert published(load(path, "seed=1")) == set()


def test_shards_together_write_what_one_worker_writes(
    world: Path, made: Made, tmp_path: Path
) -> None:
    _, whole, one = made
    config = load(world, f"store={tmp_path / 'sharded'}")
    store = LocalStore(tmp_path / "sharded")
    for stage in ("instruct", "curate", "align"):
        shards = 3 if stage != "curate" else 1
        results = [
            run_stage(stage, config, store, shard=i, num_shards=shards) for i in range(shards)
        ]
        assert [r is not None for r in results] == [False] * (shards - 1) + [True]
    sharded = plan_from_store(config, collect_inputs(config), store)[:3]
    for planned, kind in zip(sharded, (Candidate, Prompt, AlignedResponse), strict=True):
        manifest, expected = planned.manifest, one[planned.stage.writes]
        assert (manifest.key, manifest.digest) == (expected.key, expected.digest)
        found = list(read_records(store, manifest, kind))
        assert found == list(read_records(whole, expected, kind))


def test_verbose_answers_come_from_the_engraved_model(made: Made) -> None:
    _, store, manifests = made
    rows = list(read_records(store, manifests["verbose_responses"], VerboseResponse))
    assert rows
    assert {row.model for row in rows} == {manifests["engraved_model"].digest}
    assert len(rows[0].response.split()) > 10


def test_both_trainings_start_from_the_base_model(made: Made) -> None:
    manifests = made[2]
    assert (
        manifests["engraved_model"].identity["base_model"]
        == manifests["final_model"].identity["base_model"]
    )
    assert "engraved_model" not in manifests["final_model"].parents
    names = {entry.name for entry in manifests["final_model"].files}
    assert "files/merged/model.safetensors" in names
    assert any(name.startswith("files/adapter/") for name in names)
    assert "files/loss.jsonl" in names


def test_a_trained_model_says_what_trained_it_and_what_the_adapter_changes(made: Made) -> None:
    import torch

    manifest = made[2]["engraved_model"]
    engine = manifest.provenance.engine
    assert (engine["name"], engine["torch"]) == ("transformers", torch.__version__)
    assert (manifest.provenance.tokens_per_second or 0) > 0
    assert "cpu" in engine["device"] or torch.cuda.is_available()
    projections = ("k_proj", "o_proj", "q_proj", "v_proj")
    assert manifest.details["adapted_modules"] == dict.fromkeys(projections, 2)


def test_an_engine_that_fails_leaves_what_was_done_and_the_stage_resumes(finished: Path) -> None:
    config = load(finished)
    store = LocalStore(Path(config.store))
    run_stages(config, "curate")
    options = {**config.engine.options, "fail_after": 10}
    failing = config.engine.model_copy(update={"options": options})
    align = config.align.model_copy(update={"engine": failing})
    unlucky = config.model_copy(update={"align": align})
    attempts = 0
    manifest = None
    while manifest is None:
        attempts += 1
        with contextlib.suppress(EngineError):
            manifest = run_stage("align", unlucky, store)
    # ten answers an attempt, eight of them a part: each attempt keeps one part
    assert attempts == -(-(manifest.counts.read - 10) // 8) + 1
    assert attempts > 2


def test_a_stage_without_its_parents_names_what_to_run(world: Path) -> None:
    config = load(world)
    with pytest.raises(DataError, match=r"align reads prompts, which") as caught:
        run_stage("align", config, LocalStore(Path(config.store)))
    assert "selfalign curate" in str(caught.value)


def test_a_scheduler_with_another_configuration_is_refused(world: Path) -> None:
    config = load(world)
    with pytest.raises(ConfigurationError, match="was asked for"):
        run_stage("instruct", config, LocalStore(Path(config.store)), expect_key="0" * 20)


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (0, 2)])
def test_a_shard_that_cannot_be_is_refused(world: Path, shard: int, shards: int) -> None:
    config = load(world)
    stage = "instruct" if shard else "curate"
    with pytest.raises(ConfigurationError, match=r"shard"):
        run_stage(stage, config, LocalStore(Path(config.store)), shard=shard, num_shards=shards)


def test_nothing_left_to_train_on_is_an_error_that_says_where_to_look(finished: Path) -> None:
    config = load(finished, "align.min_answer_characters=100000")
    with pytest.raises(DataError, match="holds no records to train on") as caught:
        run_stages(config, "engrave")
    assert "selfalign show aligned_responses" in str(caught.value)


def test_examples_that_training_leaves_out_are_counted_by_reason(finished: Path) -> None:
    # prompts are 11 or 12 tokens long
    manifests = run_stages(load(finished, "engrave.max_length=12"), "engrave")
    counts = manifests["engraved_model"].counts
    assert counts.read == manifests["aligned_responses"].counts.kept
    assert counts.dropped["prompt_too_long"] > 0
    assert counts.read == counts.kept + sum(counts.dropped.values())
    assert counts.kept == manifests["engraved_model"].details["examples"]
    (row,) = [row for row in funnel(manifests) if row.stage == "engrave"]
    assert row.dropped[0][:2] == ("prompt_too_long", counts.dropped["prompt_too_long"])


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ("Take the soap and work slowly. Then rest.", True),
        # 20 words are the limit, of which the thought takes 6
        ("Take the soap and work slowly. Then rest " + "and rest " * 20, False),
        ("Take the soap and work slowly.\n  User: And then what do I do " + "so " * 20, True),
        ("Take the soap and work slowly. Take the soap and work slowly. Rest.", False),
    ],
    ids=["ended", "token limit", "token limit after the next turn", "repetition"],
)
def test_the_end_of_an_answer_is_taught_only_where_the_model_ended_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch, answer: str, ended: bool
) -> None:
    config = load(finished, "align.sampling.max_new_tokens=20")
    store = LocalStore(Path(config.store))
    run_stages(config, "curate")
    text = f" This is fair: 3 (helpful).\nAssistant: {answer}"
    engine = EngineConfig(kind="fake", options={"responses": [{"match": "", "text": text}]})
    align = config.align.model_copy(update={"engine": engine})
    scripted = config.model_copy(update={"align": align})
    run_stage("align", scripted, store)
    taught: list[Example] = []

    def fake_train(*_: object, examples: list[Example], **__: object) -> None:
        taught.extend(examples)
        raise EngineError("seen enough")

    monkeypatch.setattr("selfalign.stages.train.train", fake_train)
    with pytest.raises(EngineError, match="seen enough"):
        run_stage("engrave", scripted, store)
    assert {example.finished for example in taught} == {ended}
    assert all(e.response.startswith("Take the soap and work slowly.") for e in taught)


def test_prompts_that_all_fill_max_length_are_an_error_that_says_so(finished: Path) -> None:
    with pytest.raises(DataError, match="their prompt fills max_length 4") as caught:
        run_stages(load(finished, "engrave.max_length=4"), "engrave")
    assert "raise max_length" in str(caught.value)


def test_a_gate_that_fails_moves_nothing_and_says_why(finished: Path) -> None:
    strict = "promote.rules=[{metric: heldout.aligned, against: base, min_difference: 0.5}]"
    config = load(finished, strict)
    forget_after(config, "evaluate")
    manifest = run_stages(config, "promote")["promotion"]
    assert manifest.details["promoted"] is False
    assert "0.5" in " ".join(manifest.details["reasons"])
    store = LocalStore(Path(config.store))
    assert read_pointer(store) is None
    verdict = json.loads(read_file(store, manifest, "verdict.json"))
    assert verdict["reasons"][0]["outcome"] == "failed"


def test_the_next_run_is_judged_against_what_is_promoted_and_can_be_rolled_back(
    finished: Path,
) -> None:
    first, second = (
        load(finished),
        load(finished, "engrave.learning_rate=0.001", "clone.learning_rate=0.001"),
    )
    store = LocalStore(Path(first.store))
    one = run_stages(first, "promote")
    two = run_stages(second, "promote")
    assert two["evaluation"].identity["promoted"] == one["final_model"].digest
    assert "promoted" in two["evaluation"].details["models"]
    current = read_pointer(store)
    assert current.pointer.model.digest == two["final_model"].digest
    # the first model is the anchor, and another was promoted since
    third = run_stages(first, "evaluate")["evaluation"]
    assert third.identity["anchor"] == one["final_model"].digest
    summary = read_file_as(store, third, "summary.json", EvaluationSummary)
    assert summary.confidence_against("promoted") == 0.9
    assert summary.confidence_against("anchor") == pytest.approx(0.975)
    for name in list(store.list(f"models/{one['final_model'].digest}/")):
        store.delete(name)  # it expired
    pointer = roll_back(store)
    assert pointer.model.digest == one["final_model"].digest
    assert read_served(store, pointer.model.digest) is not None
    # the same night again does not undo what a person decided
    assert run_stages(second, "promote")["promotion"].key == two["promotion"].key
    current = read_pointer(store)
    assert current.pointer.model.digest == one["final_model"].digest
    with pytest.raises(ConfigurationError, match="first ever promoted"):
        roll_back(store)
    # a mistaken rollback is undone by name
    back = roll_back(store, to=two["final_model"].key[:8])
    assert back.model.digest == two["final_model"].digest
    assert back.previous.digest == one["final_model"].digest
    assert back.rolled_back == []


def _promoted(store: LocalStore, *keys: str) -> None:
    """Models with these keys were promoted, the last is current."""
    for key in keys:
        promote(store, PromotedModel(artifact="final_model", key=key, digest=key))


def test_rolling_back_goes_ever_further_and_loses_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    _promoted(store, "a1", "b2", "c3", "d4")
    monkeypatch.setattr(
        "selfalign.store.pointer.read_manifest",
        lambda store, artifact, key: SimpleNamespace(digest=key, files=[]),
    )
    assert roll_back(store).model.key == "c3"
    assert roll_back(store).model.key == "b2"
    pointer = roll_back(store, to="d4")
    assert (pointer.model.key, [m.key for m in pointer.history]) == ("d4", ["c3", "b2", "a1"])
    assert roll_back(store, to="a1").model.key == "a1"
    with pytest.raises(ConfigurationError, match="first ever promoted") as caught:
        roll_back(store)
    assert "rolled back from: d4, c3, b2" in str(caught.value)
    pointer = roll_back(store, to="c3")
    assert [m.key for m in pointer.history] == ["b2", "a1"]
    assert [m.key for m in pointer.rolled_back] == ["d4"]


def test_the_beginning_of_two_keys_chooses_neither(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _promoted(store, "ab1", "ab2", "c3", "d4")
    with pytest.raises(ConfigurationError, match="more than one key: ab1, ab2"):
        roll_back(store, to="ab")
    pointer = read_pointer(store)
    assert pointer.pointer.model.key == "d4"


def test_a_model_judged_against_another_than_the_current_is_not_promoted(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(finished)
    forget_after(config, "evaluate")
    other = PromotedModel(artifact="final_model", key="other", digest="other")
    pointer = Pointer(model=other, previous=None, promotion="x", run=None, moved_at="now")
    moved = VersionedPointer(pointer, "v")
    monkeypatch.setattr("selfalign.stages.promote.read_pointer", lambda _: moved)
    with pytest.raises(TemporaryError, match="judged against nothing"):
        run_stage("promote", config, LocalStore(Path(config.store)))


def test_a_killed_promotion_is_finished_by_the_next_attempt(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer has moved, the record was not published: the retry publishes it."""
    config = load(finished)
    store = LocalStore(Path(config.store))
    forget_after(config, "evaluate")

    class Killed(BaseException):
        pass

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("selfalign.store.artifact.ArtifactWriter.publish", die)
        with pytest.raises(Killed):
            run_stage("promote", config, store)
    before = read_pointer(store)
    assert before is not None
    manifest = run_stage("promote", config, store)
    assert manifest.details["promoted"] is True
    after = read_pointer(store)
    assert after.pointer == before.pointer


def test_evaluation_files_contaminate_no_prompt(finished: Path) -> None:
    config = load(finished)
    store = LocalStore(Path(config.store))
    candidates = run_stages(config, "instruct")["candidates"]
    leaked = next(iter(read_records(store, candidates, Candidate))).text
    rows = [json.loads(line) for line in config.evaluate.heldout.read_text().splitlines()]  # type: ignore[union-attr]
    rows[0]["prompt"] = leaked
    config.evaluate.heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = run_stages(config, "curate")["prompts"]
    assert prompts.counts.dropped["contaminated"] >= 1
    assert leaked not in {p.text for p in read_records(store, prompts, Prompt)}


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        (b"[1, 2]", "not a valid TopicRound"),
        (b'{"topics": {}}', "its question types are not those of the seeds"),
        (b'{"topics": {"x": [["y"]]}}', "not a valid TopicRound"),
    ],
)
def test_topics_that_somebody_forged_end_the_stage(world: Path, forged: bytes, told: str) -> None:
    config = load(world)
    store = LocalStore(Path(config.store))
    first, *_ = plan_from_store(config, collect_inputs(config), store)
    assert isinstance(first, Planned)
    name = f"{first.unit}/topics/round-00.json"
    store.write(name, forged)
    with pytest.raises(DataError, match=f"{name}: {told}"):
        run_stage("instruct", config, store)
