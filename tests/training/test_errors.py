from __future__ import annotations

import importlib.util
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import TrainConfig
from selfalign.errors import ConfigurationError, DataError, EngineError, OutOfMemory, StorageFull
from selfalign.training.base import Example
from selfalign.training.failures import engine_errors
from selfalign.training.model import BaseModel, check_base_model

from .worlds import CONFIG, FORM, LORA, Attempt, build_base, newest


def changed(**fields: Any) -> Any:
    return CONFIG.model_copy(update={"max_steps": 3} | fields)


def test_no_examples_are_a_data_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected examples to train on, got 0"):
        Attempt(CONFIG, base, tmp_path, examples=[]).run()


def test_a_base_that_is_no_model_is_a_data_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=f"base_model {empty}: cannot be loaded"):
        Attempt(CONFIG, empty, tmp_path).run()


def test_damaged_weights_are_a_data_error(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"base_model {base}: cannot be loaded"):
        Attempt(CONFIG, base, tmp_path).run()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": -1}]}),
        ("tokenizer.json", {"normalizer": [1]}),
        ("tokenizer_config.json", {"bos_token": True}),
        ("config.json", {"hidden_act": 1e300}),
        ("config.json", {"a": json.loads("[" * 900 + "]" * 900)}),
        ("tokenizer_config.json", {"unk_token": ""}),
    ],
)
def test_a_damaged_file_of_a_base_is_a_data_error(tmp_path: Path, file: str, change: Any) -> None:
    path = build_base(tmp_path / "base") / file
    value = json.loads(path.read_text()) | change if path.exists() else change
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=f"base_model {path.parent}: cannot be loaded"):
        check_base_model(CONFIG, BaseModel(str(path.parent)), FORM)


def test_code_that_comes_with_a_base_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    base, ran = build_base(tmp_path / "base"), tmp_path / "ran"
    (base / "custom.py").write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.C"}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=f"base_model {base}: cannot be loaded"):
        Attempt(CONFIG, base, tmp_path).run()
    assert not ran.exists()
    assert not asked


def test_pickled_weights_of_a_base_are_a_data_error(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = build_base(tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(DataError, match=f"base_model {base}: cannot be loaded"):
        Attempt(CONFIG, base, tmp_path).run()


def test_a_base_without_an_end_of_sequence_is_a_data_error(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    config = base / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<eos>",', ""))
    with pytest.raises(DataError, match="has no eos_token"):
        Attempt(CONFIG, base, tmp_path).run()


def test_examples_longer_than_the_base_takes_are_a_configuration_error(
    base: Path, tmp_path: Path
) -> None:
    long = Example("Question: q1 Answer:", "a1 " * 40)
    with pytest.raises(ConfigurationError, match=r"has 44 tokens; .* takes 32") as refused:
        Attempt(changed(max_length=512), base, tmp_path, examples=[long]).run()
    assert refused.value.remedy == "set max_length to at most 32"


def targeting(*names: str) -> TrainConfig:
    return LORA.model_copy(
        update={"lora": LORA.lora.model_copy(update={"target_modules": list(names)})}
    )


def test_a_target_that_no_module_is_named_after_is_refused_with_those_there_are(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"no module 'q_porj'; it has .*k_proj, .*q_proj"):
        Attempt(targeting("k_proj", "q_porj"), base, tmp_path).run()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_target_that_shares_its_weights_is_refused(
    base: Path, tmp_path: Path, target: str
) -> None:
    """The base model of these tests ties its output layer to its embedding."""
    with pytest.raises(ConfigurationError, match=f"'{target}' shares its weights"):
        Attempt(targeting("q_proj", target), base, tmp_path).run()


@pytest.mark.parametrize(
    ("role", "match"),
    [
        ("pad_token", r"gives '\[NEW\]' the id 22, but the model's embedding has 22 rows"),
        ("eos_token", r"gives '\[NEW\]' the id 22, but"),
        (None, r"gives '\[NEW\]' the id 22, but"),
    ],
)
def test_a_token_beyond_the_embedding_is_named_before_training(
    tmp_path: Path, role: str | None, match: str
) -> None:
    """As where a token was added to the tokenizer and the model was not resized."""
    from transformers import AutoTokenizer

    base = build_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens("[NEW]")
    if role is not None:
        setattr(tokenizer, role, "[NEW]")
    tokenizer.save_pretrained(base)
    steps: list[int] = []
    examples = [Example("Question: q1 Answer:", "a1 [NEW]")]
    with pytest.raises(DataError, match=match):
        Attempt(changed(), base, tmp_path, examples=examples, on_step=steps.append).run()
    assert steps == []


def test_qlora_without_a_gpu_is_a_configuration_error(base: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match="got no CUDA device") as refused:
        Attempt(changed(method="qlora"), base, tmp_path).run()
    assert "use method lora" in (refused.value.remedy or "")


def test_the_eight_bit_optimizer_without_its_package_is_a_configuration_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest),
    )
    with pytest.raises(ConfigurationError, match="needs the package bitsandbytes") as refused:
        Attempt(changed(optimizer="adamw_8bit"), base, tmp_path).run()
    assert "set optimizer to adamw" in (refused.value.remedy or "")


def test_deepspeed_outside_torchrun_is_a_configuration_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="deepspeed is configured"):
        Attempt(changed(deepspeed={}), base, tmp_path).run()


def test_a_loss_that_is_no_number_names_the_step_and_is_never_saved(
    base: Path, tmp_path: Path
) -> None:
    config = changed(learning_rate=1e30, warmup_steps=0, checkpoint_every_steps=1)
    with pytest.raises(EngineError, match=r"diverged at step 2 of 3: loss .* nan") as failed:
        Attempt(config, base, tmp_path).run()
    assert "lower learning_rate" in (failed.value.remedy or "")
    assert newest(tmp_path, tmp_path / "saved") == 1


def test_running_out_of_memory_is_said(base: Path, tmp_path: Path) -> None:
    import torch

    def allocate(step: int) -> None:
        torch.empty(2**58, dtype=torch.uint8)

    with pytest.raises(OutOfMemory, match="training: out of memory") as failed:
        Attempt(changed(), base, tmp_path, on_step=allocate).run()
    assert "lower micro_batch_size" in (failed.value.remedy or "")


@pytest.mark.parametrize("room", [1_000, 60_000])
def test_a_full_disk_is_said_whatever_cannot_be_written(
    base: Path, tmp_path: Path, room: int
) -> None:
    """No file may grow past `room` bytes: first safetensors' weights, then torch's optimiser."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(StorageFull, match="the disk is full or fails"):
            Attempt(changed(checkpoint_every_steps=1), base, tmp_path).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest(tmp_path, tmp_path / "saved") is None


def test_other_failures_of_torch_are_engine_errors_and_bugs_stay_bugs() -> None:
    import torch

    with (
        pytest.raises(EngineError, match=r"training: RuntimeError: .*size"),
        engine_errors("training"),
    ):
        torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(TypeError), engine_errors("training"):
        torch.zeros("two")  # type: ignore[arg-type]
