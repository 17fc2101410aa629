"""Fine-tuning beside TRL's SFTTrainer: tokens per second, peak memory and MFU, in one process.

    PYTHONPATH=.:DIR python benchmarks/gpu/training.py 1b:lora 1b:full 8b:lora
    OMP_NUM_THREADS=1 PYTHONPATH=.:DIR python benchmarks/gpu/training.py 6m:lora \\
        --precision float32     (a CPU; seconds are processor time)

DIR holds TRL (`pip install --target DIR trl==1.16.0`); without it its cases print an error. Weights
are random and made on the device. Every case trains on the same examples (the same tokens are
taught) with the same LoRA or all weights, AdamW and precision, after warm-up steps that are not
timed; the order alternates. `trl-padding-free` has the same micro-batches, `trl-packing` rows of as
many tokens as one of these holds. `selfalign-fitted` takes the largest micro-batch that the stage
finds to fit on a GPU, which is its default. Prints one JSON object per case, then the ratios.

MFU: floating-point operations that the training needs (6 per weight and token, 4 where weights
are frozen; the output layer at taught tokens alone; causal attention), by the card's bfloat16 peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import busy

from selfalign.config import TrainConfig

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "tiny": (64, 172, 2, 4, 2, 512),
    "6m": (256, 688, 6, 4, 2, 4096),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "8b": (4096, 14336, 32, 32, 8, 128_256),
}
STEPS = {"tiny": 4, "6m": 3, "1b": 12, "8b": 6}  # timed
BATCH = {"tiny": 8, "6m": 16, "1b": 64, "8b": 32}  # examples per optimiser step
MICRO_BATCH = {"tiny": 4, "6m": 8, "1b": 16, "8b": 8}
WARM_UP_STEPS = 2
MAX_LENGTH = 512
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense; data sheets
CASES = (
    "selfalign", "trl-padding-free", "trl-packing", "selfalign-fitted", "trl-padding-free",
    "selfalign",
)  # fmt: skip


@dataclass
class Clock:
    """Tokens and seconds of the steps after warm-up; read from the device at both ends alone."""

    device: Any
    tokens: int = 0
    taught: list[Any] = field(default_factory=list)
    started: float = 0.0
    seconds: float = 0.0

    def now(self) -> float:
        """The time at which the device has done what it was given; on a CPU, processor time."""
        import torch

        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def attach(self, trainer: Any) -> None:
        """Count what `trainer` trains on."""
        from transformers import TrainerCallback

        clock, step = self, trainer.training_step

        def counted(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            if clock.started:
                clock.tokens += inputs["input_ids"].numel()
                clock.taught.append((inputs["labels"] != -100).sum())
            return step(model, inputs, *rest, **named)

        class Ends(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP_STEPS:
                    clock.started = clock.now()
                elif state.global_step == state.max_steps:
                    clock.seconds = clock.now() - clock.started

        trainer.training_step = counted
        trainer.add_callback(Ends())


def make_rows(shape: str, steps: int) -> list[tuple[np.ndarray[Any, Any], int]]:
    """Examples as tokens and the length of their prompts: 40 to 160 and 40 to 352 tokens."""
    rng = np.random.default_rng(0)
    vocabulary = SHAPES[shape][5]
    rows = []
    for _ in range((steps + WARM_UP_STEPS) * BATCH[shape]):
        prompt = int(rng.integers(40, 161))
        length = prompt + int(np.clip(rng.lognormal(5.0, 0.6), 40, MAX_LENGTH - 160))
        rows.append((rng.integers(3, vocabulary, length).astype(np.int32), prompt))
    return rows


def make_model(shape: str, dtype: Any, device: Any) -> Any:
    """A Llama of the shape with random weights on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=8192, pad_token_id=1, eos_token_id=2, bos_token_id=None,
        use_cache=False, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def our_trainer(model: Any, config: TrainConfig, rows: list[Any], steps: int, scratch: Path) -> Any:
    """The Trainer of stages engrave and clone."""
    from selfalign.training.attention import pack_attention
    from selfalign.training.batches import MicroBatches
    from selfalign.training.examples import EncodedExamples
    from selfalign.training.loop import CHECKPOINTING, build_trainer, collator, training_arguments
    from selfalign.training.memory import fit_micro_batch
    from selfalign.training.model import with_adapter
    from selfalign.training.processes import Ranks, StopRequest
    from selfalign.training.watch import CheckpointPace, StepWatch

    lengths = [len(tokens) for tokens, _ in rows]
    examples = EncodedExamples(
        tokens=np.concatenate([tokens for tokens, _ in rows]),
        bounds=np.cumsum([0, *lengths], dtype=np.int64),
        prompt_lengths=np.array([prompt for _, prompt in rows], dtype=np.int32),
        truncated=0,
        dropped={},
    )
    batches = MicroBatches(
        examples.lengths,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
    )
    arguments = training_arguments(
        config, ranks=Ranks(), batches=batches, total_steps=steps, seed=0,
        directory=scratch,
    )  # fmt: skip
    watch = StepWatch(
        batches=batches, examples=examples, ranks=Ranks(), stop=StopRequest(),
        pace=CheckpointPace(10**9), total_steps=steps, on_progress=lambda *_: None,
        publish=lambda *_: None,
    )  # fmt: skip
    if config.method == "lora":
        model = with_adapter(config, model)
    batches.packed = pack_attention(model, autocast=config.precision == "bfloat16")
    if config.micro_batch_size is None:
        began = time.perf_counter()
        size, recompute = fit_micro_batch(
            model, config, batches=batches, examples=examples,
            collator=collator(arguments, 1, packed=batches.packed),
            enable_checkpointing=lambda: model.gradient_checkpointing_enable(CHECKPOINTING),
        )  # fmt: skip
        arguments.per_device_train_batch_size = size
        arguments.gradient_accumulation_steps = batches.accumulation
        arguments.gradient_checkpointing = recompute
        print(
            json.dumps({"micro-batch that fits": size, "recompute": recompute,
                        "search_seconds": round(time.perf_counter() - began, 1)}), flush=True
        )  # fmt: skip
    return build_trainer(
        model=model, packed=batches.packed, arguments=arguments, examples=examples, watch=watch,
        pad_token_id=1,
    )  # fmt: skip


