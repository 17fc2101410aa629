"""Fine-tuning a small model: start-up, time per step, and what the Trainer adds to bare torch.

    python benchmarks/training/overhead.py [--method full] [--precision float32] [--examples 640]

The model is a Llama of 0.76M parameters with random weights, the examples 30 to 60 random words.
Bare torch does forward, loss, backward, clipping and step on the very same batches. Times are
processor time, so that other work on the machine counts little. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

from selfalign.config import TrainConfig
from selfalign.serving.form import ChatForm
from selfalign.store.manifest import FileEntry
from selfalign.training.base import Example
from selfalign.training.batches import MicroBatches, collate, token_loss
from selfalign.training.examples import encode
from selfalign.training.finetune import train

WORDS = 300
SEED = 0
FORM = ChatForm(opening="", ask="", answer="", turn_openers=())


class NoCheckpoints:
    """A sink for a run too short to be resumed."""

    def upload(self, step: int, directory: Path) -> list[FileEntry]:
        raise AssertionError(f"no checkpoint was asked for at step {step}")

    def publish(self, step: int, files: list[FileEntry]) -> None:
        raise AssertionError(f"no checkpoint was asked for at step {step}")

    def rehearse(self, directory: Path) -> None:
        raise AssertionError("no checkpoint was asked for")

    def latest(self, directory: Path) -> int | None:
        return None


def build_base(directory: Path) -> None:
    """The shape of the demonstration's model (hidden 128, 4 layers, tied)."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<eos>", "Question:", "Answer:", *(f"w{i}" for i in range(WORDS))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(
        directory
    )
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def make_examples(count: int) -> list[Example]:
    """`count` examples of random words; the same every time."""
    rng = random.Random(SEED)

    def words(fewest: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(rng.randint(fewest, most)))

    return [Example(f"Question: {words(10, 20)} Answer:", words(20, 40)) for _ in range(count)]


def bare_seconds_per_step(config: TrainConfig, base: Path, examples: list[Example]) -> float:
    """The same batches through plain torch in float32, all parameters trained."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    encoded = encode(
        examples,
        AutoTokenizer.from_pretrained(base),
        form=FORM,
        eos_token_id=0,
        max_length=config.max_length,
    )
    batches = MicroBatches(
        encoded.lengths,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=SEED,
    )
    start = time.process_time()
    for indices in batches:
        batch = collate([encoded[i] for i in indices], pad_token_id=0)
        labels = batch.pop("labels")
        loss = token_loss(model(**batch), labels, None)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
        model.zero_grad()
    return (time.process_time() - start) / batches.steps_per_epoch


def measure(config: TrainConfig, directory: Path, num_examples: int) -> dict[str, Any]:
    """Seconds of start-up, per step, and of the bare loop's step."""
    steps: list[float] = []

    def note(step: int, total_steps: int, loss: float, tokens_per_second: float) -> None:
        steps.append(time.process_time())

    start = time.process_time()
    import peft  # noqa: F401
    from transformers import Trainer  # noqa: F401

    imported = time.process_time()
    build_base(directory / "base")
    examples = make_examples(num_examples)
    began = time.process_time()
    result = train(
        config,
        base_model=directory / "base",
        revision=None,
        examples=examples,
        form=FORM,
        output=directory / "output",
        work=directory / "work",
        checkpoints=NoCheckpoints(),
        seed=SEED,
        on_progress=note,
    )
    end = time.process_time()
    per_step = (steps[-1] - steps[0]) / (len(steps) - 1)
    return {
        "method": config.method,
        "precision": config.precision,
        "examples": num_examples,
        "batch": config.micro_batch_size,
        "steps": result.steps,
        "seconds_of_imports": round(imported - start, 2),
        "seconds_before_first_step": round(steps[0] - began, 2),
        "seconds_per_step": round(per_step, 4),
        "seconds_after_last_step": round(end - steps[-1], 2),
        "bare_torch_seconds_per_step": round(
            bare_seconds_per_step(config, directory / "base", examples), 4
        ),
        "engine": result.engine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    config = TrainConfig(
        method=arguments.method,
        precision=arguments.precision,
        global_batch_size=arguments.batch,
        micro_batch_size=arguments.batch,
        warmup_steps=5,
        checkpoint_every_steps=10**9,
    )
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(config, Path(directory), arguments.examples), indent=1))


if __name__ == "__main__":
    main()
