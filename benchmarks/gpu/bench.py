"""Generation and training at real sizes: this project's path against the library used bare.

    python benchmarks/gpu/bench.py --shape 1b --engine vllm [--json FILE]
    python benchmarks/gpu/bench.py --shape tiny --engine transformers      (any machine)

Weights are random: speed does not depend on what they say. Generation: prompts with one long
shared prefix, as `align` sends them, through `open_engine(...).generate`, and through the
library's own offline call; a ratio above 1 means this project is faster. Training: LoRA by
`selfalign.training.train` at 512 tokens an example.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.config import EngineConfig, LoraConfig, TrainConfig
from selfalign.engines.base import GenerationRequest, Sampling
from selfalign.engines.open import open_engine
from selfalign.serving.form import ChatForm
from selfalign.store.manifest import FileEntry
from selfalign.training import Example, train

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "tiny": (64, 172, 2, 4, 2),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
}
VOCABULARY = 1024  # words of the made-up tokenizer; the embedding is padded to the real size
PREFIX_WORDS, QUERY_WORDS = 1700, 24


@dataclass(frozen=True)
class NoCheckpoints:
    """A CheckpointSink that keeps nothing: saving is not what is measured."""

    def upload(self, step: int, directory: Path) -> list[FileEntry]:
        """Drop it."""
        return []

    def publish(self, step: int, files: list[FileEntry]) -> None:
        """Drop it."""

    def latest(self, directory: Path) -> int | None:
        """Nothing to resume."""
        return None


def make_model(directory: Path, shape: str, vocabulary_size: int) -> None:
    """A random Llama of the shape, with a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=4096, pad_token_id=1, eos_token_id=2, bos_token_id=None,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        model_max_length=4096,
    ).save_pretrained(directory)  # fmt: skip


def text(words: int, start: int) -> str:
    """Made-up words, different for each `start`."""
    return " ".join(f"w{3 + (start * 37 + i * 11) % (VOCABULARY - 3)}" for i in range(words))


def bench_generation(model: Path, engine: str, requests: int, new_tokens: int) -> dict[str, float]:
    """Tokens per second through our engine, and through the library's own call."""
    prefix = text(PREFIX_WORDS, 0)
    prompts = [f"{prefix} {text(QUERY_WORDS, i + 1)}" for i in range(requests)]
    sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=new_tokens)
    config = EngineConfig(kind=engine, dtype="bfloat16", batch_size=64)  # type: ignore[arg-type]
    with open_engine(config, model) as opened:

        def work(count: int) -> tuple[int, float]:
            started = time.perf_counter()
            stream = (
                GenerationRequest(str(i), prompt, sampling, i)
                for i, prompt in enumerate(prompts[:count])
            )
            tokens = sum(done.num_new_tokens for done in opened.generate(stream))
            return tokens, time.perf_counter() - started

        work(min(8, requests))  # warm up: compilation, allocation
        tokens, seconds = work(requests)
    bare = _bare_vllm if engine == "vllm" else _bare_transformers
    bare_tokens, bare_seconds = bare(model, prompts, new_tokens)
    ours, theirs = tokens / seconds, bare_tokens / bare_seconds
    return {
        "tokens_per_second": round(ours, 1),
        "bare_tokens_per_second": round(theirs, 1),
        "ratio": round(ours / theirs, 3),
        "requests": requests,
    }


def _bare_vllm(model: Path, prompts: list[str], new_tokens: int) -> tuple[int, float]:
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), dtype="bfloat16", enable_prefix_caching=True)
    sampling = [
        SamplingParams(temperature=1.0, top_p=0.95, max_tokens=new_tokens, seed=i)
        for i in range(len(prompts))
    ]
    llm.generate(prompts[:8], sampling[:8], use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def _bare_transformers(model: Path, prompts: list[str], new_tokens: int) -> tuple[int, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device)
    tokens, started = 0, time.perf_counter()
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True,
                          return_token_type_ids=False).to(device)  # fmt: skip
        with torch.inference_mode():
            out = network.generate(**batch, do_sample=True, top_p=0.95, top_k=0,
                                   max_new_tokens=new_tokens, pad_token_id=1)  # fmt: skip
        new = out[:, batch["input_ids"].shape[1] :]
        ended = (new == 2).int().cumsum(-1)
        tokens += int((ended == 0).sum() + (ended == 1).any(-1).sum())
    return tokens, time.perf_counter() - started


def bench_training(model: Path, scratch: Path, steps: int, batch: int) -> dict[str, float]:
    """Tokens per second of LoRA training at 512 tokens an example."""
    examples = [Example(text(200, i), text(310, i + 5000)) for i in range(steps * batch)]
    config = TrainConfig(
        lora=LoraConfig(target_modules="all-linear"), global_batch_size=batch,
        micro_batch_size=min(batch, 8), max_length=512, max_steps=steps, warmup_steps=1,
        checkpoint_every_steps=10**6,
    )  # fmt: skip
    seen: list[tuple[int, float]] = []

    def on_progress(step: int, total: int, loss: float, rate: float) -> None:
        seen.append((step, time.perf_counter()))

    form = ChatForm(opening="", ask="", answer="", turn_openers=())
    train(
        config, base_model=model, revision=None, examples=examples, form=form,
        output=scratch / "out", work=scratch / "work", checkpoints=NoCheckpoints(), seed=0,
        on_progress=on_progress,
    )  # fmt: skip
    (first, start), (last, end) = seen[0], seen[-1]
    tokens_per_step = batch * 511
    return {
        "tokens_per_second": round(tokens_per_step * (last - first) / (end - start), 1),
        "steps": last,
        "global_batch_size": batch,
    }


def hardware() -> dict[str, Any]:
    """What this ran on."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor()
    return {"device": device, "torch": torch.__version__, "machine": platform.machine()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocabulary-size", type=int, default=128_256)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        make_model(model, arguments.shape, arguments.vocabulary_size)
        result = {
            "shape": arguments.shape,
            "engine": arguments.engine,
            **hardware(),
            "generation": bench_generation(
                model, arguments.engine, arguments.requests, arguments.new_tokens
            ),
            "training": bench_training(model, Path(scratch), arguments.steps, arguments.batch),
        }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
