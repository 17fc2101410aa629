"""Generation on a GPU: this project's path against vLLM used bare.

    python benchmarks/gpu/bench.py DIR [--requests 1024] [--new-tokens 256]
    python benchmarks/gpu/bench.py 8b                      random weights of a shape, no files
    python benchmarks/gpu/bench.py 8b DIR --tokenizer DIR  one after the other in one process

For each model one process loads `vllm.LLM` at its own defaults and measures, in turns, twice each:

    bare      LLM.generate, the prompts as text
    product   VllmEngine.generate on the same loaded core (the same settings, then)
    stage     `align` from its first request to its finished shard: prompts rendered, answers
              parsed, filtered, compressed, committed to a local store (with a real tokenizer)

and then, with --fresh, loads the product's engine by itself: its defaults against vLLM's.
The prompts are those of `align` with this project's seeds: one long prefix that all share. Each
figure is a JSON line, printed as soon as it is there, with the share of time in which the GPU
had a kernel running. A ratio above 1 means that this project is faster.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from selfalign.config import EngineConfig, RunConfig
from selfalign.engines.base import GenerationRequest, Sampling
from selfalign.engines.vllm import VllmEngine
from selfalign.prompts import render_align, stop_strings
from selfalign.records import Prompt
from selfalign.seeds import load_seeds

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "6m": (256, 688, 4, 4, 2),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
}
VOCABULARY = 32_000
SEEDS = Path(__file__).parents[2] / "seeds"


def say(what: str, **figures: Any) -> None:
    """One line of the result."""
    print(json.dumps({"what": what, **figures}), flush=True)


def make_shape(directory: Path, shape: str, tokenizer: Path | None) -> None:
    """Configuration and tokenizer of a random Llama; vLLM makes its weights (dummy)."""
    from transformers import AutoTokenizer, LlamaConfig

    hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    directory.mkdir()
    if tokenizer is None:
        save_word_tokenizer(directory)
    else:
        for file in tokenizer.glob("tokenizer*"):
            shutil.copy(file, directory)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(directory)),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=None,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(directory)


def save_word_tokenizer(directory: Path) -> None:
    """A tokenizer of made-up words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def words(number: int, start: int) -> str:
    """Made-up words, different for each `start`."""
    return " ".join(f"w{3 + (start * 37 + i * 11) % (VOCABULARY - 3)}" for i in range(number))


class Load:
    """The requests: prompts as text, the same for whoever answers them."""

    def __init__(self, count: int, new_tokens: int, real: bool) -> None:
        seeds = load_seeds(RunConfig(base_model={"path": "."}, seeds={"directory": SEEDS}).seeds)
        stop = stop_strings(seeds.labels) if real else ()
        self.sampling = Sampling(0.5, 0.95, new_tokens, stop=stop)
        tasks = [task.text if hasattr(task, "text") else str(task) for task in seeds.general]
        self.queries = [f"{tasks[i % len(tasks)]} (number {i})" for i in range(count)]
        self.prompts = (
            [render_align(seeds, query) for query in self.queries]
            if real
            else [f"{words(2219, 0)} {words(24, i + 1)}" for i in range(count)]
        )

    def requests(self, count: int) -> Iterator[GenerationRequest]:
        for i, prompt in enumerate(self.prompts[:count]):
            yield GenerationRequest(f"prompt-{i:06d}", prompt, self.sampling, i)


