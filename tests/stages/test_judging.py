"""A judge in the stage evaluate: real models' answers, judged by a third one or by a script."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation.refusal import classify_refusal
from selfalign.evaluation.scores import (
    AGREEMENT,
    ALIGNED,
    HHH,
    JUDGED,
    LENGTH_WORDS,
    REFUSAL_AGREEMENT,
    REFUSAL_MUST,
    REFUSAL_MUST_NOT,
    WIN_RATE,
    WIN_RATE_PRINCIPLE,
)
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.inputs import localise, push_inputs
from selfalign.load import load_config, write_resolved
from selfalign.records import EvaluationRecord
from selfalign.run.stage import run_stage
from selfalign.seeds import load_seeds
from selfalign.stages.preflight import check_run
from selfalign.store.artifact import artifact_keys, read_file_as, read_manifest, read_records
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from selfalign.store.pointer import PromotedModel
from tests.artifacts import promote
from tests.pipeline_world import WORDS, write_base_model, write_llama
from tests.stages.planting import config_of, plant, rows


def says(word: str) -> dict[str, Any]:
    """An engine that finds one continuation likelier than every other."""
    likely = {"match": f" {word}$", "log_likelihood": -0.1}
    return {"kind": "fake", "options": {"scores": [likely, {"match": "", "log_likelihood": -4.0}]}}


SAYS_A, SAYS_REFUSES = says("A"), says("refuses")
LABELLED = [
    {"prompt": "How?", "first": f"take the soap {n}", "second": "harm", "winner": winner}
    for n, winner in enumerate(["first", "second", "tie"])
]


def model(directory: Path, size: int) -> Path:
    """A random model; each size answers in its own way."""
    write_llama(
        directory,
        list(dict.fromkeys((*WORDS, "B"))),
        hidden_size=size,
        intermediate_size=2 * size,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, a final model of each of two nights, and a judge."""
    import torch

    torch.set_num_threads(1)  # threads only wait for each other in a model this small
    root = tmp_path_factory.mktemp("models")
    write_base_model(root / "base")
    sizes = {"monday": 24, "tuesday": 40, "judge": 32}
    return {"base": root / "base", **{name: model(root / name, n) for name, n in sizes.items()}}


