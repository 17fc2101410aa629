"""The one table: which stage reads what, writes what and runs as what.

CLI subcommands, store keys, `images/<stage>/`, `jobs/<stage>.yaml`, Job names, the order of
work and the report derive from it; `tests/test_pipeline.py` holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Workload = Literal["generate", "cpu", "train", "evaluate"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table.

    Attributes:
        name: the verb; also the CLI subcommand, image and Job template name.
        reads: artifacts of other stages this one needs, by name.
        writes: the artifact it publishes.
        seeds: files of the seeds directory that reach a model in this stage, hence its identity.
        data: evaluation files (fields of the section evaluate) that enter its identity.
        uses_base_model: whether the base model's digest enters its identity.
        workload: what it runs on.
        summary: one line for help texts and documentation.
    """

    name: str
    reads: tuple[str, ...]
    writes: str
    seeds: tuple[str, ...]
    workload: Workload
    summary: str
    uses_base_model: bool = False
    data: tuple[str, ...] = ()
    reads_promoted: bool = False

    @property
    def sharded(self) -> bool:
        """Whether several workers may share it (an Indexed Job)."""
        return self.workload == "generate"


_SELF_INSTRUCT_SEEDS = (
    "general.txt",
    "topic_guided.jsonl",
    "templates/self_instruct.txt",
    "templates/topics.txt",
    "templates/questions.txt",
)
_LABELS = "templates/labels.yaml"
_PRINCIPLED = ("principles.txt", "exemplars.txt", "templates/align.txt", _LABELS)
_STANDARD = "templates/distil_standard.txt"
_CONCISE = "templates/distil_concise.txt"

STAGES: tuple[Stage, ...] = (
    Stage(
        name="instruct",
        reads=(),
        writes="candidates",
        seeds=_SELF_INSTRUCT_SEEDS,
        uses_base_model=True,
        workload="generate",
        summary="Topic-guided red-teaming self-instruct: the base model writes candidate prompts.",
    ),
    Stage(
        name="curate",
        reads=("candidates",),
        writes="prompts",
        seeds=("general.txt", "topic_guided.jsonl"),
        workload="cpu",
        summary="Keep what is novel: ROUGE-L, near duplicates, decontamination, globally.",
        data=("heldout", "hhh", "truthfulqa"),
    ),
    Stage(
        name="align",
        reads=("prompts",),
        writes="aligned_responses",
        seeds=_PRINCIPLED,
        uses_base_model=True,
        workload="generate",
        summary="Principle-driven self-alignment: thought, rules cited, answer, filters.",
    ),
    Stage(
        name="engrave",
        reads=("aligned_responses",),
        writes="engraved_model",
        seeds=(_STANDARD, _LABELS),
        uses_base_model=True,
        workload="train",
        summary="Principle engraving: fine-tune the base model on its own aligned answers.",
    ),
    Stage(
        name="elaborate",
        reads=("prompts", "engraved_model"),
        writes="verbose_responses",
        seeds=("templates/verbose.txt", _LABELS),
        workload="generate",
        summary="The engraved model answers every prompt at length under the verbose prompt.",
    ),
    Stage(
        name="clone",
        reads=("verbose_responses",),
        writes="final_model",
        seeds=(_STANDARD, _CONCISE, _LABELS),
        uses_base_model=True,
        workload="train",
        summary="Verbose cloning: fine-tune the base model on the verbose answers.",
    ),
    Stage(
        name="evaluate",
        reads=("engraved_model", "final_model"),
        writes="evaluation",
        seeds=(*_PRINCIPLED, _STANDARD),
        uses_base_model=True,
        workload="evaluate",
        summary="Score base, engraved, final and promoted models, paired, with intervals.",
        data=(
            *("heldout", "hhh", "truthfulqa", "hhh_template", "truthfulqa_template"),
            *("judge.template", "judge.refusal_template", "judge.labelled"),
            "harness.include_path",
        ),
        reads_promoted=True,
    ),
    Stage(
        name="promote",
        reads=("evaluation", "final_model"),
        writes="promotion",
        seeds=(),
        workload="cpu",
        summary="Apply the gate; move the `current` pointer only to a better model.",
    ),
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
PRODUCER: dict[str, Stage] = {stage.writes: stage for stage in STAGES}
