"""What is beyond the base model's context, counted before anything is generated or trained.

Every model of a run has the base's tokenizer and context. Reads evaluation files, and the
configuration and tokenizer of a base model in a local directory, never its weights. Evaluation
items are set aside when they are scored, so they are a warning,
`evaluation.items_beyond_context`, as long as any item of a task remains.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfalign.config import EngineConfig, EvaluateConfig, RunConfig
from selfalign.engines.base import GenerationRequest, Sampling, ScoreRequest
from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.multiple_choice import SUITES
from selfalign.evaluation.template import load_template
from selfalign.prompts import (
    render_align,
    render_principles,
    render_self_instruct,
    render_standard,
    render_verbose,
)
from selfalign.seeds import Seeds
from selfalign.telemetry import log

if TYPE_CHECKING:
    from selfalign.engines.transformers.limits import ContextLimit

_NAMED = 10  # items in a warning


def check_prompts(config: RunConfig, seeds: Seeds, stages: Container[str]) -> None:
    """Refuse prompts that fill the context, so that no request of the stage could be answered.

    `align` and `elaborate` are asked with the shortest question, `instruct` for general tasks
    with the shortest seed tasks. Does nothing where `check_long_items` does. Raises
    ConfigurationError, and as that one.
    """
    shown = min(config.instruct.general_in_context, len(seeds.general))
    shortest = sorted(seeds.general, key=len)[:shown]
    prompts = {
        "align": (config.align.sampling, render_align(seeds, "?")),
        "elaborate": (config.elaborate.sampling, render_verbose(seeds, "?")),
    }
    if config.instruct.general_requests:
        general = render_self_instruct(seeds, shortest)
        prompts["instruct"] = (config.instruct.general_sampling, general)
    for name in filter(stages.__contains__, prompts):
        options, prompt = prompts[name]
        limit = _limit(config, getattr(config, name).engine)
        request = GenerationRequest(name, prompt, Sampling(**options.model_dump()), 0)
        if limit is not None and limit.too_long([request]):
            raise ConfigurationError(
                f"{name}: its shortest prompt fills the context of {limit.tokens} tokens, so "
                "nothing could be answered",
                remedy="raise engine.max_length if the model takes more, shorten the seeds that "
                "the prompt shows or its template, or choose a base model with a longer context",
            )


def check_long_items(config: RunConfig, seeds: Seeds) -> None:
    """Log a warning for each task that has items beyond the context, with and without principles.

    Does nothing where the base model is no local directory or transformers is not installed.
    Raises DataError where a task would have no item left, and ConfigurationError or DataError
    where the engine would, for its limit or tokenizer.
    """
    limit = _limit(config, config.evaluate.engine)
    if limit is None:
        return
    heldout = load_heldout(config.evaluate.heldout) if config.evaluate.heldout else ()
    sampling = Sampling(**config.evaluate.sampling.model_dump())
    choices = {name: list(_choices(name, config.evaluate)) for name in SUITES}
    for variant in ("base", "base_principled"):
        principled = variant == "base_principled"
        render = render_align if principled else render_standard
        rules = render_principles(seeds.principles) + "\n\n" if principled else ""
        tasks: dict[str, list[GenerationRequest] | list[ScoreRequest]] = {
            "heldout": [
                GenerationRequest(item.id, render(seeds, item.prompt), sampling, 0)
                for item in heldout
            ]
        }
        for name, asked in choices.items():
            tasks[name] = [replace(each, prompt=rules + each.prompt) for each in asked]
        for task, requests in tasks.items():
            # an item's requests count as one, in the order of the file
            items = list(dict.fromkeys(name.split("\t")[0] for name in limit.too_long(requests)))
            total = len({request.id.split("\t")[0] for request in requests})
            if items and len(items) == total and not principled:
                raise DataError(
                    f"evaluate.{task}: none of its {total} items fits into the context of "
                    f"{limit.tokens} tokens, so nothing could be measured; the first are "
                    f"{', '.join(items[:_NAMED])}",
                    remedy="raise engine.max_length if the model takes more, shorten the items, "
                    f"or set evaluate.{task}: null",
                )
            if items:
                log.warning(
                    "evaluation.items_beyond_context",
                    task=task,
                    variant=variant,
                    items=len(items),
                    of=total,
                    limit_tokens=limit.tokens,
                    first=items[:_NAMED],
                    remedy="they are set aside; shorten them, or raise engine.max_length",
                )


def _limit(config: RunConfig, own: EngineConfig | None) -> ContextLimit | None:
    """Of the base model in a stage's engine, `own` or the run's; None where it is not known."""
    engine, directory = own or config.engine, Path(config.base_model.path)
    known = engine.kind != "fake" and importlib.util.find_spec("transformers") is not None
    if not known or not directory.is_dir():
        return None
    from selfalign.engines.transformers.limits import ContextLimit

    return ContextLimit(engine, directory)


def _choices(name: str, config: EvaluateConfig) -> Iterator[ScoreRequest]:
    """What a suite asks of a model without principles; an item's name begins its requests' ids."""
    path = getattr(config, name)
    template = load_template(name, getattr(config, f"{name}_template"))
    for item in SUITES[name].load(path) if path else ():
        for each in SUITES[name].requests([item], template):
            yield replace(each, id=f"{item.id}\t{each.id}")