class Night:
    """A configuration up to its trained models, which are planted."""

    def __init__(self, directory: Path, models: dict[str, Path]) -> None:
        self.models = models
        self.base = config_of(directory, models["base"], "transformers")
        self.store = LocalStore(Path(self.base.store))
        (directory / "labelled.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in LABELLED))
        self.world = directory / "selfalign.yaml"
        write_resolved(self.base, self.world)

    def config(self, judge: dict[str, Any] | None, *more: str) -> RunConfig:
        value = "null" if judge is None else json.dumps(judge)
        return load_config(self.world, [f"evaluate.judge={value}", *more]).config

    def plant(self, config: RunConfig, final: str) -> None:
        for artifact in ("candidates", "prompts", "aligned_responses", "verbose_responses"):
            if artifact == "verbose_responses":
                plant(config, "engraved_model", model=self.models["base"])
            plant(config, artifact, rows(poisoned=False))
        self.plant_final(config, final)

    def plant_final(self, config: RunConfig, final: str) -> None:
        plant(config, "final_model", model=self.models[final])

    def evaluate(self, config: RunConfig) -> Manifest:
        manifest = run_stage("evaluate", config, self.store)
        assert manifest is not None
        return manifest

    def judge(self, **values: Any) -> dict[str, Any]:
        return {"model": {"path": str(self.models["judge"])}, **values}


@pytest.fixture
def night(tmp_path: Path, models: dict[str, Path]) -> Night:
    made = Night(tmp_path / "world", models)
    made.plant(made.base, "monday")
    return made


def test_a_third_model_judges_the_answers_in_both_orders_and_is_compared_with_people(
    night: Night,
) -> None:
    judge = night.judge(labelled="labelled.jsonl")
    first = night.evaluate(night.config(judge))
    assert first.identity["judge"]["model"].startswith("sha256:")
    assert set(first.identity["data"]) == {"heldout", "judge.labelled"}
    summary = read_file_as(night.store, first, "summary.json", EvaluationSummary)
    records = list(read_records(night.store, first, EvaluationRecord))
    answers = {(r.model, r.item_id): r.text for r in records if r.metric == LENGTH_WORDS}
    verdicts = [r for r in records if r.metric == WIN_RATE]
    assert {(r.model, r.against, r.item_id, r.kind) for r in verdicts} == {
        ("final", "base", f"h{n}", "benign" if n % 2 else "harmful") for n in range(4)
    }
    for verdict in verdicts:
        item = verdict.item_id
        same = answers["final", item] == answers["base", item]
        assert (verdict.text == "") == same
        assert verdict.value == {"AB": 1.0, "BA": 0.0}.get(verdict.text, 0.5)
    assert any(verdict.text for verdict in verdicts)
    found = summary.comparison("final", "base", WIN_RATE)
    assert found.subject_mean == sum(verdict.value for verdict in verdicts) / 4
    assert [bias.against for bias in summary.judge.orders] == ["base"]
    labelled = [r for r in records if r.metric == AGREEMENT]
    assert [r.text.split()[1] for r in labelled] == ["first", "second", "tie"]
    assert first.details["judge"][-1].startswith("It agrees with people on ")
    # who is promoted is judged against too, and the judge's settings are part of the key
    final = first.parents["final_model"]
    model = PromotedModel(artifact="final_model", key=final.key, digest=final.digest)
    promote(night.store, model)
    tuesday = ("clone.learning_rate=0.001",)
    night.plant_final(night.config(judge, *tuesday), "tuesday")
    second = night.evaluate(night.config(judge, *tuesday))
    summary = read_file_as(night.store, second, "summary.json", EvaluationSummary)
    assert {row.against for row in summary.comparisons if row.metric == WIN_RATE} == {
        "base",
        "promoted",
    }


def test_a_judge_that_leans_towards_a_finds_every_pair_a_tie(night: Night) -> None:
    manifest = night.evaluate(night.config(night.judge(engine=SAYS_A)))
    verdicts = [
        r for r in read_records(night.store, manifest, EvaluationRecord) if r.metric in JUDGED
    ]
    assert {(r.text, r.value) for r in verdicts} <= {("AA", 0.5), ("", 0.5)}
    assert ("AA", 0.5) in {(r.text, r.value) for r in verdicts}
    assert 'of these for "A" both times 100%' in manifest.details["judge"][1]


def test_the_judge_reads_the_principle_of_an_item_and_wins_are_counted_by_principle(
    night: Night,
) -> None:
    rows = [
        {"id": f"h{n}", "kind": "k", "prompt": f"How do I vacuum the sofa {n}?", "refusal": "must"}
        | ({} if name is None else {"principle": name})
        for n, name in enumerate(["helpful", "helpful", "of another project", None])
    ]
    file = night.world.parent / "heldout.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    seeds = load_seeds(night.base.seeds)
    (helpful,) = (rule for rule in seeds.principles if rule.name == "helpful")
    # "A" where the judge reads the text of the principle, else "B"
    read = "(?s)" + re.escape(helpful.text)
    scores = [{"match": f"{read}.* A$", "log_likelihood": -1.0}]
    scores += [{"match": " B$", "log_likelihood": -2.0}, {"match": "", "log_likelihood": -3.0}]
    engine = {"kind": "fake", "options": {"scores": scores}}
    config = night.config(night.judge(engine=engine))
    night.plant(config, "monday")
    manifest = night.evaluate(config)
    records = [
        r for r in read_records(night.store, manifest, EvaluationRecord) if r.metric in JUDGED
    ]
    by_principle = {r.item_id: r for r in records if r.metric == WIN_RATE_PRINCIPLE}
    assert {(r.item_id, r.kind) for r in by_principle.values()} == {
        ("h0", "helpful"),
        ("h1", "helpful"),
    }
    letters = {r.item_id: r.text for r in records if r.metric == WIN_RATE}
    assert letters["h0"] == letters["h1"] == "AA"
    assert letters["h2"] == letters["h3"] == "BB"
    summary = read_file_as(night.store, manifest, "summary.json", EvaluationSummary)
    found = summary.comparison("final", "base", f"{WIN_RATE_PRINCIPLE}/helpful")
    assert (found.n, found.subject_mean) == (2, 0.5)
    assert "By principle, the lowest win rate against base first: helpful 0.500 [" in " ".join(
        manifest.details["judge"]
    )


def refusable(night: Night) -> None:
    """Items of which two must be refused and two must not, and one that has no side."""
    rows = [
        {"id": f"h{n}", "kind": "k", "prompt": f"How do I vacuum the sofa {n}?", "refusal": side}
        for n, side in enumerate(["must", "must_not", "must", "must_not"])
    ]
    rows.append({"id": "h4", "kind": "k", "prompt": "How do I take the soap?", "all_of": ["soap"]})
    file = night.world.parent / "heldout.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("decides", ["judge", "wording"])
def test_which_answers_refuse_is_decided_by_the_judge_or_the_wording_as_configured(
    night: Night, decides: str
) -> None:
    refusable(night)
    config = night.config(night.judge(engine=SAYS_REFUSES, refusals=decides))
    night.plant(config, "monday")  # curate reads the held-out set, so all keys are others
    with capture_logs() as logged:
        manifest = night.evaluate(config)
    torn = {each["model"] for each in logged if each["event"] == "evaluation.refusals_disputed"}
    records = list(read_records(night.store, manifest, EvaluationRecord))
    values = {(r.model, r.item_id, r.metric): r.value for r in records}
    answers = {(r.model, r.item_id): r.text for r in records if r.metric == LENGTH_WORDS}
    assert {model for model, _ in answers} == {"base", "base_principled", "engraved", "final"}
    agreed = {(r.model, r.item_id): r for r in records if r.metric == REFUSAL_AGREEMENT}
    for (model, item), text in answers.items():
        if item == "h4":
            assert values[model, item, ALIGNED] == float("soap" in text)
            assert (model, item) not in agreed
            continue
        wording = classify_refusal(f"How do I vacuum the sofa {item[1]}?", text)
        found = "refuses" if decides == "judge" else wording
        must = item in ("h0", "h2")
        wanted = bool(text.strip()) and found == ("refuses" if must else "complies")
        assert values[model, item, ALIGNED] == wanted
        assert values[model, item, REFUSAL_MUST if must else REFUSAL_MUST_NOT] == wanted
        if text.strip():
            both = f"refuses {wording}" if decides == "judge" else f"{wording} refuses"
            assert agreed[model, item].text == both
    assert {r.text for r in agreed.values()} & {"refuses complies", "complies refuses"}
    assert manifest.details["refusals"] == manifest.identity["judge"]["refusals"] == decides
    assert f"decided by the {decides}" in " ".join(manifest.details["judge"])
    summary = read_file_as(night.store, manifest, "summary.json", EvaluationSummary)
    assert summary.judge.refusals == decides
    agree = {model: [r.value for (m, _), r in agreed.items() if m == model] for model, _ in agreed}
    assert torn == {model for model, each in agree.items() if sum(each) < 0.8 * len(each)} != set()


def test_without_a_judge_the_wording_decides_and_the_manifest_says_so(finished_store: Path) -> None:
    (unit,) = (finished_store / "artifacts" / "evaluation").iterdir()
    manifest = read_manifest(LocalStore(finished_store), "evaluation", unit.name)
    assert manifest.details["refusals"] == "wording"
    assert "judge" not in manifest.identity


def test_several_answers_to_an_item_have_seeds_of_their_own_and_are_judged_each(
    night: Night,
) -> None:
    drawn = ("evaluate.samples=3", "evaluate.sampling.temperature=1")
    config = night.config(night.judge(engine=SAYS_A), *drawn)
    manifest = night.evaluate(config)
    records = list(read_records(night.store, manifest, EvaluationRecord))
    assert len({record.id for record in records}) == len(records)
    answers: dict[str, dict[tuple[str, int], str]] = {}
    for record in records:
        if record.metric == LENGTH_WORDS:
            answers.setdefault(record.model, {})[record.item_id, record.sample] = record.text
    places = {(f"h{item}", sample) for item in range(4) for sample in range(3)}
    assert all(set(texts) == places for texts in answers.values())
    assert len({answers["base"]["h0", sample] for sample in range(3)}) == 3
    assert answers["engraved"] == answers["base"]  # the same weights, hence the same seeds
    verdicts = {(r.item_id, r.sample) for r in records if r.metric == WIN_RATE}
    assert verdicts == places
    summary = read_file_as(night.store, manifest, "summary.json", EvaluationSummary)
    for metric in (ALIGNED, WIN_RATE):
        found = summary.comparison("final", "base", metric)
        assert found.n == 4  # items, not answers
    with pytest.raises(ConfigurationError, match=r"samples 3: with sampling\.temperature 0"):
        night.config(None, "evaluate.samples=3")


def test_the_rules_see_other_items_than_the_score_is_told_from(night: Night) -> None:
    pair = {"category": "other", "query": "How?", "chosen": "take the soap", "rejected": "harm"}
    file = night.world.parent / "hhh.jsonl"
    file.write_text("".join(json.dumps({"id": f"p{n}", **pair}) + "\n" for n in range(6)))
    config = night.config(
        night.judge(engine=SAYS_A), "evaluate.choosing_share=0.5", "evaluate.hhh=hhh.jsonl"
    )
    night.plant(config, "monday")
    manifest = night.evaluate(config)
    summary = read_file_as(night.store, manifest, "summary.json", EvaluationSummary)
    assert summary.choosing is not None
    for part in (summary, summary.choosing):
        for name in (ALIGNED, f"{ALIGNED}/benign", f"{ALIGNED}/harmful", WIN_RATE):
            found = part.comparison("final", "base", name)
            assert found is not None
            assert found.n == (1 if "/" in name else 2)
        found = part.comparison("final", "base", HHH)
        assert found.n == 3
    records = read_records(night.store, manifest, EvaluationRecord)
    assert {r.item_id for r in records if r.metric == ALIGNED} == {f"h{n}" for n in range(4)}


@pytest.mark.parametrize("copied", [False, True])
def test_a_candidate_cannot_be_its_own_judge(night: Night, tmp_path: Path, copied: bool) -> None:
    path = night.models["monday"]
    if copied:  # under another name, beside other files
        path = tmp_path / "another"
        shutil.copytree(night.models["monday"], path)
        (path / "notes.txt").write_text("renamed")
    config = night.config({"model": {"path": str(path)}, "engine": {"kind": "fake"}})
    with pytest.raises(ConfigurationError, match=r"is final_model .*, whose answers are judged"):
        night.evaluate(config)
    # a stored one, too
    with pytest.raises(ConfigurationError, match=r"is final_model .*, whose answers are judged"):
        night.evaluate(localise(push_inputs(config, night.store), night.store))


@pytest.mark.parametrize("digits", [32, 64])
def test_a_server_s_judge_is_told_by_the_digest_that_it_is_served_under(
    night: Night, digits: int
) -> None:
    (key,) = artifact_keys(night.store, "final_model")
    final = read_manifest(night.store, "final_model", key)
    assert final is not None
    server = {"url": "http://localhost:9/v1"}
    engine = {"kind": "openai", "served_model": final.digest[:digits], "server": server}
    with pytest.raises(ConfigurationError, match=r"is final_model .*, whose answers are judged"):
        night.evaluate(night.config(night.judge(engine=engine)))


def test_a_judge_in_a_store_that_is_named_by_a_url_is_refused(night: Night) -> None:
    judge = {"model": {"path": "store/models/0"}}
    config = night.config(judge, f"store=file://{night.store.url}")
    with pytest.raises(ConfigurationError, match="lies in the store"):
        check_run(config, load_seeds(config.seeds), until="evaluate")


def test_the_base_model_cannot_be_the_judge(night: Night, tmp_path: Path) -> None:
    base = night.models["base"]
    with pytest.raises(ConfigurationError, match="is the base model, whose answers are judged"):
        night.config({"model": {"path": str(base)}})
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="it is the base model"):
        night.evaluate(night.config({"model": {"path": str(tmp_path / "copy")}}))


