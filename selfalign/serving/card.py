"""`README.md` of a model: what it is, what it came from, how well it did, what it is not for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from selfalign.serving.origin import Origin

CARD_NAME = "README.md"
INTENDED = (
    "Questions of a user to a helpful assistant, in the language of the seeds, where a person can "
    "judge the answer."
)
LIMITS = (
    "It knows what its base model knows, and invents what that would invent, if less often.",
    "It was taught single turns; further turns work as far as the base model follows a dialogue.",
    "It was aligned by its own judgement under the principles: what the base model cannot tell "
    "apart, it was not taught to tell apart.",
    "A refusal is a habit of the weights, not a safeguard: do not rely on it where harm is costly.",
)
_ALONE = "the language model of {} alone: this model takes text, and no images"


class Score(BaseModel):
    """One model's mean of one metric with its interval, of the `n` items of a kind or of all; None
    where it cannot be told. What is needed of a MetricSummary, whose module brings scipy."""

    model: str
    metric: str
    kind: str | None
    n: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """What an evaluation found. `confidence` is that of every interval."""

    evaluation: str
    confidence: float
    rows: Sequence[Score]


def model_card(origin: Origin, scores: Scores | None) -> bytes:
    """The card in Hugging Face's form; `scores` is None before the model is promoted."""
    parts = [
        _front_matter(origin),
        f"# {origin.artifact} {origin.key}",
        "A language model aligned by Self-Align (Sun et al., NeurIPS 2023) with "
        f"selfalign {origin.code_version}: its base model wrote the questions and the answers it "
        "was fine-tuned on, guided by principles that people wrote.",
        "## How to ask it",
        f"```\nvllm serve <this directory> --dtype {origin.base.dtype or 'auto'}\n```",
        "Messages become the prompt it was trained on by `chat_template.jinja`: one user message, "
        "or user and assistant in turn, after an optional system message. The end-of-sequence "
        "token ends an answer; no stop strings are needed. It was evaluated in this precision; "
        "vLLM's own choice halves float32.",
        "## What it was made from",
        _table(("what", "which"), _sources(origin)),
        "## Scores",
        _scores(scores),
        "## What it is for",
        INTENDED,
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _front_matter(origin: Origin) -> str:
    stated = {"license": origin.base.license, "base_model": origin.base.name}
    lines = [f"{name}: {json.dumps(value)}" for name, value in stated.items() if value is not None]
    return "\n".join(
        ["---", *lines, "library_name: transformers", "pipeline_tag: text-generation", "---"]
    )


def _sources(origin: Origin) -> list[tuple[str, str]]:
    base = origin.base
    return [
        ("base model", f"{base.name or 'a directory'}, {base.version}"),
        *([("part of the base model", _ALONE.format(base.multimodal))] if base.multimodal else []),
        ("license of the base model", base.license or "not stated by its model card"),
        ("fine-tuning", f"{origin.method}, selfalign {origin.code_version}"),
        *((f"seeds: {name}", sha) for name, sha in origin.seeds.items()),
        *(
            (
                f"{each.artifact} {each.key}",
                each.digest + ("" if each.records is None else f", {each.records} records"),
            )
            for each in origin.ancestors
        ),
    ]


def _scores(scores: Scores | None) -> str:
    if scores is None:
        return (
            "Not evaluated yet: `selfalign promote` writes them into `models/<digest>/README.md`."
        )
    rows = [
        (row.metric, row.model, str(row.n), _number(row.mean), _interval(row))
        for row in scores.rows
    ]
    heads = ("metric", "model", "items", "mean", f"{scores.confidence * 100:g}% interval")
    return f"Evaluation {scores.evaluation}.\n\n{_table(heads, rows)}"


def _interval(row: Score) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{_number(row.low)} to {_number(row.high)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