@contextmanager
def busy() -> Iterator[Callable[[], float | None]]:
    """The share of samples in which the GPU had a kernel running; None without NVML."""
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        if find_spec("pynvml") is None:  # no GPU here
            return
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not done.wait(0.1):
            samples.append(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: round(sum(samples) / len(samples) / 100, 2) if samples else None
    finally:
        done.set()
        thread.join()


def measured(what: str, work: Callable[[], int], requests: int) -> float:
    """Run `work`, which returns new tokens, and say what it took. Returns tokens per second."""
    with busy() as share:
        started = time.perf_counter()
        tokens = work()
        seconds = time.perf_counter() - started
        say(
            what,
            seconds=round(seconds, 2),
            new_tokens=tokens,
            tokens_per_second=round(tokens / seconds),
            requests_per_second=round(requests / seconds, 1),
            gpu_busy=share(),
        )
    return tokens / seconds


def run_bare(llm: Any, load: Load, count: int) -> int:
    """LLM.generate with the prompts as text."""
    from vllm import SamplingParams

    drawn = load.sampling
    parameters = [
        SamplingParams(
            temperature=drawn.temperature,
            top_p=drawn.top_p,
            max_tokens=drawn.max_new_tokens,
            stop=list(drawn.stop),
            seed=i,
        )
        for i, _ in enumerate(load.prompts[:count])
    ]
    outputs = llm.generate(load.prompts[:count], parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def run_product(engine: VllmEngine, load: Load, count: int) -> int:
    """The engine of this project."""
    return sum(done.num_new_tokens for done in engine.generate(load.requests(count)))


class Counting:
    """An engine that counts the tokens it hands on."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine, self.info, self.tokens = engine, engine.info, 0

    def generate(self, requests: Any) -> Iterator[Any]:
        for done in self.engine.generate(requests):
            self.tokens += done.num_new_tokens
            yield done

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """The engine is somebody else's."""


def run_stage(engine: VllmEngine, load: Load, count: int, scratch: Path) -> int:
    """Stage `align` over a local store; returns new tokens."""
    from selfalign.pipeline import BY_NAME
    from selfalign.records import now
    from selfalign.stages import align as stage
    from selfalign.stages.contract import PartOutcome, StageContext, chunked, provenance
    from selfalign.store.artifact import ArtifactWriter
    from selfalign.store.manifest import Parent
    from selfalign.store.open import open_store

    config = RunConfig(
        base_model={"path": "."},
        seeds={"directory": SEEDS},
        align={
            "sampling": {
                "temperature": load.sampling.temperature,
                "top_p": load.sampling.top_p,
                "max_new_tokens": load.sampling.max_new_tokens,
            }
        },
    )
    store = open_store(str(scratch))
    key = f"{count:020d}"
    writer = ArtifactWriter(
        store, artifact="prompts", stage="curate", key=key, identity={}, parents={}
    )
    shard = writer.shard(0, 1)
    parts = {}
    for chunk in chunked("prompts", enumerate(load.queries[:count]), 4096):
        outcome = PartOutcome()
        for i, text in chunk.items:
            outcome.keep(Prompt(id=f"prompt-{i:06d}", text=text, source="self_instruct"))
        parts[chunk.name] = shard.commit(chunk.name, outcome.records, outcome.counts())
    shard.finish(parts, provenance(now()))
    prompts = writer.publish_when_complete(1)
    assert prompts is not None
    counting = Counting(engine)
    context = StageContext(
        config=config,
        store=store,
        stage=BY_NAME["align"],
        key=f"{time.time_ns():020d}"[:20],
        identity={"base_model": "bench"},
        parents={"prompts": Parent(key=key, digest=prompts.digest)},
        seeds=load_seeds(config.seeds),
        shard=0,
        num_shards=1,
        work=scratch,
    )
    with patch.object(stage, "base_engine", lambda *_: counting):
        manifest = stage.align(context)
    assert manifest is not None
    say("stage counts", read=manifest.counts.read, kept=manifest.counts.kept,
        dropped=manifest.counts.dropped)  # fmt: skip
    return counting.tokens


def main(arguments_given: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["6m"],
                        help=f"model directories, or shapes: {', '.join(SHAPES)}")  # fmt: skip
    parser.add_argument("--dummy", action="store_true", help="random weights for directories too")
    parser.add_argument("--tokenizer", type=Path, help="a directory whose tokenizer shapes take")
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="of vllm.LLM, as JSON")
    parser.add_argument("--fresh", action="store_true", help="load the product's engine too")
    parser.add_argument("--gpu-memory", type=float, default=0.9)
    arguments = parser.parse_args(arguments_given)
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            run(arguments, model, Path(scratch))


def run(arguments: argparse.Namespace, named: str, scratch: Path) -> None:
    """Load, then measure in turns."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    shaped = named in SHAPES
    model = scratch / "model" if shaped else Path(named)
    options: dict[str, Any] = dict(arguments.options)
    if shaped:
        make_shape(model, named, arguments.tokenizer)
    if shaped or arguments.dummy:
        options["load_format"] = "dummy"
    cuda = current_platform.is_cuda()
    if not cuda:
        # Without chunked prefill: vLLM's CPU build fails on a seed and a prompt read in pieces.
        options |= {"kv_cache_memory_bytes": 2**31, "enforce_eager": True}
        options["enable_chunked_prefill"] = False
    real = not shaped or arguments.tokenizer is not None
    load = Load(arguments.requests, arguments.new_tokens, real=real)
    name = current_platform.get_device_name() if cuda else "cpu"
    say("device", device=name, vllm=vllm.__version__, torch=torch.__version__,
        model=named, requests=arguments.requests, new_tokens=arguments.new_tokens)  # fmt: skip

    started = time.perf_counter()
    llm = vllm.LLM(str(model), gpu_memory_utilization=arguments.gpu_memory, **options)
    say("bare loaded", seconds=round(time.perf_counter() - started, 1), **limits(llm.llm_engine))
    config = EngineConfig(kind="vllm", gpu_memory_utilization=arguments.gpu_memory, options=options)
    with patch.object(vllm.LLMEngine, "from_engine_args", lambda *_, **__: llm.llm_engine):
        engine = VllmEngine(config, model)
    run_bare(llm, load, 64)
    run_product(engine, load, 64)
    rates: dict[str, list[float]] = {}
    count = arguments.requests
    cases: dict[str, Callable[[], int]] = {
        "bare": lambda: run_bare(llm, load, count),
        "product": lambda: run_product(engine, load, count),
    }
    if real:
        cases["stage"] = lambda: run_stage(engine, load, count, scratch / "store")
    for _ in range(arguments.turns):
        for case, work in cases.items():
            rates.setdefault(case, []).append(measured(case, work, count))
    bare = max(rates["bare"])
    for case in list(cases)[1:]:
        say(f"{case} / bare, same settings", ratio=round(max(rates[case]) / bare, 3))
    engine.__exit__()  # ends the core that both used
    if not arguments.fresh:
        return
    started = time.perf_counter()
    with VllmEngine(config, model) as engine:
        say("product loaded", seconds=round(time.perf_counter() - started, 1),
            **limits(engine._stepping.engine))  # fmt: skip
        run_product(engine, load, 64)
        fresh = max(
            measured("product, fresh", lambda: run_product(engine, load, count), count)
            for _ in range(arguments.turns)
        )
    say("product / bare, default against default", ratio=round(fresh / bare, 3))


def limits(engine: Any) -> dict[str, Any]:
    """What the scheduler was given."""
    scheduler = engine.vllm_config.scheduler_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "async_scheduling": scheduler.async_scheduling,
        "v2_runner": engine.vllm_config.use_v2_model_runner,
    }


if __name__ == "__main__":
    main()
