"""Tasks of EleutherAI's lm-evaluation-harness by name (extra `harness`): what is measured, and how.

A name is that of a task, a group or a tag. Of a task's metrics those are kept that are a mean over
documents and count upwards, as `harness.<name>.<metric>`; of several filters each has its own,
`harness.<name>.<metric>.<filter>`. In a group or tag the kind of an item is the task it is from.
Prompts are the task's own, without a chat template.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from selfalign.config import HarnessConfig
from selfalign.engines.base import Asked, Quarantined
from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from selfalign.evaluation.scores import HARNESS, ItemScore
from selfalign.identity import LM_EVAL_VERSION

_INSTALL = f'pip install -c constraints.txt -e ".[harness]" (lm-eval {LM_EVAL_VERSION})'
_LEAVE_OUT = "or leave it out of evaluate.harness.tasks"
_PROBED = 4  # documents of each task whose prompts are made before anything is trained
_SEED, _FEWSHOT_SEED = 0, 1234  # lm-eval's own defaults


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """What one configured name stands for.

    Attributes:
        name: of a task, group or tag.
        leaves: lm-eval's tasks, by name; one, of the same name, where the name is a task's.
        items: documents that are asked about, by leaf.
        metrics: names of metrics and their values' keys in lm-eval (metric, filter), by leaf.
        limit: documents of each leaf, the first ones; None is all.
    """

    name: str
    leaves: Mapping[str, Any]
    items: Mapping[str, int]
    metrics: Mapping[str, Mapping[tuple[str, str], str]]
    limit: int | None

    @property
    def num_items(self) -> int:
        """Documents of all leaves."""
        return sum(self.items.values())

    @property
    def scores_continuations(self) -> bool:
        """Whether it asks for log-likelihoods."""
        return any(leaf.OUTPUT_TYPE != "generate_until" for leaf in self.leaves.values())

    def sizes(self, chosen: frozenset[str] | None) -> Iterator[tuple[str, str | None, int]]:
        """(metric, kind, number of items) of each leaf; of items with these ids, None is all."""
        for leaf, metrics in self.metrics.items():
            items = self.items[leaf] if chosen is None else len(chosen.intersection(self.ids(leaf)))
            for metric in metrics.values():
                yield metric, self.kind(leaf), items

    def ids(self, leaf: str) -> list[str]:
        """The ids of a leaf's items."""
        return [self.item_id(leaf, document) for document in range(self.items[leaf])]

    def kind(self, leaf: str) -> str | None:
        """The kind of a leaf's items."""
        return None if leaf == self.name else leaf

    def item_id(self, leaf: str, document: int | str) -> str:
        """A document's id, which is its number in its task."""
        return str(document) if leaf == self.name else f"{leaf}/{document}"

    def described(self) -> str:
        """For people: versions and items."""
        versions = sorted({str(leaf.VERSION) for leaf in self.leaves.values()})
        return (
            f"lm-evaluation-harness {LM_EVAL_VERSION}, version {', '.join(versions)}, "
            f"{self.num_items} items"
        )


def load_tasks(config: HarnessConfig | None) -> dict[str, HarnessTask]:
    """The configured tasks by name, with their data; loaded once in a process.

    Raises:
        ConfigurationError: lm-eval is missing or of another version, no task has this name, its
            data cannot be loaded, or it asks for what no engine here can do.
    """
    if config is None:
        return {}
    return dict(_loaded(tuple(config.tasks), config.include_path, config.limit))


@cache
def _loaded(
    names: tuple[str, ...], include_path: Path | None, limit: int | None
) -> Mapping[str, HarnessTask]:
    _check_version()
    # Tasks may name data and hold Python files beside their own: nothing is written there, or
    # the directory's digest would change.
    there = contextlib.chdir(include_path) if include_path else contextlib.nullcontext()
    keep_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with there, _seeded():
            manager = _manager(names, None if include_path is None else Path.cwd())
            return {name: _load(manager, name, limit) for name in names}
    finally:
        sys.dont_write_bytecode = keep_bytecode


def _check_version() -> None:
    try:
        found = importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as e:
        raise ConfigurationError(
            "evaluate.harness: lm-evaluation-harness (lm-eval) is not installed", remedy=_INSTALL
        ) from e
    if found != LM_EVAL_VERSION:  # it enters the stage's key, and tasks differ between versions
        raise ConfigurationError(
            f"evaluate.harness: lm-eval {found} is installed, expected {LM_EVAL_VERSION}",
            remedy=_INSTALL,
        )


def _manager(names: tuple[str, ...], include_path: Path | None) -> Any:
    """lm-eval's index of tasks: of the directory alone where it has all, for all take a minute."""
    tasks: Any = importlib.import_module("lm_eval.tasks")
    if include_path is not None:
        own = tasks.TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = tasks.TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise ConfigurationError(
                f"evaluate.harness.tasks: lm-eval {LM_EVAL_VERSION} has no task {name!r}"
                + (f", nor has {include_path}" if include_path else ""),
                remedy=(f"did you mean {', '.join(near)}? " if near else "")
                + "`lm-eval ls tasks` lists them; one of your own needs "
                "evaluate.harness.include_path, the directory with its YAML",
            )
    return manager


