"""`generation_config.json`: which tokens end an answer, and how a server samples by default.

vLLM and transformers read it from the model's directory. Stop strings are not among what a server
takes from there, and transformers refuses to generate when it holds some and no tokenizer is
given: a model's answers end by a token alone, in evaluation too, and `stop_strings` is stated as
null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfalign.config import SamplingConfig
from selfalign.errors import DataError
from selfalign.store.documents import decode_json

GENERATION_CONFIG = "generation_config.json"


def ending(special: Mapping[str, int | None], ends: Sequence[int]) -> bytes:
    """The file of a trained model: these tokens end an answer, and no stop strings do.

    Args:
        special: ids by name, such as bos_token_id; None is left out.
        ends: ids that end an answer, the one that was taught first.
    """
    known = {name: value for name, value in special.items() if value is not None}
    return _text({**known, "eos_token_id": list(dict.fromkeys(ends)), "stop_strings": None})


def with_sampling(stated: bytes, sampling: SamplingConfig) -> bytes:
    """The file with defaults that sample as the evaluation did. Raises DataError."""
    try:
        value = decode_json(stated)
        if not isinstance(value, dict):
            raise ValueError("expected a JSON object")
    except ValueError as error:
        raise DataError(
            f"{GENERATION_CONFIG} of the final model: {error}", remedy="train the model again"
        ) from error
    drawn: dict[str, Any] = {
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,  # vLLM knows no do_sample: 0 is greedy there
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_new_tokens": sampling.max_new_tokens,
    }
    return _text({**value, **drawn})


def _text(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
