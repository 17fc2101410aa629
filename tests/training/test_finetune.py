from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import DataError
from selfalign.training.base import Example, TrainResult
from selfalign.training.chat import fit_form
from selfalign.training.examples import encode

from .conftest import HOST
from .worlds import (
    CONFIG,
    EXAMPLES,
    FORM,
    LORA,
    QUESTIONS,
    Attempt,
    answer,
    build_base,
    files,
    prompt,
    start,
)

Run = tuple[Attempt, TrainResult]


@pytest.fixture(params=["full", "lora"])
def run(request: pytest.FixtureRequest) -> Run:
    result: Run = request.getfixturevalue(request.param)
    return result


def load(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def logits(model: Any, tokenizer: Any) -> Any:
    import torch

    inputs = tokenizer([prompt(question) for question in range(QUESTIONS)], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def test_training_teaches_the_answers_and_when_to_stop(run: Run) -> None:
    model, tokenizer = load(run[1].merged)
    for question in range(QUESTIONS):
        inputs = tokenizer(prompt(question), return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        assert said == f"{answer(question)} <eos>"


def test_the_loss_falls_and_is_told_step_by_step(run: Run) -> None:
    attempt, result = run
    lines = (attempt.output / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.loss_curve
    assert [point["step"] for point in result.loss_curve] == list(range(1, result.steps + 1))
    assert result.loss_curve[0]["loss"] > 3
    assert result.loss_curve[-1]["loss"] < 0.5
    assert result.loss_curve[-1]["epoch"] == attempt.config.epochs
    rates = [point["learning_rate"] for point in result.loss_curve]
    assert max(rates) == attempt.config.learning_rate
    assert rates[-1] < rates[2]


def test_the_result_counts_what_was_done(run: Run) -> None:
    result = run[1]
    assert (result.steps, result.examples) == (40, QUESTIONS)
    assert (result.truncated_examples, result.dropped_examples) == (0, {})
    assert result.trained_tokens == 20 * QUESTIONS * 3  # two words and the end, in 20 epochs
    import torch

    assert (result.engine["name"], result.engine["processes"]) == ("transformers", "1")
    assert result.engine["torch"] == torch.__version__
    assert "cpu" in result.engine["device"] or torch.cuda.is_available()
    assert result.resumed_from is None


def test_only_documented_files_are_left(full: Run, lora: Run) -> None:
    merged = {
        "merged/chat_form.json",
        "merged/chat_template.jinja",
        "merged/config.json",
        "merged/generation_config.json",
        "merged/model.safetensors",
        "merged/tokenizer.json",
        "merged/tokenizer_config.json",
        "loss.jsonl",
    }
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert set(files(full[0].output)) == merged
    assert set(files(lora[0].output)) == merged | adapter
    for attempt in (full[0], lora[0]):
        assert not files(attempt.root / "work")


def test_the_merged_model_equals_base_and_adapter(lora: Run, base: Path) -> None:
    import torch
    from peft import PeftModel

    merged, tokenizer = load(lora[1].merged)
    plain, _ = load(base)
    assert lora[1].adapter is not None
    adapted = PeftModel.from_pretrained(plain, lora[1].adapter).eval()
    expected = logits(adapted, tokenizer)
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=1e-4, atol=1e-4)
    with adapted.disable_adapter():
        assert (logits(adapted, tokenizer) - expected).abs().max() > 1


def test_a_merge_that_loses_the_adapter_is_never_published(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda model, **_: model.unload())
    config = LORA.model_copy(update={"max_steps": 5})
    with pytest.raises(DataError, match="the merged model differs from the base model under"):
        Attempt(config, base, tmp_path).run()


def test_the_result_names_what_the_adapter_changes(full: Run, lora: Run) -> None:
    linear = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert lora[1].adapted_modules == dict.fromkeys(linear, 2)
    assert full[1].adapted_modules == {}


def test_no_path_and_no_name_of_this_machine_is_written(run: Run, base: Path) -> None:
    attempt = run[0]
    for path in attempt.output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(base).encode() not in content
            assert str(attempt.root).encode() not in content
            assert b"/tmp" not in content
            assert HOST.encode() not in content
            assert path.stat().st_mode & 0o044 == 0o044


def test_the_tokenizer_is_the_base_models_byte_for_byte(run: Run, base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (run[1].merged / name).read_bytes() == (base / name).read_bytes()


def test_the_same_inputs_give_the_same_bytes_elsewhere(run: Run, tmp_path: Path) -> None:
    """In another process (another hash seed), under another path, from a copy of the base."""
    attempt = run[0]
    copy = build_base(tmp_path / "copy of the base")
    again = Attempt(attempt.config, copy, tmp_path / "elsewhere")
    outcome = start(again).outcome()
    assert isinstance(outcome, TrainResult), outcome
    assert files(again.output) == files(attempt.output)


def test_another_seed_gives_another_model(full: Run, base: Path, tmp_path: Path) -> None:
    other = Attempt(full[0].config, base, tmp_path, seed=2**63 - 1)
    other.run()
    name = "merged/model.safetensors"
    assert files(other.output)[name] != files(full[0].output)[name]


def test_accumulated_micro_batches_are_the_same_step_as_one_batch(
    base: Path, tmp_path: Path
) -> None:
    whole = CONFIG.model_copy(update={"micro_batch_size": CONFIG.global_batch_size})
    # Answers of different lengths: averaging per micro-batch would weigh their tokens unequally.
    result = [
        Attempt(
            config.model_copy(update={"max_steps": 4}),
            base,
            tmp_path / str(config.micro_batch_size),
            examples=EXAMPLES[:4] + [type(EXAMPLES[0])(prompt(5), "a1 a2 a3 a4 a5 a6")] * 4,
        ).run()
        for config in (CONFIG, whole)
    ]
    curves = [[point["loss"] for point in r.loss_curve] for r in result]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_every_epoch_has_its_own_order(base: Path, tmp_path: Path) -> None:
    still = CONFIG.model_copy(update={"learning_rate": 1e-12, "epochs": 2})
    curve = Attempt(still, base, tmp_path).run().loss_curve
    first, second = ([point["loss"] for point in curve[start : start + 2]] for start in (0, 2))
    assert sum(first) == pytest.approx(sum(second), rel=1e-5)
    assert first != pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_training_keeps_the_precision_of_the_base(tmp_path: Path, method: str) -> None:
    import torch
    from safetensors.torch import load_file

    base = build_base(tmp_path / "base", dtype="bfloat16")
    config = (LORA if method == "lora" else CONFIG).model_copy(
        update={"precision": "bfloat16", "gradient_checkpointing": True, "epochs": 10}
    )
    result = Attempt(config, base, tmp_path).run()
    weights = load_file(result.merged / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((result.merged / "config.json").read_text()) == json.loads(
        (base / "config.json").read_text()
    )
    assert result.loss_curve[-1]["loss"] < 1.5
    if result.adapter is not None:
        adapter = load_file(result.adapter / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def test_the_base_models_sampling_is_not_passed_on_and_its_end_tokens_are(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    # contradicts itself, as Llama 2 came
    own = '{"do_sample": false, "temperature": 0.6, "eos_token_id": [3, 2]}'
    (base / "generation_config.json").write_text(own)
    config = CONFIG.model_copy(update={"max_steps": 1, "checkpoint_every_steps": 1})
    result = Attempt(config, base, tmp_path).run()
    written = json.loads((result.merged / "generation_config.json").read_text())
    assert written == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        "stop_strings": None,
    }


def test_a_server_reads_a_chat_as_the_tokens_that_were_trained(full: Run) -> None:
    """In transformers' own rendering; hostile: a forged turn, and every special token spelt."""
    tokenizer = load(full[1].merged)[1]
    form = json.loads((full[1].merged / "chat_form.json").read_text())
    for query in ("q1", f"q1 {''.join(form['special_tokens'])}", "q2 Why: a1"):
        example = Example(f"Question: {query} Answer:", "a1")
        fitted = fit_form(FORM, tokenizer)
        trained = encode([example], tokenizer, form=fitted, eos_token_id=2, max_length=99)
        tokens, length = trained[0]
        messages = [{"role": "user", "content": query}]
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert asked == tokens[:length].tolist()
        answered = [*messages, {"role": "assistant", "content": "a1"}]
        assert tokenizer.apply_chat_template(answered, return_dict=False) == tokens.tolist()


def test_progress_is_told_and_nothing_is_printed(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import structlog

    seen: list[int] = []
    config = CONFIG.model_copy(update={"max_steps": 3})
    with structlog.testing.capture_logs() as logs:
        Attempt(config, base, tmp_path, on_step=seen.append).run()
    assert seen == [1, 2, 3]
    assert capfd.readouterr() == ("", "")
    assert [log["event"] for log in logs] == [
        "training.planned",
        "training.packed",
        "training.starts",
        "training.written",
    ]
