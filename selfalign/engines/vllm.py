"""The engine for GPUs: vLLM, kept busy while this process tokenises, parses and commits.

On a GPU, vLLM's core (scheduler and model) runs in a process of its own. Here one thread feeds it
and collects what is finished (`engines/stepping.py`); whoever iterates over `generate` does the
rest of its work beside that. Each stream keeps twice as many requests in the engine as run at
once, so the core never waits for this process. Prompts share their prefixes in vLLM's cache.

vLLM would turn each token into text by itself and look for stop strings in it, which takes longer
than a small model takes for the token. So it hands over tokens, a few at a time, and
`tokens.TextStream` reads them.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from selfalign.config import EngineConfig
from selfalign.engines.base import (
    Completion,
    EngineInfo,
    GenerationRequest,
    Quarantined,
    Score,
    ScoreRequest,
)
from selfalign.engines.stepping import Refused, Stepping
from selfalign.engines.tokens import PromptTokenizer, Scored, TextStream, batched
from selfalign.errors import ConfigurationError, EngineError, OutOfMemory, SelfAlignError

IN_FLIGHT = 2  # times max_num_seqs: as many wait as run, so that no slot stays empty
DRAWN_TOGETHER = 16  # requests tokenised in one call
READ_TOGETHER = 4  # tokens; a stop string is seen at most three tokens after it was written
CPU_CACHE_BYTES = 2**30  # of keys and values; by default it would be a share of all memory

# Only defaults: what the environment sets already stays.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # no telemetry
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # else one core idles
}

R = TypeVar("R", GenerationRequest, ScoreRequest)


@dataclass(slots=True)
class _Reading:
    """What was read of a completion so far."""

    text: TextStream
    num_tokens: int = 0
    stopped: bool = False  # at a stop string

    def read(self, output: Any) -> bool:
        """Read new tokens; True when no more are needed."""
        tokens = output.outputs[0].token_ids
        needed = self.text.extend(tokens)
        self.stopped = needed is not None
        self.num_tokens += len(tokens) if needed is None else needed
        return self.stopped


@dataclass(slots=True)
class _Job(Generic[R]):
    """A request with its tokens and vLLM's SamplingParams.

    `tokens` is Quarantined where the request cannot be put to the model. `output` is vLLM's last.
    """

    request: R
    tokens: Scored | Quarantined
    parameters: Any = None
    reading: _Reading | None = None
    output: Any = None

    def read(self, output: Any) -> bool:
        """Read new tokens of a completion; True when no more are needed."""
        return self.reading is not None and self.reading.read(output)


class VllmEngine:
    """A causal language model in vLLM behind the Engine protocol.

    `engine.options` goes to vLLM's EngineArgs (`engines.open.OPTIONS` lists what it may hold).
    Several threads may generate at once; their requests share the engine.

    Raises:
        ConfigurationError: vLLM does not know an option, or refuses the values.
        OutOfMemory, EngineError: loading failed otherwise.
    """

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import vllm
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind
        from vllm.usage.usage_lib import UsageContext

        # A second process takes a CPU's cores from the model, and its start costs 15 seconds.
        separate = "0" if current_platform.is_cpu() else "1"
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", separate)
        self._sampling_params = vllm.SamplingParams
        self._final_only, self._new_tokens = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA
        with _translated(f"loading {directory}"):
            self._stepping: Stepping | None = Stepping(
                lambda: vllm.LLMEngine.from_engine_args(
                    _arguments(config, directory),
                    usage_context=UsageContext.LLM_CLASS,  # by it vLLM chooses its batch sizes
                )
            )
            engine = self._stepping.engine
            model = engine.model_config
            self.max_length: int = model.max_model_len
            self._tokenizer = PromptTokenizer(
                engine.get_tokenizer(), self.max_length, model.get_vocab_size()
            )
        scheduler = engine.vllm_config.scheduler_config
        self._in_flight = IN_FLIGHT * scheduler.max_num_seqs
        self.info = EngineInfo(
            name="vllm",
            version=vllm.__version__,
            device=str(current_platform.get_device_name() or current_platform.device_type),
            details={
                "dtype": str(model.dtype).removeprefix("torch."),
                "tensor_parallel_size": str(config.tensor_parallel_size),
                "max_num_seqs": str(scheduler.max_num_seqs),
                "max_num_batched_tokens": str(scheduler.max_num_batched_tokens),
            },
        )

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode([text])[0])

    def generate(self, requests: Iterable[GenerationRequest]) -> Iterator[Completion | Quarantined]:
        for job in self._stream(requests, self._generation_jobs):
            if isinstance(job.tokens, Quarantined):
                yield job.tokens
                continue
            assert job.reading is not None
            reason = "stop" if job.reading.stopped else job.output.outputs[0].finish_reason
            if reason not in ("stop", "length"):
                yield Quarantined(job.request.id, "aborted", f"vLLM ended it as {reason!r}")
                continue
            yield Completion(
                job.request.id,
                job.reading.text.text,
                "stop" if reason == "stop" else "length",
                num_prompt_tokens=len(job.tokens.tokens),
                num_new_tokens=job.reading.num_tokens,
            )

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score | Quarantined]:
        for job in self._stream(requests, self._score_jobs):
            if isinstance(job.tokens, Quarantined):
                yield job.tokens
                continue
            tokens, start = job.tokens.tokens, job.tokens.start
            places = list(zip(tokens, job.output.prompt_logprobs, strict=False))[start:]
            value = sum(chosen[token].logprob for token, chosen in places)
            yield Score(job.request.id, value, len(places))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the model's memory; the engine cannot be used afterwards."""
        from vllm.distributed import cleanup_dist_env_and_memory

        stepping, self._stepping = self._stepping, None
        if stepping is not None:
            stepping.close()
            del stepping
            gc.collect()
            cleanup_dist_env_and_memory()

    def _generation_jobs(
        self, requests: list[GenerationRequest]
    ) -> Iterator[_Job[GenerationRequest]]:
        for request, tokens in zip(requests, self._tokenizer.prompts(requests), strict=True):
            if isinstance(tokens, Quarantined):
                yield _Job(request, tokens)
                continue
            sampling, room = request.sampling, self.max_length - len(tokens)
            parameters = self._sampling_params(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_new_tokens, room),
                repetition_penalty=sampling.repetition_penalty,
                seed=request.seed,
                detokenize=False,
                output_kind=self._new_tokens if sampling.stop else self._final_only,
            )
            reading = _Reading(self._tokenizer.stream(tokens, sampling.stop))
            yield _Job(request, Scored(tokens, len(tokens)), parameters, reading)

    def _score_jobs(self, requests: list[ScoreRequest]) -> Iterator[_Job[ScoreRequest]]:
        parameters = self._sampling_params(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=self._final_only,
        )
        for request, scored in zip(requests, self._tokenizer.continuations(requests), strict=True):
            yield _Job(request, scored, parameters)

    def _stream(
        self, requests: Iterable[R], prepare: Callable[[list[R]], Iterator[_Job[R]]]
    ) -> Iterator[_Job[R]]:
        """The jobs in the order in which they finish."""
        if self._stepping is None:
            raise RuntimeError("the engine is closed")
        jobs = _prepared(requests, prepare)
        with self._stepping.stream() as stream:
            pending: dict[str, _Job[R]] = {}
            while True:
                while len(pending) < self._in_flight and (job := next(jobs, None)):
                    if isinstance(job.tokens, Quarantined):
                        yield job
                        continue
                    pending[stream.submit(job.tokens.tokens, job.parameters, job.read)] = job
                if not pending:
                    return
                name, output = stream.finished()
                job = pending.pop(name)
                if isinstance(output, Refused):
                    why = f"vLLM refuses it: {output}"
                    job.tokens = Quarantined(job.request.id, "refused", why)
                elif isinstance(output, Exception):
                    with _translated("generating"):
                        raise output
                job.output = output
                yield job


