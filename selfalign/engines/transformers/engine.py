"""The engine that runs anywhere: transformers on one device, in batches of consecutive requests.

A batch is `engine.batch_size` consecutive requests, whatever their lengths, so a resumed stage
that starts at a batch's first request repeats an uninterrupted one to the bit.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from selfalign.config import EngineConfig
from selfalign.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Score,
    ScoreRequest,
)
from selfalign.engines.tokens import PromptTokenizer, Scored, batched
from selfalign.engines.transformers.decoding import Row, decode
from selfalign.engines.transformers.forward import Forward
from selfalign.engines.transformers.limits import load_config, load_tokenizer, max_length
from selfalign.errors import (
    ConfigurationError,
    DataError,
    EngineError,
    OutOfMemory,
    is_out_of_memory,
)
from selfalign.language_model import language_model_options, require_whole


class TransformersEngine:
    """A causal language model behind the Engine protocol.

    `engine.options` may hold `device` (default: cuda if available, else cpu) and
    `share_prefixes` (default: true; the prefix that all requests of a batch have in common is
    then computed once and kept); everything else goes to `from_pretrained` of the model.

    Raises:
        ConfigurationError: an option the model does not take, a limit beyond the model's, or a
            model that cannot be run in padded batches.
        DataError: the directory does not hold a complete causal language model.
        OutOfMemory, EngineError: loading failed otherwise.
    """

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        options = dict(config.options)
        device = options.pop("device", None)
        share_prefixes = bool(options.pop("share_prefixes", True))
        self._batch_size = config.batch_size
        with _translated(f"loading {directory}"), torch.inference_mode():
            model = _load_model(directory, config.dtype, options)
            if "device_map" not in options:
                model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            tokenizer = load_tokenizer(directory)
            self.max_length = max_length(config, model.config, tokenizer, directory)
            rows = model.get_input_embeddings().num_embeddings
            self._tokenizer = PromptTokenizer(tokenizer, self.max_length, rows)
            self._end_tokens = _end_tokens(model, tokenizer)
            self._forward = Forward(model, share_prefixes=share_prefixes)
        kind = model.device.type
        self.info = EngineInfo(
            name="transformers",
            version=transformers.__version__,
            device=torch.cuda.get_device_name(model.device) if kind == "cuda" else kind,
            details={
                "torch": torch.__version__,
                "dtype": str(model.dtype).removeprefix("torch."),
                "threads": str(torch.get_num_threads()),
                "share_prefixes": str(self._forward.shares_prefixes).lower(),
            },
        )

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode([text])[0])

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for batch in batched(requests, self._batch_size):
            rows = []
            for request, prompt in zip(batch, self._tokenizer.prompts(batch), strict=True):
                if isinstance(prompt, Quarantined):
                    yield prompt
                    continue
                room = self.max_length - len(prompt)
                stream = self._tokenizer.stream(prompt, request.sampling.stop)
                limit = min(request.sampling.max_new_tokens, room)
                rows.append(Row(request, prompt, limit, stream))
            steps = decode(self._forward, rows, self._end_tokens) if rows else iter(())
            while True:
                with _translated(f"generating {batch[0].id} to {batch[-1].id}"):
                    finished = next(steps, None)
                if finished is None:
                    break
                yield from finished

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        for batch in batched(requests, self._batch_size):
            names: list[str] = []
            scored: list[Scored] = []
            for request, row in zip(batch, self._tokenizer.continuations(batch), strict=True):
                if isinstance(row, Quarantined):
                    yield row
                    continue
                names.append(request.id)
                scored.append(row)
            if not scored:
                continue
            with _translated(f"scoring {batch[0].id} to {batch[-1].id}"), torch.inference_mode():
                likelihoods = self._log_likelihoods(scored)
            for name, row, value in zip(names, scored, likelihoods, strict=True):
                yield Score(name, value, len(row.tokens) - row.start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the model's memory; the engine cannot be used afterwards."""
        self.__dict__.pop("_forward", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _log_likelihoods(self, scored: Sequence[Scored]) -> list[float]:
        """Sums over each row's continuation, in float64 from the model's logits on."""
        keep = max(1, *(len(row.tokens) - row.start for row in scored))
        # The last token is only predicted; a row of one token has an empty continuation.
        inputs = [row.tokens[: max(1, len(row.tokens) - 1)] for row in scored]
        _, logits = self._forward.start(inputs, keep)  # (rows, keep, vocabulary)
        sums = []
        for row, predictions in zip(scored, logits, strict=True):
            target = torch.tensor(row.tokens[row.start :], dtype=torch.long, device=logits.device)
            likelihoods = predictions[keep - len(target) :].double().log_softmax(-1)
            sums.append(float(likelihoods.gather(-1, target[:, None]).sum()))
        return sums


def _load_model(directory: Path, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    stated = load_config(directory)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **language_model_options(stated),
            **options,
        )
    except Exception as e:  # a damaged file raises nearly anything
        if is_out_of_memory(e):
            raise
        if isinstance(e, TypeError) and options:
            raise ConfigurationError(
                f"engine.options: the model does not take them: {e}",
                remedy="keep to arguments of from_pretrained, device and share_prefixes",
            ) from e
        raise DataError(
            f"{directory}: cannot be loaded as a causal language model: {type(e).__name__}: {e}",
            remedy="check config.json and engine.options against what the model's author states",
        ) from e
    require_whole(model, report, str(directory))
    model.eval()
    return model


def _end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: the generation configuration's and the tokenizer's."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    wrong = [end for end in ends if end is not None and not isinstance(end, int)]
    if wrong:
        raise DataError(
            f"{model.name_or_path}/generation_config.json: eos_token_id is {wrong[0]!r}, expected "
            "a token id or a list of them",
            remedy="correct the file, or copy it again from the model's author",
        )
    return frozenset(end for end in ends if end is not None)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn what torch raises into this project's errors."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as e:
        if is_out_of_memory(e):
            raise OutOfMemory(
                f"{doing}: out of memory",
                remedy="lower engine.batch_size or engine.max_length, or give the worker more "
                "memory",
            ) from e
        if isinstance(e, OSError):
            raise
        raise EngineError(f"{doing}: {e}") from e
    except (IndexError, KeyError, TypeError, ValueError) as e:
        raise DataError(
            f"{doing}: the model cannot be run: {type(e).__name__}: {e}",
            remedy="check that config.json, weights and tokenizer belong together",
        ) from e
