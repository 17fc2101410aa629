"""Find a model's directory and check its files before an engine spends minutes loading them.

Every problem is a DataError that names the file and what to do about it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from selfalign.errors import DataError, EngineError

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
OPTIONAL_JSON = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate_model(model: Path | str, revision: str | None, *, weights: bool = True) -> Path:
    """The checked local directory of a model.

    A Path, or a text without a revision, is a local directory and nothing else. A text with a
    revision is the directory of that name if there is one, else a hub id, found in the local
    cache or downloaded (never downloaded under HF_HUB_OFFLINE). Without `weights`, neither are
    weights downloaded nor looked at.

    Raises:
        DataError: the directory or one of its files is missing or broken, or the hub does not
            have it.
        EngineError: the hub cannot be reached.
    """
    directory = Path(model)
    if not directory.is_dir():
        if isinstance(model, Path) or revision is None:
            raise DataError(
                f"{model}: no such model directory",
                remedy="correct the path; for a hub id, name its commit as the revision",
            )
        directory = _from_hub(model, revision, weights=weights)
    check_model_directory(directory, weights=weights)
    return directory


def check_model_directory(directory: Path, *, weights: bool = True) -> None:
    """Check configuration, tokenizer and, where wanted, weights of a causal language model."""
    _check_architecture(directory / "config.json")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(
            f"{directory}: no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}",
            remedy="save the tokenizer beside the model (tokenizer.save_pretrained)",
        )
    for name in OPTIONAL_JSON:
        if (directory / name).is_file():
            _read_json(directory / name)
    for path in _weight_files(directory) if weights else ():
        _check_safetensors(path)


def _check_architecture(path: Path) -> None:
    config = _read_json(path)
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise _damaged(path, f"architectures is {names!r}, expected a list")
    causal = not names or any(str(name).endswith(CAUSAL_ENDINGS) for name in names)
    if config.get("is_encoder_decoder") or not causal:
        raise DataError(
            f"{path}: {', '.join(map(str, names)) or 'an encoder-decoder'} is no causal language "
            f"model, expected an architecture that ends with {' or '.join(CAUSAL_ENDINGS)}",
            remedy="choose a model that continues text, such as a Llama, Mistral or Qwen base",
        )


def _weight_files(directory: Path) -> list[Path]:
    """Every file of weights, all of them present."""
    index = directory / f"{WEIGHTS}.index.json"
    pickles = sorted(directory.glob("*.bin"))
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not index.is_file() and pickles:
        raise DataError(
            f"{pickles[0]}: pickled weights can run code when they are loaded, expected {WEIGHTS}",
            remedy="load the model with transformers where you trust it, and save it with "
            "save_pretrained",
        )
    if not index.is_file():  # a hub's pickles are not downloaded
        raise DataError(
            f"{directory}: no weights, expected {WEIGHTS} or its index",
            remedy="copy the model's directory again, whole; where its author gives pickled "
            "weights (*.bin) alone, load them where you trust them, and save them with "
            "save_pretrained",
        )
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise _damaged(index, "no weight_map that names the shards")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if PurePath(name).name != name or not name.endswith(".safetensors"):
            raise _damaged(
                index, f"weight_map names {name!r}, expected a .safetensors file beside it"
            )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise _damaged(
            index,
            f"{len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}",
        )
    return [directory / name for name in names]


def _check_safetensors(path: Path) -> None:
    """The library compares the header with the file's length; no weights are read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            num_tensors = len(file.keys())
    except (SafetensorError, OSError) as e:
        size = path.stat().st_size
        raise _damaged(path, f"damaged or truncated at {size} bytes: {e}") from e
    if num_tensors == 0:
        raise _damaged(path, "holds no tensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise _damaged(path, f"cannot be read as JSON: {e}") from e
    if not isinstance(value, dict):
        raise _damaged(path, f"expected a JSON object, got {type(value).__name__}")
    return value


def _damaged(path: Path, problem: str) -> DataError:
    remedy = "copy the model's directory again, whole"
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        remedy = "this is a Git LFS pointer: run `git lfs pull` where the model was cloned"
    if start.startswith(b"<"):
        remedy = "this is a web page: download the model's file itself"
    return DataError(f"{path}: {problem}", remedy=remedy)


def _from_hub(name: str, revision: str, *, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"hub model {name} at revision {revision}"
    patterns = [each for each in HUB_PATTERNS if weights or "safetensors" not in each]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as e:
        raise DataError(
            f"{what}: not found, or access is not granted",
            remedy="correct the id and revision, or set HF_TOKEN to a token that may read it",
        ) from e
    except LocalEntryNotFoundError as e:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise DataError(
                f"{what}: not in the local cache, and HF_HUB_OFFLINE forbids downloading",
                remedy="download it beforehand, name a local directory, or unset HF_HUB_OFFLINE",
            ) from e
        raise EngineError(
            f"{what}: the hub cannot be reached, nothing is cached",
            remedy="check the network; without one, name a local directory",
        ) from e
    except (HfHubHTTPError, OSError) as e:
        raise EngineError(f"{what}: downloading failed: {type(e).__name__}") from e
