"""What engines are held against: the transformers library's own loop, one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engines.conftest import END, TEXT

SHARED = "".join(TEXT)  # three blocks of tokens and more
QUESTIONS = ("what is the height?", "and then?", "the old tower", "rules", "who is Willow", "日本")
PROMPTS = [f"{SHARED}\nUser: {question}\nWillow:" for question in QUESTIONS]


class Reference:
    """A model without batches, shared prefixes or caches kept between calls."""

    def __init__(self, directory: Path) -> None:
        import transformers
        from transformers import AutoConfig, AutoTokenizer

        (name,) = AutoConfig.from_pretrained(directory).architectures
        architecture = getattr(transformers, name)
        self._model: Any = architecture.from_pretrained(directory, dtype="float32").eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def greedy(self, prompt: str, **options: Any) -> tuple[str, list[int]]:
        """Text and tokens that `generate` of the library continues the prompt by."""
        ids = self._tokenizer(prompt, return_tensors="pt")
        output = self._model.generate(**ids, do_sample=False, pad_token_id=END, **options)
        before, whole = ids["input_ids"][0].tolist(), output[0].tolist()
        start = self._tokenizer.decode(before, skip_special_tokens=True)
        text = self._tokenizer.decode(whole, skip_special_tokens=True)
        return text[len(start) :].rstrip("\ufffd"), whole[len(before) :]

    def log_likelihood(self, prompt: str, continuation: str) -> tuple[float, int]:
        """A sum over tokens, each from a log-softmax of its own; and how many they are."""
        import torch

        before = self._tokenizer(prompt)["input_ids"]
        whole = self._tokenizer(prompt + continuation)["input_ids"]
        assert whole[: len(before)] == before
        with torch.inference_mode():
            logits = self._model(torch.tensor([whole])).logits[0]
        places = range(len(before), len(whole))
        values = [float(logits[place - 1].log_softmax(-1)[whole[place]]) for place in places]
        return sum(values), len(values)
