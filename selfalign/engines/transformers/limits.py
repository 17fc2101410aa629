"""What a model can take, from its configuration and tokenizer alone, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from os.path import commonprefix
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from selfalign.config import EngineConfig
from selfalign.engines.base import GenerationRequest, Quarantined, ScoreRequest
from selfalign.engines.model_directory import check_model_directory
from selfalign.engines.tokens import PromptTokenizer
from selfalign.errors import ConfigurationError, DataError

UNLIMITED = 10**9  # tokenizers without a limit state a number far beyond this
# Beyond the original length, one long row would change the frequencies of its whole batch.
LENGTH_DEPENDENT_ROPES = ("longrope", "dynamic")
_MARGIN = 8  # tokens, where two pieces of a text meet or the tokenizer puts something before it


class ContextLimit:
    """What a model sets aside as too long. Its tokenizer is loaded when a text is long at all.

    Raises:
        ConfigurationError: engine.max_length is beyond the model's own limit, or there is none.
        DataError: configuration or tokenizer cannot be loaded, or do not fit each other.
    """

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        check_model_directory(directory, weights=False)
        self._directory = directory
        self._model = load_config(directory)
        stated = _stated_length(self._model)
        self._tokenizer = load_tokenizer(directory) if stated is None else None
        self.tokens = max_length(config, self._model, self._tokenizer, directory)
        self._encoder: PromptTokenizer | None = None

    def too_long(self, requests: Sequence[GenerationRequest | ScoreRequest]) -> list[str]:
        """Ids of the requests that leave no room for one token more.

        No token stands for less than a byte, and a text has no more tokens than its pieces have:
        what the requests have in common is counted once, and only a text that may be too long is
        encoded whole.
        """
        texts = [_text(each) for each in requests]
        if not texts or max(len(text.encode()) for text in texts) < self.tokens - _MARGIN:
            return []
        encoder = self._encoder = self._encoder or self._load()
        shared = commonprefix(texts)  # noqa: RUF071 - of characters, as is meant
        used = len(encoder.encode([shared])[0]) + _MARGIN
        counts = [
            len(ids) + used for ids in encoder.encode([text[len(shared) :] for text in texts])
        ]
        doubtful = [
            each for each, count in zip(requests, counts, strict=True) if count >= self.tokens
        ]
        answers = [
            *encoder.prompts([each for each in doubtful if isinstance(each, GenerationRequest)]),
            *encoder.continuations([each for each in doubtful if isinstance(each, ScoreRequest)]),
        ]
        found = (each for each in answers if isinstance(each, Quarantined))
        return [each.id for each in found if each.reason == "too_long"]

    def _load(self) -> PromptTokenizer:
        tokenizer = self._tokenizer or load_tokenizer(self._directory)
        rows = self._model.get_text_config(decoder=True).vocab_size
        return PromptTokenizer(tokenizer, self.tokens, rows)


def _text(request: GenerationRequest | ScoreRequest) -> str:
    if isinstance(request, GenerationRequest):
        return request.prompt
    return request.prompt + request.continuation


def load_config(directory: Path) -> Any:
    """A model's configuration. Raises DataError."""
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # a damaged file raises nearly anything
        raise DataError(
            f"{directory}: cannot be loaded as a causal language model: {type(e).__name__}: {e}",
            remedy="check config.json and engine.options against what the model's author states",
        ) from e


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer beside a model. Raises DataError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        tokenizer("a")
        _ = tokenizer.all_special_ids  # of one that its vocabulary lacks, it asks for ever
    except Exception as e:  # the tokenizers library raises bare Exceptions for a broken file
        remedy = "save the tokenizer again beside the model (tokenizer.save_pretrained)"
        if (directory / "tokenizer.model").is_file() and find_spec("sentencepiece") is None:
            remedy = (
                "tokenizer.model needs a package that is not installed: pip install sentencepiece "
                "protobuf; or save tokenizer.json beside it (save_pretrained) where it is"
            )
        raise DataError(
            f"{directory}: the tokenizer cannot be loaded: {type(e).__name__}: {e}", remedy=remedy
        ) from e
    return tokenizer


def max_length(config: EngineConfig, model_config: Any, tokenizer: Any, directory: Path) -> int:
    """Tokens of prompt and completion together. Raises ConfigurationError."""
    own = _stated_length(model_config)
    if own is None and tokenizer.model_max_length < UNLIMITED:
        own = int(tokenizer.model_max_length)
    limit = config.max_length or own
    if limit is None:
        raise ConfigurationError(
            f"{directory}: neither model nor tokenizer states how many tokens it takes",
            remedy="set engine.max_length",
        )
    if own is not None and limit > own:
        raise ConfigurationError(
            f"engine.max_length: {limit} tokens, but {directory} takes {own} in this engine",
            remedy=f"lower it to {own} or leave it out",
        )
    return limit


def _stated_length(model_config: Any) -> int | None:
    text_config = model_config.get_text_config(decoder=True)
    own: int | None = getattr(text_config, "max_position_embeddings", None)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPES:
        own = rope.get("original_max_position_embeddings") or own
    return own
