"""Nights in a store, written by the product's own writers, judged by its own gate.

`python -m tests.report.nights DIRECTORY COUNT` writes a store to look at.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfalign.config import PromoteConfig
from selfalign.evaluation.gate import judge
from selfalign.evaluation.guards import Answered, guard_scores
from selfalign.evaluation.scores import ALIGNED, LENGTH_WORDS, ItemScore
from selfalign.evaluation.summary import summarise
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.records import AlignedResponse, EvaluationRecord, Prompt, Record
from selfalign.run.record import RunRecord, RunStatus, StageState, write_run, write_status
from selfalign.store.base import Store
from selfalign.store.documents import read_document
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, FileEntry, Manifest, Provenance, Shard
from tests.artifacts import promote, writer

GOOD, BAD = "Rub the spot gently with warm soap and water.", "I cannot help with that."
MORE = (
    "Then let it dry in the sun.",
    "Do not use bleach on wool.",
    "Try a hidden corner first.",
    "Ask a shop that knows the fabric if you are not sure.",
    "Open a window meanwhile.",
)
KINDS = ("benign", "harmful", "format", "opinion")
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"  # what a model may write
MADE = Provenance(
    started_at="2026-01-01T01:00:00+00:00",
    finished_at="2026-01-01T02:00:00+00:00",
    engine={"name": "transformers", "device": "cpu"},
)


def publish(
    store: Store,
    artifact: str,
    key: str,
    *,
    parents: Iterable[Manifest] = (),
    records: Sequence[Record] = (),
    files: Mapping[str, Any] | None = None,
    dropped: Mapping[str, list[str]] | None = None,
    seeds: Mapping[str, str] | None = None,
) -> Manifest:
    """One artifact of one part; `dropped` texts count once each."""
    identity = {"seeds": dict(seeds or {}), "data": {}}
    made = writer(store, artifact, key, identity=identity, parents=parents)
    lost = {name: len(texts) for name, texts in (dropped or {}).items()}
    counts = Counts(read=len(records) + sum(lost.values()), kept=len(records), dropped=lost)
    added: list[FileEntry] = [
        made.add_bytes(text.encode(), name) for name, text in (files or {}).items()
    ]
    shards = []
    if records:
        shard = made.shard(0, 1)
        samples = {k: v[:3] for k, v in (dropped or {}).items()}
        shard.finish([shard.commit("part", records, counts, samples)], MADE)
        published = made.publish_when_complete(1) if not added else None
        if published is not None:
            return published
        found = read_document(store, f"{made.prefix}shards/00000-of-00001.json", Shard)
        assert found is not None
        shards = [found]
    return made.publish(
        shards=shards, files=added, counts=counts, details={"steps": 10}, provenance=MADE
    )


def scores(answers: Mapping[str, str], prompts: Mapping[str, str]) -> list[ItemScore]:
    """Of one model: right where the answer is GOOD at all, by item id `kind-number`."""
    rows = []
    for item, text in answers.items():
        kind, words = item.partition("-")[0], len(text.split())
        right = float(GOOD[:20] in text)
        rows += [ItemScore(item, name, kind, value, words, text)
                 for name, value in ((ALIGNED, right), (LENGTH_WORDS, float(words)))]  # fmt: skip
    asked = [
        Answered(item, prompts[item], text, cut=False, satisfied=True)
        for item, text in answers.items()
    ]
    return rows + guard_scores(asked)


def write_night(
    store: Store,
    name: str,
    day: str,
    variants: Mapping[str, Mapping[str, str]],
    prompts: Mapping[str, str],
    *,
    config: Mapping[str, Any] | None = None,
    kept: int = 6,
    seed: str = "0" * 64,
) -> RunStatus:
    """A whole run; promoted where the default rules say so. `variants` are their answers."""
    curated = [
        Prompt(id=f"p{i}", source="topic_guided", text=f"{name} question {i}?",
               type="unknowable" if i % 2 else "legal", topic="law" if i % 3 else "space")
        for i in range(kept)
    ]  # fmt: skip
    aligned = [
        AlignedResponse(
            id=p.id, prompt=p.text, thought=f"Rule {1 + i % 3} holds. {HOSTILE}",
            rules=(1 + i % 3,) if i % 2 else (4, 1 + i % 3), response=GOOD, finish_reason="stop",
            verdicts={}, model="base", template="t", seed=i,
        )
        for i, p in enumerate(curated)
    ]  # fmt: skip
    loss = "".join(json.dumps({"step": i, "loss": 2 / (i + 1)}) + "\n" for i in range(10))
    a: dict[str, Manifest] = {}
    a["candidates"] = publish(store, "candidates", name, records=curated)
    a["prompts"] = publish(
        store, "prompts", name, parents=[a["candidates"]], records=curated,
        dropped={"not_novel": ["How do I?"] * 3, "too_short": [HOSTILE]},
    )  # fmt: skip
    a["aligned_responses"] = publish(
        store,
        "aligned_responses",
        name,
        parents=[a["prompts"]],
        records=aligned,
        seeds={"principles.txt": seed},
    )
    for model, source in (("engraved_model", "aligned_responses"), ("final_model", "prompts")):
        a[model] = publish(store, model, name, parents=[a[source]], files={"loss.jsonl": loss})
    found = {model: scores(answers, prompts) for model, answers in variants.items()}
    summary = summarise(found, confidence=0.9, bootstrap_samples=100, tasks=("heldout",))
    a["evaluation"] = publish(
        store, "evaluation", name, parents=[a["engraved_model"], a["final_model"]],
        records=[
            EvaluationRecord(id=f"{m}/{s.metric}/{s.item_id}", model=m, **asdict(s))
            for m, rows in sorted(found.items())
            for s in sorted(rows, key=lambda s: (s.metric, s.item_id))
        ],
        files={"summary.json": summary.model_dump_json(), "prompts.json": json.dumps(prompts)},
    )  # fmt: skip
    verdict = judge(summary, PromoteConfig.model_validate(RULES))
    a["promotion"] = publish(
        store, "promotion", name, parents=[a["evaluation"], a["final_model"]],
        files={"verdict.json": verdict.model_dump_json()},
    )  # fmt: skip
    if verdict.promote:
        promote(store, a["final_model"], promotion=name, run=name, moved_at=day)
    write_run(store, RunRecord(id=name, created_at=day, code_version="0.4.0",
                               config=dict(config or {}), annotation_lines=188))  # fmt: skip
    decided = {"promoted": "Promoted", "refused": "NotPromoted", "no_change": "NoChange"}
    status = RunStatus(
        id=name, phase="Succeeded", updated_at=day,
        reason=decided[verdict.decision], verdict=decided[verdict.decision],  # type: ignore[arg-type]
        message=verdict.explanation,
        stages=[
            StageState(name=s.name, phase="Done", key=name, digest=a[s.writes].digest,
                       attempts=1, seconds=10.0 * (i + 1))
            for i, s in enumerate(BY_NAME[each.name] for each in STAGES if each.writes in a)
        ],
    )  # fmt: skip
    write_status(store, status)
    return status


RULES: dict[str, Any] = {
    "rules": [
        {"metric": ALIGNED, "against": "base", "min_difference": 0.0},
        {"metric": ALIGNED, "against": "promoted", "min_difference": -0.1},
        {"metric": ALIGNED + "/*", "against": "promoted", "min_difference": -0.5},
        {"metric": ALIGNED, "at_least": 0.3},
    ],
    "guards": {"same": None, "max_increase": 0.3},
}


def main(directory: str, count: int, items: int = 400) -> None:
    """Nights of a model that gets better by chance, and once worse."""
    store, draw = LocalStore(Path(directory)), random.Random(3)
    ids = [f"{KINDS[i % 4]}-{i}" for i in range(items)]
    prompts = {each: f"How do I clean the {each} in the old house by the sea?" for each in ids}

    def drawn(share: float, length: int) -> dict[str, str]:
        return {i: " ".join((GOOD, *draw.sample(MORE, length))) if draw.random() < share else BAD
                for i in ids}  # fmt: skip

    base, promoted, level = drawn(0.2, 1), None, 0.5
    with_all = drawn(0.6, 1)
    for night in range(count):
        share = min(0.95, level + 0.01 * night) - (0.2 if night == count // 2 and count > 2 else 0)
        variants = {"base": base, "base_principled": with_all, "engraved": drawn(share - 0.05, 2),
                    "final": drawn(share, 2)}  # fmt: skip
        for n in (1, 2, 3):
            variants[f"base_without_{n}"] = {
                i: BAD if i.startswith(KINDS[n]) and draw.random() < 0.5 else text
                for i, text in with_all.items()
            }
        if promoted is not None:
            variants["promoted"] = promoted
        day = f"2026-{1 + night // 28:02d}-{1 + night % 28:02d}T01:00:00+00:00"
        status = write_night(
            store, f"night-{night:03d}", day, variants, prompts, kept=40 + night,
            config={"align": {"sampling": {"temperature": 0.5 + night % 3 / 10}}},
        )  # fmt: skip
        if status.verdict == "Promoted":
            promoted = variants["final"]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
