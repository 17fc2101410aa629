"""Of a base that takes images too the language model alone is trained and published."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from selfalign.errors import DataError, Interrupted
from selfalign.training.base import TrainResult
from selfalign.training.model import BaseModel, check_base_model, load_for_training
from tests.pipeline_world import write_gemma3

from .worlds import CONFIG, FORM, LORA, QUESTIONS, Attempt, answer, build_base, files, prompt

Run = tuple[Attempt, TrainResult]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 with a vision tower."""
    directory = build_base(tmp_path_factory.mktemp("whole"))
    write_gemma3(directory, query_pre_attn_scalar=8)
    return directory


@pytest.fixture(scope="module", params=[CONFIG, LORA], ids=["full", "lora"])
def run(whole: Path, request: pytest.FixtureRequest, tmp_path_factory: Any) -> Run:
    attempt = Attempt(request.param, whole, tmp_path_factory.mktemp("run"))
    return attempt, attempt.run()


def in_the_whole(whole: Path, tokens: list[int]) -> Any:
    """Logits of the whole model on text, (tokens, vocabulary)."""
    import torch
    from transformers import Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(whole).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0]


def test_what_is_trained_is_the_language_model_of_the_whole_and_no_more(whole: Path) -> None:
    import torch
    from transformers import AutoConfig, Gemma3ForCausalLM

    model = load_for_training(CONFIG, BaseModel(str(whole)))
    alone = Gemma3ForCausalLM(AutoConfig.from_pretrained(whole).text_config)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in alone.state_dict().items()}
    tokens = list(range(4, 16))  # longer than the window
    with torch.no_grad():
        found = model.eval()(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(found, in_the_whole(whole, tokens))


def test_the_trained_model_is_a_text_model_that_loads_as_it_lies(run: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run[1]
    assert result.multimodal == "gemma3"
    model, report = AutoModelForCausalLM.from_pretrained(result.merged, output_loading_info=True)
    assert not any(report.values())
    stated = json.loads((result.merged / "config.json").read_text())
    assert stated["architectures"] == ["Gemma3ForCausalLM"]
    assert (stated["model_type"], stated["dtype"]) == ("gemma3_text", "float32")
    assert stated["tie_word_embeddings"] is True
    tokenizer = AutoTokenizer.from_pretrained(result.merged)
    for question in range(QUESTIONS):
        inputs = tokenizer(prompt(question), return_tensors="pt")
        output = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        assert said == f"{answer(question)} <eos>"


def test_weights_are_named_as_a_text_model_names_them_and_tied_ones_are_stored_once(
    run: Run,
) -> None:
    from safetensors import safe_open

    with safe_open(run[1].merged / "model.safetensors", framework="np") as weights:
        names = set(weights.keys())
    assert all(name.startswith(("model.layers.", "model.embed", "model.norm")) for name in names)


def test_an_adapter_of_all_linear_layers_changes_none_of_the_vision_tower(run: Run) -> None:
    linear = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    lora = run[0].config.method == "lora"
    assert run[1].adapted_modules == (dict.fromkeys(linear, 2) if lora else {})


def test_a_training_that_was_stopped_continues_to_the_same_model(run: Run, tmp_path: Path) -> None:
    attempt, result = run
    with pytest.raises(Interrupted):
        Attempt(attempt.config, attempt.base, tmp_path, signals={7: signal.SIGTERM}).run()
    again = Attempt(attempt.config, attempt.base, tmp_path).run()
    assert again.resumed_from is not None
    assert files(again.merged) == files(result.merged)


def test_a_base_that_takes_images_too_is_told_before_a_run_begins(whole: Path) -> None:
    with capture_logs() as logs:
        check_base_model(LORA, BaseModel(str(whole)), FORM)
    (line,) = (log for log in logs if log["event"] == "training.language_model_alone")
    assert (line["base_model"], line["trained"]) == ("gemma3", "gemma3_text")


def test_a_base_whose_language_model_cannot_be_told_from_the_rest_is_a_data_error(
    tmp_path: Path,
) -> None:
    from transformers import Qwen2_5_VLConfig

    base = build_base(tmp_path / "base")
    Qwen2_5_VLConfig().save_pretrained(base)
    said = "qwen2_5_vl takes more than text; the language model alone can be trained of gemma3, "
    for config in (CONFIG, LORA):
        with pytest.raises(DataError, match=said) as refused:
            check_base_model(config, BaseModel(str(base)), FORM)
        assert "save its language model alone" in str(refused.value.remedy)
        with pytest.raises(DataError, match=said):
            load_for_training(config, BaseModel(str(base)))


def test_a_whole_that_lacks_weights_of_its_language_model_is_a_data_error(
    whole: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = build_base(tmp_path / "base")
    weights = load_file(whole / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(DataError, match=r"lack 1 tensors of .*, the first is model\.norm\.weight"):
        Attempt(CONFIG, base, tmp_path).run()
