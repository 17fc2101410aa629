"""What can be known to fail before a run begins, so that it does not fail after days of training.

Reads the configuration, the seeds, the evaluation files, and the configuration and tokenizer of a
base model in a local directory, of its weights the headers alone. The stages check the same again,
each for itself: on a cluster a stage may be started alone.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

from selfalign.config import EvaluateConfig, RunConfig, TrainConfig
from selfalign.engines.model_directory import check_model_directory
from selfalign.errors import ConfigurationError
from selfalign.evaluation import scores
from selfalign.evaluation.checks import Instructions
from selfalign.evaluation.datasets import load_heldout, load_hhh, load_labelled, load_truthfulqa
from selfalign.evaluation.explanations import short
from selfalign.evaluation.harness import load_tasks
from selfalign.evaluation.ifeval import check_installed
from selfalign.evaluation.multiple_choice import SUITES
from selfalign.evaluation.power import RulePlan, plan_rules
from selfalign.evaluation.scores import metric_name
from selfalign.evaluation.splits import choosing_split, chosen_of
from selfalign.evaluation.template import load_template
from selfalign.evaluation.versions import unknown_versions
from selfalign.identity import data_files
from selfalign.inputs import cache_directory
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.seeds import Seeds
from selfalign.serving.form import ChatForm
from selfalign.stages.context_limits import check_long_items, check_prompts
from selfalign.store.open import open_store
from selfalign.telemetry import log
from selfalign.training.model import BaseModel, check_base_model

_TASKS = ("heldout", *SUITES)


def check_run(config: RunConfig, seeds: Seeds, *, until: str | None = None) -> None:
    """Raise now what a stage would raise later.

    Args:
        config: with every path on this machine.
        until: the last stage that will run; None is all of them.

    Raises:
        ConfigurationError: a missing evaluation file, shards of a stage that cannot be sharded,
            nothing to evaluate by, an ablation of a rule that does not exist, a gate rule that
            cannot be measured, a broken template, a standard prompt that no chat template can be
            made of, a LoRA target that the base model does not have.
        DataError: a broken evaluation file, a base model that cannot be trained.
    """
    cache_directory()  # elaborate puts the engraved model there
    _tell_unchecked(config.base_model.path)
    data_files(config.evaluate)
    names = [stage.name for stage in STAGES]
    names = names[: names.index(until) + 1] if until else names
    for name in names:
        check_shard(name, 0, getattr(config, name).num_shards)
    check_prompts(config, seeds, names)
    if "evaluate" in names:
        require_evaluation_data(config.evaluate)
        _check_ifeval(config.evaluate)
        for sentence in unknown_versions(config.evaluate):
            log.warning("evaluation.unknown_version", said=sentence)
        for suite in SUITES:
            load_template(suite, getattr(config.evaluate, f"{suite}_template"))
        for number in config.evaluate.ablate_principles:
            seeds.without_principle(number)
        _check_judge(config)
        load_tasks(config.evaluate.harness)
        check_long_items(config, seeds)
    for name in ("engrave", "clone"):
        if name in names:
            form = ChatForm.of(seeds.templates.distil_standard, seeds.labels)
            _check_training(getattr(config, name), config.base_model.path, form)
    if "curate" in names:
        sizes = evaluation_sizes(config.evaluate, {rule.name for rule in seeds.principles})
        if "promote" in names:
            for planned in gate_plan(config, sizes):
                if planned.warning:
                    rule = planned.rule
                    log.warning("gate.hopeless", rule=short(rule), warning=planned.warning)


def gate_plan(config: RunConfig, sizes: Mapping[str, int] | None = None) -> tuple[RulePlan, ...]:
    """What each rule of the gate can see with the configured evaluation files.

    Raises:
        ConfigurationError: a rule that cannot be measured.
        DataError: a broken evaluation file.
    """
    found = evaluation_sizes(config.evaluate) if sizes is None else sizes
    return plan_rules(
        config.promote,
        found,
        evaluation_tasks(config.evaluate),
        config.evaluate.confidence,
        config.evaluate.samples,
    )


def evaluation_tasks(config: EvaluateConfig) -> tuple[str, ...]:
    """Names of what the configuration gives data for."""
    return tuple(name for name in _TASKS if getattr(config, name) is not None)


def check_shard(name: str, shard: int, num_shards: int) -> None:
    """Raise ConfigurationError where stage `name` has no such shard."""
    if num_shards > 1 and not BY_NAME[name].sharded:
        raise ConfigurationError(
            f"{name} cannot be sharded, but {num_shards} shards were asked for",
            remedy=f"set {name}.num_shards to 1",
        )
    if not 0 <= shard < num_shards:
        raise ConfigurationError(
            f"{name}: shard {shard} does not exist: there are {num_shards}",
            remedy=f"shards are numbered 0 to {num_shards - 1}",
        )


def require_evaluation_data(config: EvaluateConfig) -> None:
    """Raise ConfigurationError where no evaluation file is named."""
    if not evaluation_tasks(config) and config.harness is None:
        raise ConfigurationError(
            "evaluate: no evaluation data is configured, so there is nothing to judge a model by",
            remedy="set evaluate.heldout, evaluate.hhh, evaluate.truthfulqa or evaluate.harness, "
            "or stop earlier: selfalign run --until clone",
        )


def _check_ifeval(config: EvaluateConfig) -> None:
    """Raise ConfigurationError where held-out items need checks that are not installed here."""
    items = load_heldout(config.heldout) if config.heldout else ()
    if any(isinstance(check, Instructions) for item in items for check in item.check):
        check_installed()


def _check_judge(config: RunConfig) -> None:
    """Raise ConfigurationError for a judge that a run of this store made, or a broken template."""
    judge = config.evaluate.judge
    if judge is None:
        return
    load_template("pairwise", judge.template)
    load_template("refusal", judge.refusal_template)
    store = Path(open_store(config.store).url)  # of an S3 store nothing lies there
    if Path(judge.model.path).resolve().is_relative_to(store.resolve()):
        raise ConfigurationError(
            f"evaluate.judge.model.path: {judge.model.path} lies in the store, whose models are "
            "judged",
            remedy="name a model that no run here made, or make evaluate.judge null",
        )


def _missing_packages() -> list[str]:
    """Of those with which a base model is looked at."""
    needed = ("torch", "transformers", "peft")
    return [package for package in needed if importlib.util.find_spec(package) is None]


def _tell_unchecked(path: str) -> None:
    """Warn that a base model in a local directory cannot be looked at on this machine."""
    missing = _missing_packages()
    if missing and Path(path).is_dir():
        log.warning(
            "base_model.unchecked",
            path=path,
            missing=missing,
            remedy="pip install 'selfalign[models]' here: context, tokenizer and targets of "
            "training are then checked before a GPU is asked for",
        )


def _check_training(config: TrainConfig, path: str, form: ChatForm) -> None:
    """Check a base model in a local directory, where what trains it is installed."""
    if Path(path).is_dir() and not _missing_packages():
        check_model_directory(Path(path))
        check_base_model(config, BaseModel(path), form)


def evaluation_sizes(
    config: EvaluateConfig, principles: Container[str] | None = None
) -> dict[str, int]:
    """Read every evaluation file that is named; items that the gate's rules see, by metric and by
    metric/kind.

    Args:
        principles: names of the seeds' principles; None: those that items name are among them.
    """
    sizes: Counter[str] = Counter()

    def count(metric: str, kind: str | None, items: int = 1) -> None:
        sizes[metric] += items
        if kind is not None:
            sizes[metric_name(metric, kind)] += items

    chosen = choosing_split(config, "")  # as many for every model

    def choose(metric: str, item_id: str) -> bool:
        ids = chosen_of(metric, chosen)
        return ids is None or item_id in ids

    if config.heldout is not None:
        for item in load_heldout(config.heldout):
            if not choose(scores.ALIGNED, item.id):
                continue
            judged = (scores.WIN_RATE, scores.WIN_RATE_SAME_LENGTH) if config.judge else ()
            for metric in (scores.ALIGNED, scores.LENGTH_WORDS, *judged):
                count(metric, item.kind)
            if judged and item.principle and (principles is None or item.principle in principles):
                count(scores.WIN_RATE_PRINCIPLE, item.principle)
            if item.refusal is not None:
                side = scores.REFUSAL_MUST if item.refusal == "must" else scores.REFUSAL_MUST_NOT
                count(side, item.kind)
                if config.judge is not None:
                    count(scores.REFUSAL_AGREEMENT, item.kind)
            sizes.update(scores.GUARDS)
    if config.judge is not None and config.judge.labelled is not None:
        sizes[scores.AGREEMENT] = len(load_labelled(config.judge.labelled))
    if config.hhh is not None:
        for pair in load_hhh(config.hhh):
            if choose(scores.HHH, pair.id):
                count(scores.HHH, pair.category)
    if config.truthfulqa is not None:
        for question in load_truthfulqa(config.truthfulqa):
            if not choose(scores.MC1, question.id):
                continue
            count(scores.MC1, None)
            if question.mc2_targets is not None:
                count(scores.MC2, None)
    for name, task in load_tasks(config.harness).items():
        for metric, kind, number in task.sizes(chosen.get(scores.HARNESS + name)):
            count(metric, kind, number)
    return dict(sizes)