def trl_trainer(
    model: Any, config: TrainConfig, rows: list[Any], steps: int, scratch: Path, *, packing: bool
) -> Any:
    """SFTTrainer on the same tokens; only what follows a prompt is taught."""
    import torch
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<unk>": 0, "<pad>": 1, "</s>": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
    )  # fmt: skip
    micro = config.micro_batch_size
    accumulation = config.global_batch_size // micro
    row_tokens = MAX_LENGTH
    if packing:
        mean = sum(len(tokens) for tokens, _ in rows) / len(rows)
        row_tokens = max(MAX_LENGTH, int(micro * mean))
    columns = {
        "input_ids": [tokens.tolist() for tokens, _ in rows],
        "completion_mask": [[0] * p + [1] * (len(tokens) - p) for tokens, p in rows],
    }
    # A fingerprint of our own: some versions of dill cannot hash pyarrow's tables.
    data = Dataset(InMemoryTable.from_pydict(columns), fingerprint="selfalign-benchmark")
    arguments = SFTConfig(
        output_dir=str(scratch), max_steps=steps,
        per_device_train_batch_size=1 if packing else micro,
        gradient_accumulation_steps=accumulation, learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule, warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16", gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(), optim="adamw_torch_fused", packing=packing,
        padding_free=not packing, max_length=row_tokens if packing else None,
        completion_only_loss=True, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=config.lora.r, lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout, target_modules=config.lora.target_modules,
    )  # fmt: skip
    return SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer,
        peft_config=lora if config.method == "lora" else None,
    )  # fmt: skip


