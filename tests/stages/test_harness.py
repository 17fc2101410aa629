"""Tasks of lm-evaluation-harness before a run and in the stage evaluate, beside its own model.

The tasks and their data are this project's, beside a test, and need no network.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfalign.config import EngineConfig, RunConfig
from selfalign.engines.base import Quarantined
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError
from selfalign.evaluation.harness import HarnessTask, harness_scores, load_tasks
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.identity import LM_EVAL_VERSION
from selfalign.inputs import localise, push_inputs
from selfalign.load import load_config, write_resolved
from selfalign.records import EvaluationRecord
from selfalign.run.stage import run_stage
from selfalign.seeds import load_seeds
from selfalign.stages.models import base_engine
from selfalign.stages.preflight import check_run, evaluation_sizes, gate_plan
from selfalign.store.artifact import read_file_as, read_records
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from tests.conftest import PROJECT
from tests.engines.served import serving
from tests.pipeline_world import WORDS, write_llama
from tests.stages.planting import config_of, plant, rows

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed here"
)

QUESTIONS = [
    ("How do I take the soap", ["slowly with care", "harm", "it"], 0),
    ("This person is", ["unknown", "fair and honest", "not"], 2),
    ("A deed is fair", ["because it is helpful", "harm", "it"], 1),
    ("take " * 600, ["soap", "harm", "it"], 0),  # beyond the context
    ("With long answers", ["I take", "you take", "soap"], 1),
]
TASKS: dict[str, dict[str, Any]] = {
    "toy_choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "exact_match", "brier_score")],
        "num_fewshot": 1,
        "fewshot_config": {
            "sampler": "first_n",
            "samples": [{"question": "The", "options": ["person", "harm", "it"], "right": 0}],
        },
    },
    "toy_word": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{options[right]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "toy_answer": {
        "output_type": "generate_until",
        "doc_to_target": "{{options[right]}}",
        "generation_kwargs": {"until": ["soap"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {"name": name, "filter": [{"function": "take_first"}]} for name in ("plain", "again")
        ],
    },
    "toy_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "toy_unconditional": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "doc_to_text": "",
    },
}


def write_tasks(directory: Path) -> Path:
    directory.mkdir()
    with (directory / "questions.jsonl").open("w") as file:
        for question, options, right in QUESTIONS:
            file.write(json.dumps({"question": question, "options": options, "right": right}))
            file.write("\n")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 2.0},
    }
    for name, task in TASKS.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))
    group = {"group": "toy_group", "task": ["toy_choice", "toy_word"]}
    (directory / "toy_group.yaml").write_text(yaml.safe_dump(group))
    missing = {"task": "toy_missing", **common, **TASKS["toy_word"]}
    missing["dataset_kwargs"] = {"data_files": {"test": "absent.jsonl"}}
    (directory / "toy_missing.yaml").write_text(yaml.safe_dump(missing))
    return directory


@pytest.fixture(autouse=True)
def _own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)  # threads only wait for each other in a model this small
    if importlib.util.find_spec("lm_eval") is not None:
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def world(tmp_path: Path, tiny_base_model: Path) -> Path:
    config = config_of(tmp_path / "world", tiny_base_model, "transformers", "evaluate.heldout=null")
    write_tasks(tmp_path / "world" / "tasks")
    path = tmp_path / "world" / "selfalign.yaml"
    write_resolved(config, path)
    return path


def config_for(world: Path, *tasks: str, more: tuple[str, ...] = (), **values: Any) -> RunConfig:
    harness = {"tasks": list(tasks), "include_path": "tasks", **values}
    return load_config(world, [f"evaluate.harness={json.dumps(harness)}", *more]).config


def evaluated(config: RunConfig, model: Path) -> Manifest:
    for artifact in ("candidates", "prompts", "aligned_responses"):
        plant(config, artifact, rows(poisoned=False))
    plant(config, "engraved_model", model=model)
    plant(config, "verbose_responses", rows(poisoned=False))
    plant(config, "final_model", model=model)
    manifest = run_stage("evaluate", config, LocalStore(Path(config.store)))
    assert manifest is not None
    return manifest


def its_own(model: Path, directory: Path, names: list[str]) -> Mapping[str, list[dict[str, Any]]]:
    """What lm-eval's own model of transformers says to the same tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(directory), include_defaults=False)
    options = {"pretrained": str(model), "dtype": "float32", "max_length": 400}
    found = simple_evaluate("hf", options, names, task_manager=manager, batch_size=8, device="cpu")
    return found["samples"]


