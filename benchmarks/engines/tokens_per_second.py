"""Tokens per second of the transformers engine beside the library's own `generate`.

    python benchmarks/engines/tokens_per_second.py --batch-size 128 --prefix-tokens 100

Both continue the same prompts (a prefix that all share, then words of their own) by the same
number of tokens, sampled, from a random Llama of 0.79M or 6M parameters that never ends a text
early. Both compute the prefix once. Prints one JSON line; CPU seconds count too, because on a
busy machine they vary less than the clock.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from selfalign.config import EngineConfig
from selfalign.engines.base import GenerationRequest, Sampling
from selfalign.engines.open import open_engine

VOCABULARY = 400
SHAPES = {  # layers, heads, hidden size, size of the MLP, by millions of parameters
    "0.79": (4, 4, 128, 352),  # the demo's model
    "6": (8, 8, 256, 704),
}


def make_model(directory: Path, size: str) -> None:
    """A random model with a tokenizer of words w0, w1, ..."""
    layers, heads, hidden, mlp = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words = {f"w{n}": n for n in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)


def make_prompts(count: int, prefix_tokens: int) -> tuple[str, list[str]]:
    """A prefix, and what follows it in each prompt."""
    source = random.Random(0)

    def words(number: int) -> str:
        return "".join(f" w{source.randrange(VOCABULARY)}" for _ in range(number))

    return words(prefix_tokens), [words(source.randint(10, 20)) for _ in range(count)]


def measured(run: Callable[[], int]) -> dict[str, float]:
    """Tokens per second of the clock and of the processor, by one run."""
    clock, processor = time.perf_counter(), time.process_time()
    tokens = run()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return {
        "tokens_per_second": round(tokens / clock),
        "tokens_per_cpu_second": round(tokens / processor),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--prefix-tokens", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--million-parameters", choices=list(SHAPES), default="0.79")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    size, new = arguments.batch_size, arguments.new_tokens
    prefix, texts = make_prompts(size * arguments.batches, arguments.prefix_tokens)
    sampling = Sampling(temperature=0.5, top_p=arguments.top_p, max_new_tokens=new)
    requests = [GenerationRequest(str(n), prefix + t, sampling, n) for n, t in enumerate(texts)]
    result: dict[str, Any] = vars(arguments)
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), arguments.million_parameters)
        config = EngineConfig(dtype="float32", batch_size=size, options={"device": "cpu"})
        with open_engine(config, Path(name)) as engine:
            list(engine.generate(requests[:2]))
            result["engine"] = measured(
                lambda: sum(done.num_new_tokens for done in engine.generate(requests))
            )
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        result["generate"] = measured(lambda: generate(name, prefix, batches, new, arguments.top_p))
    print(json.dumps(result))


def generate(name: str, prefix: str, batches: list[list[str]], new: int, top_p: float) -> int:
    """The library's loop on a cache that holds the prefix; the number of new tokens."""
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
        name, pad_token="w0", padding_side="left"
    )
    head = torch.tensor([tokenizer(prefix)["input_ids"]], dtype=torch.long)
    kept: list[Any] = []
    if head.numel():
        with torch.inference_mode():
            kept = model(head, use_cache=True).past_key_values.layers
    for texts in batches:
        own = tokenizer(texts, return_tensors="pt", padding=True)
        rows = len(texts)
        ids = torch.cat([head.expand(rows, -1), own["input_ids"]], dim=1)
        visible = torch.cat([torch.ones_like(head).expand(rows, -1), own["attention_mask"]], dim=1)
        copies = [
            (k.keys.expand(rows, -1, -1, -1), k.values.expand(rows, -1, -1, -1)) for k in kept
        ]
        output = model.generate(
            ids,
            attention_mask=visible,
            past_key_values=DynamicCache(copies or None, config=model.config),
            do_sample=True,
            temperature=0.5,
            top_p=top_p,
            top_k=0,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )
        tokenizer.batch_decode(output[:, ids.shape[1] :])
    return sum(map(len, batches)) * new


if __name__ == "__main__":
    main()
