"""Tiny causal language models, made from scratch for a test session; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import EngineConfig
from selfalign.engines.base import Engine, GenerationRequest, Sampling
from selfalign.engines.open import open_engine
from tests.engines.served import serving
from tests.engines.server_process import vllm_serving

TEXT = (
    "You are Willow, a calm helper. Willow keeps to the rules below, and names each she uses.",
    "1 (ethical). Willow refuses what would harm people.\n2 (candor). Willow says what is unknown.",
    "User: what is the height of the old tower?\nWillow (thought): rule 2 (candor) applies.",
    "Willow: naïve café, 25 °C — 日本語 words are rare here.\n\nUser: and then?",
)
MAX_LENGTH = 240
BEGIN, END = 0, 1  # <s> and </s>
OPTIONS: dict[str, dict[str, Any]] = {"vllm": {"max_num_seqs": 8}}

Ask = Callable[..., GenerationRequest]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with <s> before a text, 320 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def make_model(
    tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Save a random model of a configuration with the tokenizer; returns its directory."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        PreTrainedConfig,
        PreTrainedTokenizerFast,
    )

    def make(config: PreTrainedConfig, **tokenizer_options: Any) -> Path:
        directory = tmp_path_factory.mktemp("model")
        multimodal = config.get_text_config() is not config
        auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        torch.set_num_threads(1)  # threads only wait for each other in models this small
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = auto.from_config(config)
        with torch.no_grad():
            model.get_output_embeddings().weight[END] *= 2.5  # so that some texts do end
        model.save_pretrained(directory)
        PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer_file),
            bos_token="<s>",
            eos_token="</s>",
            **tokenizer_options,
        ).save_pretrained(directory)
        return directory

    return make


SHAPE: dict[str, Any] = {  # weights large enough for a distribution with favourites
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "tie_word_embeddings": False,
}


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**(SHAPE | changes))


@pytest.fixture(scope="session")
def llama(make_model: Callable[..., Path]) -> Path:
    return make_model(llama_config())


# vllm and what it imports warn of their own deprecations
VLLM = pytest.param("vllm", marks=pytest.mark.filterwarnings("default"))


VLLM_SERVER = pytest.param("openai+vllm", marks=pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", params=["fake", "transformers", "openai", VLLM, VLLM_SERVER])
def engine_and_server(request: pytest.FixtureRequest) -> str:
    """The kind of engine, and behind a plus what serves the model, if not tests/engines/served."""
    name = str(request.param)
    if "vllm" in name and find_spec("vllm") is None:
        pytest.skip("vllm is not installed here")
    if name != "fake" and find_spec("torch") is None:
        pytest.skip("torch is not installed here")
    return name


def small_engine(kind: str, **more: Any) -> EngineConfig:
    """An engine of this kind that answers in batches of four, in float32."""
    return EngineConfig.model_validate(
        {
            "kind": kind,
            "dtype": "float32",
            "batch_size": 4,
            "max_length": MAX_LENGTH,
            "options": OPTIONS.get(kind, {}),
            **more,
        }
    )


@pytest.fixture(scope="session")
def kind(engine_and_server: str) -> str:
    return engine_and_server.partition("+")[0]


@pytest.fixture(scope="session")
def engine(
    kind: str, engine_and_server: str, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    server: dict[str, Any] = {}
    with ExitStack() as stack:
        if kind == "openai":
            if engine_and_server == "openai+vllm":
                log = tmp_path_factory.mktemp("server") / "log"
                url, _ = stack.enter_context(vllm_serving(llama, MAX_LENGTH, log))
            else:
                url = stack.enter_context(serving(llama, MAX_LENGTH)).url
            server = {"server": {"url": url, "concurrency": 8}}
        yield stack.enter_context(open_engine(small_engine(kind, **server), llama))


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Requests that differ where a test says so."""

    def asked(
        name: object,
        prompt: str = "User: what is the height of the old tower?\nWillow:",
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 12,
        repetition_penalty: float = 1.0,
        stop: tuple[str, ...] = (),
    ) -> GenerationRequest:
        sampling = Sampling(temperature, top_p, max_new_tokens, repetition_penalty, stop)
        return GenerationRequest(str(name), prompt, sampling, seed)

    return asked