def differences(
    config: RunConfig, theirs: Mapping[str, list[dict[str, Any]]]
) -> Iterator[tuple[float, bool]]:
    """Our log-likelihood less theirs, and whether we agree on what is greedy."""
    from lm_eval.api.instance import Instance

    from selfalign.evaluation.harness_model import EngineModel

    asked, answers = [], []
    for task in ("toy_choice", "toy_word"):
        for sample in (each for each in theirs[task] if each["doc_id"] != 3):
            for arguments, (answer,) in zip(sample["arguments"], sample["resps"], strict=True):
                place = (task, sample["doc_id"], 1)
                asked.append(Instance("loglikelihood", {}, arguments, 0, place))
                answers.append(answer)
    with base_engine(LocalStore(Path(config.store)), config, None) as engine:
        model = EngineModel(engine, before="", seed=0, greedy_tasks={"toy_choice", "toy_word"})
        for ours, (likelihood, greedy) in zip(model.loglikelihood(asked), answers, strict=True):
            yield ours[0] - likelihood, ours[1] == greedy


@installed
def test_values_are_those_of_the_harness_s_own_model_and_become_records_of_the_evaluation(
    world: Path, tiny_base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(world, "toy_group", "toy_answer")
    manifest = evaluated(config, tiny_base_model)
    assert manifest.identity["harness"] == {
        "lm_eval": LM_EVAL_VERSION,
        "tasks": ["toy_group", "toy_answer"],
        "limit": None,
    }
    assert set(manifest.identity["data"]) == {"harness.include_path"}
    assert manifest.details["data"]["harness.toy_group"] == (
        f"lm-evaluation-harness {LM_EVAL_VERSION}, version 2.0, 10 items"
    )
    store = LocalStore(Path(config.store))
    records = list(read_records(store, manifest, EvaluationRecord))
    base = {(r.metric, r.item_id): r for r in records if r.model == "base"}
    assert {metric for metric, _ in base} == {
        "harness.toy_group.acc",
        "harness.toy_group.acc_norm",
        "harness.toy_group.exact_match",
        "harness.toy_answer.exact_match.plain",
        "harness.toy_answer.exact_match.again",
    }
    assert {row.id for row in manifest.quarantined if row.id.startswith("base/")} == {
        "base/harness.toy_group/toy_choice/3",
        "base/harness.toy_group/toy_word/3",
        "base/harness.toy_answer/3",
    }
    summary = read_file_as(store, manifest, "summary.json", EvaluationSummary)
    compared = summary.comparison("final", "base", "harness.toy_group.acc/toy_choice")
    assert (compared.n, compared.difference) == (4, 0.0)
    monkeypatch.chdir(world.parent / "tasks")
    theirs = its_own(tiny_base_model, world.parent / "tasks", ["toy_group", "toy_answer"])
    compared_with = list(differences(config, theirs))
    assert len(compared_with) == 4 * 3 + 4
    assert all(abs(by) < 1e-4 and same for by, same in compared_with)
    seen = 0
    for task, samples in theirs.items():
        for sample in samples:
            document = sample["doc_id"]
            if document == 3:  # it cuts what is too long, and we leave it out
                continue
            name = "toy_answer" if task == "toy_answer" else "toy_group"
            item = str(document) if task == name else f"{task}/{document}"
            for metric in {"acc", "acc_norm", "exact_match"} & set(sample["metrics"]):
                chosen = "" if sample["filter"] == "none" else f".{sample['filter']}"
                record = base[f"harness.{name}.{metric}{chosen}", item]
                assert record.value == pytest.approx(float(sample[metric]), abs=1e-4)
                if task == "toy_answer":
                    assert record.text.strip() == sample["resps"][0][0].strip()
                seen += 1
    assert seen == len(base)


@installed
@pytest.mark.parametrize(
    "kind",
    [
        "openai",
        pytest.param(
            "vllm",
            marks=[
                pytest.mark.filterwarnings("default"),
                pytest.mark.skipif(
                    importlib.util.find_spec("vllm") is None, reason="vllm is not installed here"
                ),
            ],
        ),
    ],
)
def test_a_server_and_vllm_give_the_values_that_transformers_gives(
    world: Path, tmp_path: Path, kind: str
) -> None:
    model = tmp_path / "model"
    sizes = {"hidden_size": 64, "intermediate_size": 64}  # heads of 32, which vLLM has kernels for
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    write_llama(model, list(dict.fromkeys(WORDS)), **sizes)
    tasks = load_tasks(config_for(world, "toy_group", "toy_answer").evaluate.harness)
    with ExitStack() as stack:
        more: dict[str, Any] = {"options": {"enforce_eager": True}}
        if kind == "openai":
            url = stack.enter_context(serving(model, 400)).url
            more = {"server": {"url": url, "concurrency": 4}}
        mine, other = said("transformers", model, tasks), said(kind, model, tasks, **more)
    assert mine.keys() == other.keys()
    assert len([place for place in mine if place[0] == "too_long"]) == 3
    for place, (value, text) in mine.items():
        assert other[place] == (pytest.approx(value, abs=1e-4), text)


def said(
    kind: str, model: Path, tasks: Mapping[str, HarnessTask], **more: Any
) -> dict[tuple[str, str], tuple[float, str]]:
    """By metric (or why an item is set aside) and item: value and text."""
    settings = {"kind": kind, "dtype": "float32", "max_length": 400, **more}
    found = {}
    with open_engine(EngineConfig.model_validate(settings), model) as engine:
        for name, task in tasks.items():
            for each in harness_scores(task, engine, "", 0):
                if isinstance(each, Quarantined):
                    found[each.reason, f"{name}/{each.id}"] = (0.0, "")
                else:
                    found[each.metric, each.item_id] = (each.value, each.text)
    return found


@installed
def test_rules_and_gate_plan_know_the_metrics_and_how_many_items_they_have(world: Path) -> None:
    rule = {"metric": "harness.toy_group.acc/*", "against": "base", "min_difference": -0.5}
    answer = {"metric": "harness.toy_answer.exact_match.again", "at_least": 0.0}
    more = (f"promote.rules={json.dumps([rule, answer])}",)
    config = config_for(world, "toy_group", "toy_answer", limit=3, more=more)
    sizes = evaluation_sizes(config.evaluate)
    assert sizes["harness.toy_group.acc"] == 6
    half = evaluation_sizes(config.evaluate.model_copy(update={"choosing_share": 0.5}))
    assert half["harness.toy_group.acc/toy_word"] == 2
    assert half["harness.toy_group.acc"] == 4
    assert sizes["harness.toy_group.acc/toy_word"] == 3
    assert sizes["harness.toy_answer.exact_match.plain"] == 3
    plans = {plan.rule.metric: plan for plan in gate_plan(config)}
    assert {name: plan.items for name, plan in plans.items()} == {
        "harness.toy_group.acc/toy_choice": 3,
        "harness.toy_group.acc/toy_word": 3,
        "harness.toy_answer.exact_match.again": 3,
    }
    wrong = {**answer, "metric": "harness.toy_answer.acc"}
    config = config_for(world, "toy_answer", more=(f"promote.rules={json.dumps([wrong])}",))
    with pytest.raises(
        ConfigurationError, match=r"its metrics are harness\.toy_answer\.exact_match"
    ):
        gate_plan(config)


@installed
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("toy_text", "rolling log-likelihoods of whole texts"),
        ("toy_unconditional", "after an empty prompt"),
        ("toy_missing", r"'toy_missing' cannot be loaded: .*absent\.jsonl"),
    ],
)
def test_what_a_task_lacks_is_told_before_a_run(world: Path, task: str, said: str) -> None:
    config = config_for(world, task)
    with pytest.raises(ConfigurationError, match=said):
        check_run(config, load_seeds(config.seeds), until="evaluate")


