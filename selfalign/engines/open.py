"""From a configuration and a model to an engine.

Heavy packages are imported when an engine that needs them is opened, never before.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from selfalign.config import EngineConfig
from selfalign.engines.base import Engine
from selfalign.errors import ConfigurationError

NEEDED = {  # by kind: the packages, and the extra of this project that installs them
    "transformers": (("torch", "transformers", "safetensors"), "models"),
    "vllm": (("vllm",), "vllm"),
    "openai": (("httpx2", "transformers"), "openai"),
}

# Kinds whose `generate` several threads may read at once; their requests then run side by side.
SHARED_BY_STREAMS = {"vllm", "fake"}

# Options that the configuration sets by other names, and one that would run a model's own code.
_MODEL = {"model", "model_weights", "pretrained_model_name_or_path", "state_dict", "gguf_file"}
_FILES = {"config", "hf_config_path", "tokenizer", "tokenizer_mode", "skip_tokenizer_init"}
_REVISION = {"revision", "code_revision", "tokenizer_revision", "trust_remote_code"}
_LOADING = {"local_files_only", "use_safetensors", "output_loading_info"}
_SETTINGS = {"seed", "dtype", "torch_dtype", "max_model_len"}
_RESOURCES = {"tensor_parallel_size", "gpu_memory_utilization"}
NOT_OPTIONS = _MODEL | _FILES | _REVISION | _LOADING | _SETTINGS | _RESOURCES
# Fields of a request to a server that a stage's sampling decides, or that change its answer's form.
_SAMPLING = {"prompt", "max_tokens", "temperature", "top_p", "stop", "repetition_penalty"}
NOT_FIELDS = _SAMPLING | {"n", "best_of", "stream", "stream_options", "echo", "logprobs", "suffix"}


def open_engine(config: EngineConfig, model: Path | str, *, revision: str | None = None) -> Engine:
    """Load `model` into the engine that `config.kind` names.

    Args:
        model: a local directory, or a hub id where `revision` is given. A Path, or a text
            without a revision, is never looked up on a hub. The fake engine needs no model: it
            only keeps the name.
        revision: the commit of a hub id.

    Raises:
        ConfigurationError: a package is not installed, or an option or limit does not fit.
        DataError: the model is missing, damaged, incomplete or no causal language model.
        EngineError: the hub or the engine failed in a way that may pass.
        OutOfMemory: the model does not fit.
    """
    if config.kind == "fake":
        from selfalign.engines.fake import FakeEngine

        return FakeEngine(config, str(model))
    never = NOT_OPTIONS | (NOT_FIELDS if config.kind == "openai" else set())
    for option in sorted(config.options.keys() & never):
        raise ConfigurationError(
            f"engine.options.{option}: selfalign sets this itself",
            remedy="remove it; base_model, seed, sampling and the fields of engine decide these, "
            "and code that comes with a model is never run",
        )
    _require(config.kind)
    from selfalign.engines.model_directory import locate_model

    if config.kind == "openai":
        from selfalign.engines.openai.engine import OpenAIEngine

        directory = locate_model(model, revision, weights=False)
        return OpenAIEngine(config, directory, str(model))
    directory = locate_model(model, revision)
    if config.kind == "vllm":
        from selfalign.engines.vllm import VllmEngine

        return VllmEngine(config, directory)
    from selfalign.engines.transformers.engine import TransformersEngine

    return TransformersEngine(config, directory)


def _require(kind: str) -> None:
    packages, extra = NEEDED[kind]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"engine.kind: {kind} needs {', '.join(missing)}, which is not installed here",
            remedy=f"pip install 'selfalign[{extra}]', or choose another engine.kind",
        )
