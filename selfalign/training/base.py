"""What goes into a training and what comes out. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One pair to learn from.

    Attributes:
        prompt: the rendered prompt; ends with the answer's label, without a trailing space.
        response: plain text; one space joins it to the prompt, as in generation.
        finished: False for a response that does not end where its generator ended it, such as
            one cut at the token limit: its last token is trained, but not to stop after it.
    """

    prompt: str
    response: str
    finished: bool = True


# Told after every optimiser step, in the main process alone: the step, how many there are, its
# loss, tokens per second.
TrainingProgress = Callable[[int, int, float, float], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training did and wrote.

    Attributes:
        steps: optimiser steps.
        examples: examples there were to train on.
        truncated_examples: of these, those cut at `max_length`.
        dropped_examples: how many were left out, by reason: prompt_too_long (it leaves no room for
            a response), empty_response, end_of_sequence_in_text (the text holds that very token).
        trained_tokens: tokens that carried loss, summed over all steps.
        loss_curve: per step: step, loss (mean over the step's tokens, nats), learning_rate, epoch.
        merged: directory of the whole model; loads with transformers and vLLM as it is.
        adapter: directory of the adapter (peft format); None for full fine-tuning.
        adapted_modules: how many modules of each name the adapter changes, e.g. {"q_proj": 32};
            empty for full fine-tuning.
        multimodal: `model_type` of a base that takes more than text, of which the language model
            alone was trained; None for a text model.
        engine: name, version and device of what computed it, and whatever else decides the bytes.
        resumed_from: the step of the checkpoint it continued, if it did.
    """

    steps: int
    examples: int
    truncated_examples: int
    dropped_examples: dict[str, int]
    trained_tokens: int
    loss_curve: list[dict[str, float]]
    merged: Path
    adapter: Path | None
    adapted_modules: dict[str, int] = field(default_factory=dict)
    multimodal: str | None = None
    engine: dict[str, str] = field(default_factory=dict)
    resumed_from: int | None = None
