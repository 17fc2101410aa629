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

# What `engine.options` may hold: speed, memory and precision, by each engine's own name. Not listed
# is whatever names a model, a file, a class or an address: it would choose the code that runs.
_VLLM = """
    async_scheduling block_size cpu_offload_gb cudagraph_capture_sizes disable_cascade_attn
    disable_custom_all_reduce disable_hybrid_kv_cache_manager disable_log_stats
    disable_sliding_window enable_chunked_prefill enable_expert_parallel enable_prefix_caching
    enforce_eager kv_cache_dtype kv_cache_memory_bytes language_model_only limit_mm_per_prompt
    long_prefill_token_threshold max_cudagraph_capture_size max_num_batched_tokens max_num_seqs
    max_parallel_loading_workers mm_processor_cache_gb num_gpu_blocks_override optimization_level
    performance_mode pipeline_parallel_size quantization skip_mm_profiling stream_interval
"""
_TRANSFORMERS = (
    "attn_implementation device device_map max_memory quantization_config share_prefixes"
)
OPTIONS = {"vllm": frozenset(_VLLM.split()), "transformers": frozenset(_TRANSFORMERS.split())}
# transformers takes a hub's kernel by its name, and runs it.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Fields of a request to a server that the configuration decides, or that change its answer's form.
_SAMPLING = {"prompt", "max_tokens", "temperature", "top_p", "stop", "repetition_penalty", "seed"}
NOT_FIELDS = _SAMPLING | {"model", "n", "best_of", "stream", "stream_options", "echo", "logprobs"}
NOT_FIELDS |= {"suffix"}


def open_engine(config: EngineConfig, model: Path | str, *, revision: str | None = None) -> Engine:
    """Load `model` into the engine that `config.kind` names.

    Args:
        model: a local directory, or a hub id where `revision` is given. A Path, or a text
            without a revision, is never looked up on a hub. The fake engine needs no model: it
            only keeps the name.
        revision: the commit of a hub id.

    Raises:
        ConfigurationError: a package is not installed, or an option or limit does not fit or is
            not one of `OPTIONS`.
        DataError: the model is missing, damaged, incomplete or no causal language model.
        EngineError: the hub or the engine failed in a way that may pass.
        OutOfMemory: the model does not fit.
    """
    if config.kind == "fake":
        from selfalign.engines.fake import FakeEngine

        return FakeEngine(config, str(model))
    _check_options(config)
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


def _check_options(config: EngineConfig) -> None:
    if config.kind in OPTIONS:
        allowed = OPTIONS[config.kind]
        wrong = config.options.keys() - allowed
        known = f"engine.kind {config.kind} takes {', '.join(sorted(allowed))}"
    else:
        wrong = config.options.keys() & NOT_FIELDS
        known = "selfalign sets this itself"
    for option in sorted(wrong):
        raise ConfigurationError(
            f"engine.options.{option}: cannot be set here; {known}",
            remedy="remove it; base_model, seed, sampling and the fields of engine decide what it "
            "stands for, and code that comes with a model is never run",
        )
    attention = config.options.get("attn_implementation", _ATTENTION[0])
    if attention not in _ATTENTION:
        raise ConfigurationError(
            f"engine.options.attn_implementation: {attention!r}, expected one of "
            f"{', '.join(_ATTENTION)}",
            remedy="choose one that comes with transformers: another is code that is downloaded",
        )


def _require(kind: str) -> None:
    packages, extra = NEEDED[kind]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigurationError(
            f"engine.kind: {kind} needs {', '.join(missing)}, which is not installed here",
            remedy=f"pip install 'selfalign[{extra}]', or choose another engine.kind",
        )