def needed_flops(shape: str, method: str, rows: list[Any], tokens: int, taught: int) -> float:
    """Operations that training on so many tokens needs; see the module's text."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    attention = hidden * hidden * (2 + 2 * kv_heads / heads)
    body = layers * (attention + 3 * hidden * intermediate)
    per_weight = 6 if method == "full" else 4
    mean_square = sum(len(t) ** 2 for t, _ in rows) / sum(len(t) for t, _ in rows)
    scores = 3 * 2 * layers * hidden * mean_square * tokens
    return per_weight * (body * tokens + hidden * vocabulary * taught) + scores


def reset_peak(device: Any) -> None:
    """Forget the highest memory so far."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: Any) -> float:
    """Highest memory since `reset_peak`: allocated on the card, or resident."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(case: str, shape: str, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Train once; tokens per second after warm-up, memory, MFU and the last losses."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reset_peak(device)
    rows = make_rows(shape, steps)
    low = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    began = time.perf_counter()
    model = make_model(shape, torch.float32 if config.method == "full" else low, device)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (model, config, rows, steps + WARM_UP_STEPS, Path(scratch))
        if case == "selfalign-fitted":
            fitted = config.model_copy(update={"micro_batch_size": None})
            trainer = our_trainer(model, fitted, *arguments[2:])
            reset_peak(device)
        elif case == "selfalign":
            trainer = our_trainer(*arguments)
        else:
            trainer = trl_trainer(*arguments, packing=case == "trl-packing")
        clock = Clock(device)
        clock.attach(trainer)
        prepared = time.perf_counter() - began
        with busy() as share:
            trainer.train()
            gpu_busy = share()
    taught = int(torch.stack(clock.taught).sum())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {
        "case": case,
        "shape": shape,
        "method": config.method,
        "device": name,
        "attention": trainer.model.config._attn_implementation,
        "tokens_per_second": round(clock.tokens / clock.seconds, 1),
        "taught_per_second": round(taught / clock.seconds, 1),
        "seconds": round(clock.seconds, 3),
        "tokens": clock.tokens,
        "taught": taught,
        "peak_gib": round(peak_gib(device), 2),
        "gpu_busy": gpu_busy,
        "prepared_seconds": round(prepared, 1),
        "losses": [round(e["loss"], 4) for e in trainer.state.log_history if "loss" in e][-2:],
    }
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    if peak is not None:
        flops = needed_flops(shape, config.method, rows, clock.tokens, taught)
        result["mfu"] = round(flops / clock.seconds / peak, 4)
    return result


def attempt(work: Callable[[], dict[str, Any]], what: str) -> dict[str, Any] | None:
    """Print what `work` returns, or its error; the next case runs either way."""
    try:
        result = work()
    except Exception as e:  # noqa: BLE001  # an optional library may raise anything
        traceback.print_exc()
        print(
            json.dumps({"case": what, "error": f"{type(e).__name__}: {str(e)[:300]}"}), flush=True
        )
        return None
    print(json.dumps(result), flush=True)
    return result


def report(results: list[dict[str, Any]], training: str) -> None:
    """Print how many taught tokens a second we do for each of the others'."""
    speeds: dict[str, list[float]] = {}
    for result in results:
        speeds.setdefault(result["case"], []).append(result["taught_per_second"])
    means = {case: sum(each) / len(each) for case, each in speeds.items()}
    ratios = {
        f"ratio_to_{case}": round(means["selfalign"] / mean, 3)
        for case, mean in means.items()
        if case != "selfalign" and "selfalign" in means
    }
    print(json.dumps({"training": training, "taught_per_second": means, **ratios}), flush=True)


def main() -> None:
    """Measure every case and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainings", nargs="*", default=["1b:lora"], metavar="SHAPE:METHOD",
                        help=f"shapes: {', '.join(SHAPES)}; methods: lora, full")  # fmt: skip
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--steps", type=int, help="timed steps; default: by the shape")
    parser.add_argument("--cases", default=",".join(CASES), help="which, in this order")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    for training in arguments.trainings:
        shape, method = training.split(":")
        steps = arguments.steps or STEPS[shape]
        config = TrainConfig(
            method=method, precision=arguments.precision, learning_rate=1e-4, warmup_steps=1,
            global_batch_size=BATCH[shape], micro_batch_size=MICRO_BATCH[shape],
            max_length=MAX_LENGTH, gradient_checkpointing=arguments.gradient_checkpointing,
            checkpoint_every_steps=10**9,
        )  # fmt: skip
        results = [
            attempt(partial(measure, case, shape, config, steps), case)
            for case in arguments.cases.split(",")
        ]
        report([result for result in results if result is not None], training)


if __name__ == "__main__":
    main()
