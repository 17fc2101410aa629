"""A model's directory on this machine as a server: vLLM's where it is installed, else a small one.

Both render a conversation through the model's own template and load its weights in their own
precision, as `evaluate` and `chat` do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from selfalign.config import EngineConfig, SamplingConfig
from selfalign.engines.base import Engine, GenerationRequest, Sampling
from selfalign.errors import DataError
from selfalign.serving.alias import SERVED_NAME
from selfalign.serving.chat_server import ChatRequest, Reply
from selfalign.serving.defaults import GENERATION_CONFIG
from selfalign.serving.template import ChatTemplate
from selfalign.stages.asking import put
from selfalign.store.documents import decode_json

_Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES: dict[str, _Dtype] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def vllm_arguments(
    directory: Path,
    digest: str,
    *,
    host: str,
    port: int,
    shutdown_seconds: int,
    more: Sequence[str] = (),
) -> list[str]:
    """The command of vLLM's server for a model's directory.

    Args:
        shutdown_seconds: how long after SIGTERM it goes on with what it has accepted; vLLM's own
            choice is to break it off.
        more: vLLM's own arguments; they come last, so they win.
    """
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(directory), "--served-model-name", SERVED_NAME, digest),
        # vLLM's own choice for float32 is half of it, which the model was not evaluated in
        *("--dtype", model_dtype(directory)),
        *("--host", host, "--port", str(port), "--shutdown-timeout", str(shutdown_seconds), *more),
    ]


def model_dtype(directory: Path) -> _Dtype:
    """As `stated_dtype`, of the model in a directory."""
    return stated_dtype(read_json(directory / "config.json"))


def stated_dtype(config: dict[str, Any]) -> _Dtype:
    """The precision that the content of a config.json states; auto where it states none."""
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "auto")


def engine_config(directory: Path) -> EngineConfig:
    """The engine of the small server."""
    return EngineConfig(kind="transformers", dtype=model_dtype(directory))


def answering(directory: Path, engine: Engine) -> Callable[[ChatRequest], Reply]:
    """How the small server answers: by the model's template and its default sampling.

    Raises DataError for a directory without them.
    """
    template = ChatTemplate.read(
        lambda name: _bytes(directory / name), f"{directory.as_posix().rstrip('/')}/"
    )
    defaults = _default_sampling(directory)

    def answer(asked: ChatRequest) -> Reply:
        own = asked.max_completion_tokens or asked.max_tokens
        sampling = Sampling(
            temperature=defaults.temperature if asked.temperature is None else asked.temperature,
            top_p=asked.top_p or defaults.top_p,
            max_new_tokens=own or defaults.max_new_tokens,
            repetition_penalty=defaults.repetition_penalty,
            stop=(),
        )
        prompt = template.render([message.model_dump() for message in asked.messages])
        found = put(engine, GenerationRequest("chat", prompt, sampling, asked.seed))
        return Reply(
            found.text.strip(), found.finish_reason, found.num_prompt_tokens, found.num_new_tokens
        )

    return answer


def _default_sampling(directory: Path) -> SamplingConfig:
    """What generation_config.json states, as vLLM reads it."""
    path = directory / GENERATION_CONFIG
    stated = {name: value for name, value in read_json(path).items() if value is not None}
    try:
        return SamplingConfig.model_validate(
            {name: stated[name] for name in SamplingConfig.model_fields if name in stated}
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}", remedy="fetch the model again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's directory. Raises DataError."""
    try:
        value = decode_json(_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}", remedy="fetch the model again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object", remedy="fetch the model again")
    return value


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; a model's directory has this file",
            remedy=f"selfalign serving fetch --to {path.parent}",
        ) from error
