"""Builds the toy world: corpus, tokenizer, base model and evaluation data, once.

Reads seeds/; writes OUT/base_model, OUT/evaluation/*.jsonl and OUT/toy_world.json, which names
the digest of all that they were made from. Whatever is half made lies under a temporary name.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from .corpus import CorpusWriter
from .heldout import write_evaluation
from .pretrain import PretrainConfig, pretrain
from .templates import EVALUATION_TEMPLATES, HERE, SEEDS, Seeds
from .tokenizer import train_tokenizer
from .world import World

# What the world is made by. The rest (check, demo, this file) only looks at it.
MODULES = (
    "corpus",
    "entities",
    "forward",
    "heldout",
    "muon",
    "phrasing",
    "pretrain",
    "templates",
    "tokenizer",
    "world",
)
VOCABULARY_DOCUMENTS = 6_000  # enough for every word of the world to turn up
VOCABULARY_SEED = 1_000_003  # a corpus stream that no pretraining seed uses


def build(out: Path, config: PretrainConfig) -> dict[str, Any]:
    """Make the world, or find it made: the summary, with `reused` telling which."""
    digest = inputs_digest(config)
    record = out / "toy_world.json"
    if record.exists():
        summary: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        complete = (out / "base_model").is_dir() and (out / "evaluation").is_dir()
        if summary["digest"] == digest and complete:
            return {**summary, "reused": True}
    out.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # from here on, and until the end, nothing counts as made
    for stale in out.glob(".making-*"):
        shutil.rmtree(stale)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=out))
    try:
        summary = _make(making, config, digest)
        for name in ("base_model", "evaluation"):
            shutil.rmtree(out / name, ignore_errors=True)
            (making / name).rename(out / name)
        (making / record.name).rename(record)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return {**summary, "reused": False}


def inputs_digest(config: PretrainConfig) -> str:
    """SHA-256 of the configuration, the seeds and the code that turns them into a world."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    modules = (HERE / f"{name}.py" for name in MODULES)
    files = [*modules, *_files(SEEDS), *_files(EVALUATION_TEMPLATES)]
    for path in sorted(files):
        digest.update(f"{path.relative_to(HERE).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def _make(directory: Path, config: PretrainConfig, digest: str) -> dict[str, Any]:
    seeds = Seeds.load()
    world = World.build(seeds.text)
    sample = islice(CorpusWriter(world, seeds, VOCABULARY_SEED).documents(), VOCABULARY_DOCUMENTS)
    texts = ("".join(segment.text for segment in document) for document in sample)
    tokenizer = train_tokenizer(texts, list(seeds.labels.values()))
    write_evaluation(world, directory / "evaluation")
    found = pretrain(world, seeds, tokenizer, config, directory / "base_model")
    summary = {
        "digest": digest,
        "vocabulary_size": len(tokenizer),
        "pretrain_config": asdict(config),
        **asdict(found),
    }
    (directory / "toy_world.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return summary
