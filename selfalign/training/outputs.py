"""What a training leaves behind: a model anyone can load, the adapter, the loss curve.

    merged/       config, weights (safetensors, in the base model's precision), the base model's
                  tokenizer byte for byte, chat template and the form it comes from, generation
                  config (which tokens end an answer)
    adapter/      adapter_config.json, adapter_model.safetensors (not after full fine-tuning)
    loss.jsonl    one line per step: step, loss, learning_rate, epoch

The bytes depend on the training's inputs alone: no times, no paths.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfalign.errors import DataError
from selfalign.records import canonical_json
from selfalign.serving.defaults import GENERATION_CONFIG, ending
from selfalign.serving.form import FORM_NAME, ChatForm
from selfalign.serving.template import TEMPLATE_NAME, chat_template
from selfalign.training.model import BaseModel, base_dtype

if TYPE_CHECKING:
    import torch

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_SHARD = "5GB"  # an object store takes this in a single piece
# Largest share of the logits' norm that merging may change: it rounds every weight once.
_FLOAT32_TOLERANCE = 1e-3
_HALF_TOLERANCE = 0.1
# What tokenizers are kept in, beside the vocabulary files that their class names.
_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def loss_curve(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Step, loss, learning rate and epoch of every step in the Trainer's log history."""
    return [
        {name: entry[name] for name in ("step", "loss", "learning_rate", "epoch")}
        for entry in history
        if "loss" in entry
    ]


def clear(output: Path) -> None:
    """Remove what an earlier attempt left."""
    for name in ("merged", "adapter"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "loss.jsonl").unlink(missing_ok=True)


def write_loss_curve(output: Path, curve: Sequence[dict[str, float]]) -> None:
    """Write loss.jsonl."""
    text = "".join(canonical_json(point) + "\n" for point in curve)
    (output / "loss.jsonl").write_text(text, encoding="utf-8")


def write_adapter(trained: Path, base: BaseModel, output: Path) -> Path:
    """Copy the adapter from the Trainer's directory, without what differs between machines."""
    adapter = output / "adapter"
    adapter.mkdir(parents=True)
    shutil.copyfile(trained / _ADAPTER_WEIGHTS, adapter / _ADAPTER_WEIGHTS)
    config = json.loads((trained / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.stable_name
    config["revision"] = base.revision
    if isinstance(config["target_modules"], list):  # a set in peft: its order is random
        config["target_modules"].sort()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (adapter / _ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    return adapter


def write_merged(
    base: BaseModel,
    tokenizer: Any,
    form: ChatForm,
    *,
    output: Path,
    trained: Path,
    adapter: Path | None,
    probe: list[int],
) -> Path:
    """Write the whole model: the adapter folded into the stored base, or the trained weights.

    The base is loaded afresh in its own precision: folding into one that was quantised or
    rounded for training would keep that damage.

    Args:
        probe: token ids on which the written model must agree with the base under the adapter.

    Raises DataError where the two differ by more than the precision explains.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = base_dtype(base)
    expected = None
    if adapter is None:
        config = base.config()
        model = AutoModelForCausalLM.from_pretrained(str(trained), config=config, dtype=dtype)
    else:
        from peft import PeftModel

        model = base.load_model(dtype=dtype)
        model = PeftModel.from_pretrained(model, str(adapter))
        expected = _logits(model, probe)
        model = model.merge_and_unload(safe_merge=True)
    model.generation_config = GenerationConfig()
    merged = output / "merged"
    model.save_pretrained(str(merged), max_shard_size=_SHARD)
    del model  # two whole models may not fit into memory
    if expected is not None:
        written = AutoModelForCausalLM.from_pretrained(str(merged), dtype=dtype)
        _check_merged(expected, _logits(written, probe), dtype)
    for file in merged.iterdir():
        file.chmod(0o644)  # weights come out as 0600: useless to another user of the volume
    _copy_from_base(base, tokenizer, merged)
    _write_generation_config(base, tokenizer, merged)
    (merged / FORM_NAME).write_bytes(form.to_bytes())
    (merged / TEMPLATE_NAME).write_text(chat_template(form), encoding="utf-8")
    return merged


def _write_generation_config(base: BaseModel, tokenizer: Any, merged: Path) -> None:
    """Which tokens end an answer: the one that is taught, and those of the base model.

    Nothing of how the base model's author samples: how this model is sampled is said where it is
    promoted, by what it was evaluated with.
    """
    own = _find_in_base(base, GENERATION_CONFIG)
    stated: Any = json.loads(own.read_text(encoding="utf-8")) if own else {}
    ends = stated.get("eos_token_id")
    ends = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    data = ending(ids, [end for end in ends if end is not None])
    (merged / GENERATION_CONFIG).write_bytes(data)


def _logits(model: Any, probe: list[int]) -> torch.Tensor:
    """Next-token logits in float32; (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([probe])).logits[0].float()
    return logits


def _check_merged(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> None:
    import torch

    tolerance = _FLOAT32_TOLERANCE if dtype == torch.float32 else _HALF_TOLERANCE
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= tolerance:  # also for NaN
        raise DataError(
            f"the merged model differs from the base model under the adapter: its logits by "
            f"{difference:.2g} of their norm, expected at most {tolerance} in {dtype}",
            remedy="the base model shares weights that the adapter changes; choose other "
            "lora.target_modules",
        )


def _copy_from_base(base: BaseModel, tokenizer: Any, merged: Path) -> None:
    for name in sorted({*_COPIED, *tokenizer.vocab_files_names.values()}):
        found = _find_in_base(base, name)
        if found is not None:
            shutil.copyfile(found, merged / name)


def _find_in_base(base: BaseModel, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    found = cached_file(
        base.path,
        name,
        revision=base.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