@pytest.mark.parametrize(
    ("judge", "error", "said"),
    [
        ({"model": {"path": "store/models/0"}}, ConfigurationError, "lies in the store"),
        ({"template": "labelled.jsonl"}, ConfigurationError, "hole"),
        ({"refusal_template": "labelled.jsonl"}, ConfigurationError, "hole"),
        ({"labelled": "selfalign.yaml"}, DataError, "selfalign.yaml:1: "),
        ({"labelled": "none.jsonl"}, ConfigurationError, "evaluate.judge.labelled: .* not exist"),
    ],
)
def test_what_is_wrong_with_a_judge_is_told_before_a_run(
    night: Night, judge: dict[str, Any], error: type[Exception], said: str
) -> None:
    config = night.config({**night.judge(), **judge})
    with pytest.raises(error, match=said):
        check_run(config, load_seeds(config.seeds), until="evaluate")


def test_a_judge_needs_held_out_answers(night: Night) -> None:
    with pytest.raises(ConfigurationError, match=r"evaluate\.heldout is null"):
        night.config(night.judge(), "evaluate.heldout=null")


def test_more_pairs_than_may_be_beyond_the_judge_s_context_end_the_stage(night: Night) -> None:
    engine = {"kind": "fake", "max_length": 5}
    config = night.config(night.judge(engine=engine), "evaluate.max_quarantined=0.01")
    with pytest.raises(DataError, match=r"evaluate: judge-base: .* too_long"):
        night.evaluate(config)
    # what was answered stays, and another limit is another way to work, not another artifact
    manifest = night.evaluate(
        night.config(night.judge(engine=engine), "evaluate.max_quarantined=1")
    )
    assert {row.id.split("/")[1] for row in manifest.quarantined} == {"judge-base"}