def _prepared(
    requests: Iterable[R], prepare: Callable[[list[R]], Iterator[_Job[R]]]
) -> Iterator[_Job[R]]:
    """The jobs of requests. What goes wrong where these are made is no fault of vLLM's."""
    for batch in batched(requests, DRAWN_TOGETHER):
        with _translated("generating"):
            jobs = list(prepare(batch))
        yield from jobs


def _arguments(config: EngineConfig, directory: Path) -> Any:
    """vLLM's EngineArgs. `engine.options` wins, but holds only what open.OPTIONS names."""
    import vllm
    from vllm.platforms import current_platform

    arguments: dict[str, Any] = {
        "model": str(directory),
        "dtype": _dtype(config, directory),
        "max_model_len": config.max_length,
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "stream_interval": READ_TOGETHER,
        "trust_remote_code": False,
        "language_model_only": True,  # of a model that takes images too, no tower is loaded
    }
    if current_platform.is_cpu():
        arguments |= {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "enforce_eager": True}
        # On a CPU a prompt read in pieces moves its generator back, which torch cannot do there.
        arguments["enable_chunked_prefill"] = False
    try:
        return vllm.EngineArgs(**(arguments | config.options))
    except TypeError as e:
        raise ConfigurationError(
            f"engine.options: vLLM does not take them: {e}",
            remedy="keep to the fields of vllm.EngineArgs",
        ) from e


def _dtype(config: EngineConfig, directory: Path) -> str:
    """The checkpoint's own for "auto": vLLM's "auto" would halve float32."""
    if config.dtype != "auto":
        return config.dtype
    stated = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return str(stated.get("dtype") or stated.get("torch_dtype") or "auto")


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn the errors of vLLM and torch into this project's."""
    try:
        yield
    except SelfAlignError:
        raise
    except MemoryError as e:
        raise OutOfMemory(f"{doing}: out of memory", remedy=_LESS_MEMORY) from e
    except Exception as e:
        # vLLM reports lack of memory as ValueError, torch as a subclass of RuntimeError.
        if re.search(_MEMORY, str(e), re.IGNORECASE):
            raise OutOfMemory(f"{doing}: {e}", remedy=_LESS_MEMORY) from e
        if isinstance(e, ValueError):
            raise ConfigurationError(
                f"{doing}: vLLM refuses: {e}",
                remedy="correct engine.options, engine.dtype or engine.max_length",
            ) from e
        remedy = _CORE if "engine core" in str(e).lower() else None
        raise EngineError(f"{doing}: {type(e).__name__}: {e}", remedy=remedy) from e


_MEMORY = "out of memory|(available|allocate|KV cache|free) memory"
_LESS_MEMORY = "lower engine.gpu_memory_utilization, engine.max_length or options.max_num_seqs"
_CORE = (
    "vLLM's own lines above say why its process ended; most often the GPU's memory did not "
    f"suffice: {_LESS_MEMORY}"
)