def _load(manager: Any, name: str, limit: int | None) -> HarnessTask:
    try:
        leaves = manager.load([name])["tasks"]
        for leaf_name, leaf in leaves.items():
            _check_leaf(leaf_name, leaf, limit)
        items = {leaf: len(task.eval_docs) for leaf, task in leaves.items()}
    except SelfAlignError:
        raise
    except Exception as e:  # a task is data and code of others: whatever it is, it ends here
        lines = str(e).splitlines() or [""]
        raise ConfigurationError(
            f"evaluate.harness.tasks: {name!r} cannot be loaded: {type(e).__name__}: "
            f"{lines[0][:300]}",
            remedy="its data set has to be in the cache of Hugging Face's datasets (HF_HOME) or "
            f"reachable on the Hub, and what it imports installed; {_LEAVE_OUT}",
        ) from e
    return HarnessTask(
        name=name,
        leaves=leaves,
        items={leaf: min(n, limit or n) for leaf, n in items.items()},
        metrics={leaf: _metrics(name, leaf, task) for leaf, task in leaves.items()},
        limit=limit,
    )


def _check_leaf(name: str, leaf: Any, limit: int | None) -> None:
    """Raise ConfigurationError for what would fail when the first model is asked."""
    from selfalign.evaluation.harness_model import sampling_of

    refused = None
    if leaf.OUTPUT_TYPE == "loglikelihood_rolling":
        refused = "asks for rolling log-likelihoods of whole texts, which no engine here computes"
    elif getattr(leaf, "UNSAFE_CODE", False):
        refused = "runs code that a model wrote"
    elif getattr(leaf, "MULTIMODAL", False):
        refused = "shows more than text"
    else:
        leaf.set_fewshot_seed(_FEWSHOT_SEED)
        leaf.build_all_requests(limit=min(limit or _PROBED, _PROBED))
        for request in leaf.instances:
            if not request.args[0].strip():
                refused = "asks how likely a text is after an empty prompt, which engines refuse"
            if leaf.OUTPUT_TYPE == "generate_until":
                sampling_of(request.args[1])
    if refused:
        raise ConfigurationError(
            f"evaluate.harness.tasks: {name} {refused}",
            remedy="leave it out of evaluate.harness.tasks",
        )


def _metrics(name: str, leaf: str, task: Any) -> dict[tuple[str, str], str]:
    """What is measured of each document, by (metric, filter)."""
    rising = task.higher_is_better()
    kept = [
        metric
        for metric, fold in task.aggregation().items()
        if getattr(fold, "__name__", "") == "mean" and rising.get(metric, True)
    ]
    if not kept:
        raise ConfigurationError(
            f"evaluate.harness.tasks: {leaf}: none of its metrics "
            f"({', '.join(task.aggregation())}) is a mean over documents that counts upwards",
            remedy="leave it out of evaluate.harness.tasks",
        )
    filters = [each.name for each in getattr(task, "_filters", ())] or ["none"]
    return {
        (metric, each): f"{HARNESS}{name}.{metric}" + (f".{each}" if each != "none" else "")
        for metric in kept
        for each in filters
    }


def harness_scores(
    task: HarnessTask, engine: Asked, before: str, seed: int
) -> Iterator[ItemScore | Quarantined]:
    """Ask a model everything that the task asks, and yield the values of each document.

    Raises DataError for a value that is no finite number.
    """
    from selfalign.evaluation.harness_model import EngineModel

    greedy = [name for name, leaf in task.leaves.items() if _asks_for_greedy(leaf)]
    model = EngineModel(engine, before=before, seed=seed, greedy_tasks=greedy)
    with _seeded():
        for name, leaf in task.leaves.items():
            leaf.set_fewshot_seed(_FEWSHOT_SEED)  # every model sees the same prompts
            leaf.build_all_requests(limit=task.limit)
            _ask(model, leaf)
            leaf.apply_filters()
            documents: dict[int, list[Any]] = {}
            for request in leaf.instances:
                documents.setdefault(request.doc_id, []).append(request)
            for number, requests in documents.items():
                if (row := model.set_aside.get((name, number))) is not None:
                    yield replace(row, id=task.item_id(name, number))
                else:
                    yield from _values(task, name, sorted(requests, key=lambda each: each.idx))


def _ask(model: Any, leaf: Any) -> None:
    """Put all requests of a task to the model; each as often as it says."""
    by_type: dict[str, list[Any]] = {}
    for request in leaf.instances:
        by_type.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
    for kind, requests in by_type.items():
        for request, answer in zip(requests, getattr(model, kind)(requests), strict=True):
            request.resps.append(answer)


def _asks_for_greedy(leaf: Any) -> bool:
    return leaf.OUTPUT_TYPE == "loglikelihood" or (
        leaf.OUTPUT_TYPE == "multiple_choice" and "exact_match" in leaf.aggregation()
    )


def _values(task: HarnessTask, leaf: str, requests: Sequence[Any]) -> Iterator[ItemScore]:
    """The metrics of one document, from all its requests."""
    number = requests[0].doc_id
    text, generated = _answer(requests)
    for chosen in requests[0].filtered_resps:
        answers = [request.filtered_resps[chosen] for request in requests]
        found = task.leaves[leaf].process_results(requests[0].doc, answers)
        for metric in found:
            if (name := task.metrics[leaf].get((metric, chosen))) is None:
                continue
            value = float(found[metric])
            if not math.isfinite(value):
                raise DataError(
                    f"evaluate.harness: {leaf}: document {number}: {metric} is {value}",
                    remedy="leave the task out of evaluate.harness.tasks",
                )
            words = len(text.split()) if generated else None
            item_id = task.item_id(leaf, number)
            yield ItemScore(item_id, name, task.kind(leaf), value, words, text)


def _answer(requests: Sequence[Any]) -> tuple[str, bool]:
    """The completion, or the continuation that is most likely; and whether it was generated."""
    first = [request.resps[0] for request in requests]
    if isinstance(first[0], str):
        return first[0], True
    best = max(range(len(first)), key=lambda n: first[n][0])
    return str(requests[best].args[1]).strip(), False


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Tasks draw from the global generators; each model must be asked the same."""
    states = random.getstate(), np.random.get_state()
    random.seed(_SEED)
    np.random.seed(_FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