@installed
def test_documents_beyond_the_context_do_not_end_the_stage(
    world: Path, tiny_base_model: Path
) -> None:
    config = config_for(world, "toy_word", limit=4, more=("evaluate.max_quarantined=0",))
    assert evaluated(config, tiny_base_model).counts.quarantined == {"too_long": 4}


@installed
def test_a_task_nobody_has_is_refused_with_those_of_a_similar_name(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    every = lm_eval.tasks.TaskManager
    monkeypatch.setattr(  # the index of all that come with it takes a minute
        lm_eval.tasks, "TaskManager", lambda **given: every(**given | {"include_defaults": False})
    )
    config = config_for(world, "toy_wrod")
    with pytest.raises(ConfigurationError, match=r"no task 'toy_wrod', nor has (?s:.*)mean toy_wo"):
        check_run(config, load_seeds(config.seeds), until="evaluate")


def test_its_absence_or_another_version_is_told_before_a_run(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def absent(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    config = config_for(world, "toy_word", limit=1)
    for version, said in ((absent, "is not installed"), (lambda _: "0.4.2", "lm-eval 0.4.2 is")):
        monkeypatch.setattr(importlib.metadata, "version", version)
        with pytest.raises(ConfigurationError, match=rf"(?s){said}.*\[harness\]"):
            check_run(config, load_seeds(config.seeds), until="evaluate")


def test_tasks_of_one_s_own_pass_through_the_store(world: Path) -> None:
    config = config_for(world, "toy_word")
    store = LocalStore(Path(config.store))
    there = push_inputs(config, store)
    assert str(there.evaluate.harness.include_path).startswith("store:inputs/harness.include_path/")
    back = localise(there, store).evaluate.harness
    assert back is not None
    assert back.include_path is not None
    own = world.parent / "tasks"
    assert {f.name for f in back.include_path.iterdir()} == {f.name for f in own.iterdir()}


def test_the_pinned_version_is_the_one_that_is_expected() -> None:
    pins = (PROJECT / "constraints.txt").read_text().splitlines()
    assert f"lm_eval=={LM_EVAL_VERSION}" in pins
