"""Opening an engine: what is wrong is named before minutes are spent on loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from selfalign.config import EngineConfig
from selfalign.engines.open import open_engine
from selfalign.errors import ConfigurationError, DataError, SelfAlignError
from tests.engines.conftest import llama_config


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def error(model: Path | str, revision: str | None = None, **config: Any) -> SelfAlignError:
    with pytest.raises(SelfAlignError) as caught:
        open_engine(EngineConfig(kind="transformers", **config), model, revision=revision)
    assert caught.value.remedy
    return caught.value


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed here")
def test_a_package_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)vllm.*not installed.*selfalign\[vllm\]"):
        open_engine(EngineConfig(kind="vllm"), "model")


@pytest.mark.parametrize("model", ["models/base", Path("models/base"), "/nowhere"])
def test_a_missing_directory_is_not_looked_up_on_a_hub(model: Path | str) -> None:
    found = error(model)
    assert isinstance(found, DataError)
    assert "no such model directory" in str(found)


def test_a_path_is_local_even_with_a_revision() -> None:
    assert "no such model directory" in str(error(Path("models/base"), "0" * 40))


def test_offline_a_hub_model_must_be_cached() -> None:
    found = error("nobody/nothing", "0" * 40)
    assert isinstance(found, DataError)
    assert "HF_HUB_OFFLINE" in str(found)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGE = b"<!DOCTYPE html><html>Sign in</html>"
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
INDEX = b'{"weight_map": {"a": "%s"}}'


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", None, "config.json: cannot be read as JSON: [Errno 2] No such file"),
        ("tokenizer.json", None, "no tokenizer"),
        ("model.safetensors", None, "gives pickled weights (*.bin) alone"),
        ("config.json", b"{", "config.json: cannot be read as JSON"),
        ("config.json", DEEP, "config.json: cannot be read as JSON"),
        ("config.json", b"[]", "config.json: expected a JSON object, got list"),
        ("config.json", b'{"model_type": 3}', "cannot be loaded as a causal language model"),
        ("config.json", b'{"architectures": 3}', "config.json: architectures is 3"),
        ("tokenizer.json", b'{"model": 3}', "tokenizer cannot be loaded"),
        ("tokenizer_config.json", b'{"unk_token": ""}', "tokenizer cannot be loaded"),
        ("tokenizer.json", LFS, "tokenizer.json: cannot be read as JSON"),
        ("tokenizer_config.json", PAGE, "tokenizer_config.json: cannot be read as JSON"),
        ("tokenizer_config.json", DEEP, "tokenizer_config.json: cannot be read as JSON"),
        ("generation_config.json", b"", "generation_config.json: cannot be read as JSON"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "generation_config.json: eos_token"),
        ("generation_config.json", b'{"eos_token_id": [[1]]}', "generation_config.json: eos_token"),
        ("model.safetensors", b"", "model.safetensors: damaged or truncated at 0 bytes"),
        ("model.safetensors", b"\x02", "model.safetensors: damaged or truncated at 1 bytes"),
        ("model.safetensors", LFS, "Git LFS pointer"),
        ("model.safetensors", PAGE, "is a web page"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    copy: Path, name: str, content: bytes | None, named: str
) -> None:
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    found = error(copy)
    assert isinstance(found, DataError)
    assert named in f"{found} {found.remedy}"


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_that_needs_a_package_names_it(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    found = error(copy)
    assert isinstance(found, DataError)
    assert "pip install sentencepiece" in str(found)


def test_weights_cut_by_one_byte_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: damaged or truncated at {path.stat().st_size} bytes" in str(error(copy))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused(copy: Path, name: str) -> None:
    (copy / "model.safetensors").rename(copy / name)
    found = error(copy)
    assert isinstance(found, DataError)
    assert f"{name}: pickled weights can run code" in str(found)
    assert "save_pretrained" in str(found.remedy)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{}", "no weight_map"),
        (b'{"weight_map": ["a"]}', "no weight_map"),
        (INDEX % b"../a.safetensors", "weight_map names '../a.safetensors'"),
        (INDEX % b"a.bin", "weight_map names 'a.bin'"),
        (b'{"weight_map": {"a": 3}}', "weight_map names '3'"),
        (INDEX % b"a.safetensors", "1 of 1 weight files are missing, the first is a.safe"),
    ],
)
def test_a_damaged_index_is_named(copy: Path, content: bytes, named: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_bytes(content)
    found = error(copy)
    assert isinstance(found, DataError)
    assert named in str(found)
    assert "model.safetensors.index.json" in str(found)


def test_a_token_beyond_the_embedding_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    extra = {"id": 320, "content": "Wisteria", "special": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append(extra | flags)
    path.write_text(json.dumps(tokenizer))
    found = error(copy)
    assert isinstance(found, DataError)
    assert f"{copy}: token 'Wisteria' of the tokenizer has id 320" in str(found)


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    ran = copy / "ran"
    (copy / "custom.py").write_text(f"open({str(ran)!r}, 'w')")
    change_config(
        copy,
        model_type="custom",
        auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"},
    )
    assert isinstance(error(copy), DataError)
    assert not ran.exists()
    assert not asked


SET_ITSELF = ["model", "revision", "seed", "trust_remote_code", "dtype"]
RUNS_CODE = ["worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors"]
READS_ELSEWHERE = ["load_format", "download_dir", "speculative_config", "spec_model"]


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
@pytest.mark.parametrize("option", [*SET_ITSELF, *RUNS_CODE, *READS_ELSEWHERE, "adapter_kwargs"])
def test_an_option_that_chooses_model_file_or_code_is_refused(kind: str, option: str) -> None:
    config = EngineConfig.model_validate({"kind": kind, "options": {option: "x"}})
    with pytest.raises(ConfigurationError, match=rf"engine\.options\.{option}: .* takes "):
        open_engine(config, "model")


def test_attention_that_would_be_downloaded_is_refused(llama: Path) -> None:
    found = error(llama, options={"attn_implementation": "somebody/kernel"})
    assert isinstance(found, ConfigurationError)
    assert "'somebody/kernel', expected one of eager, sdpa" in str(found)


def test_weights_that_lack_a_tensor_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found = error(copy)
    assert isinstance(found, DataError)
    assert "lack 1" in str(found)
    assert "layers.1.mlp.up_proj" in str(found)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 32}, {"num_attention_heads": 0}, {"rope_parameters": {"rope_type": "none"}}],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    copy: Path, changes: dict[str, Any]
) -> None:
    change_config(copy, **changes)
    found = error(copy)
    assert isinstance(found, DataError)
    assert f"{copy}: cannot be loaded as a causal language model" in str(found)


def test_a_model_that_cannot_be_run_is_refused(make_model: Callable[..., Path]) -> None:
    from transformers import GPT2Config

    short = GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=2, n_positions=8)
    found = error(make_model(short))
    assert isinstance(found, DataError)
    assert "the model cannot be run: IndexError" in str(found)


def test_weights_that_are_no_numbers_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found = error(copy)
    assert isinstance(found, DataError)
    assert f"{copy}: the model gives no numbers (NaN) in float32" in str(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        {"architectures": None, "model_type": "t5"},
    ],
)
def test_a_model_that_does_not_continue_text_is_refused(
    copy: Path, changes: dict[str, Any]
) -> None:
    change_config(copy, **changes)
    found = error(copy)
    assert isinstance(found, DataError)
    assert "causal language model" in str(found)


def test_a_limit_beyond_the_models_own_is_refused(llama: Path) -> None:
    own = llama_config().max_position_embeddings
    found = error(llama, max_length=own + 1)
    assert isinstance(found, ConfigurationError)
    assert str(own) in str(found)


def test_an_option_the_model_does_not_take_is_named(llama: Path) -> None:
    found = error(llama, options={"no_such_option": 1})
    assert isinstance(found, ConfigurationError)
    assert "no_such_option" in str(found)


def test_the_models_own_limit_and_precision_are_the_default(llama: Path) -> None:
    with open_engine(EngineConfig(kind="transformers"), str(llama)) as engine:
        assert engine.max_length == llama_config().max_position_embeddings
        assert engine.info.details["dtype"] == "float32"
    with open_engine(EngineConfig(kind="transformers", dtype="bfloat16"), llama) as engine:
        assert engine.info.details["dtype"] == "bfloat16"
        assert engine.info.details["share_prefixes"] == "true"
