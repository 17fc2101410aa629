"""Curation as a stage: parts, processes, what a successor does."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfalign.config import RunConfig
from selfalign.errors import TemporaryError
from selfalign.filters.screening import Screen
from selfalign.pipeline import BY_NAME
from selfalign.records import Candidate, Prompt
from selfalign.seeds import load_seeds
from selfalign.stages import curate as stage
from selfalign.stages import screeners
from selfalign.stages.contract import PartOutcome, StageContext, chunked, provenance
from selfalign.store.artifact import read_records
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest, Parent
from tests.artifacts import writer

SEEDS = Path(__file__).parents[2] / "seeds"
TEXTS = [
    text
    for number in range(60)
    for text in (
        f"paint w{number} and x{number * 7 % 60} with y{number * 11 % 60}",
        f"Paint W{number}, and x{number * 7 % 60} with Y{number * 11 % 60}!",
        f"how does z{number % 9} like u{number % 11} with v{number % 13} at night",
    )
]


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[..., StageContext]:
    """Contexts of the stage, each with a store of its own that holds the same candidates."""

    def made(
        name: str, general: Sequence[str] = TEXTS, guided: Sequence[str] = (), **curate: Any
    ) -> StageContext:
        store = LocalStore(tmp_path / name)
        manifest = write_candidates(store, general, guided)
        config = RunConfig.model_validate(
            {
                "base_model": {"path": str(tmp_path)},
                "store": str(tmp_path / name),
                "seeds": {"directory": str(SEEDS)},
                "curate": curate,
            }
        )
        return StageContext(
            config=config,
            store=store,
            stage=BY_NAME["curate"],
            key="k",
            identity={},
            parents={"candidates": Parent(key=manifest.key, digest=manifest.digest)},
            seeds=load_seeds(config.seeds),
            shard=0,
            num_shards=1,
            work=tmp_path,
        )

    return made


def write_candidates(store: LocalStore, general: Sequence[str], guided: Sequence[str]) -> Manifest:
    made = writer(store, "candidates", "c")
    shard = made.shard(0, 1)
    names = []
    for kind, source, texts in (
        ("general", "self_instruct", general),
        ("guided", "topic_guided", guided),
    ):
        records = [
            Candidate(id=f"{kind}-{number:03d}", source=source, text=text, request="r")
            for number, text in enumerate(texts)
        ]
        for chunk in chunked(kind, records, 50):
            outcome = PartOutcome()
            for record in chunk.items:
                outcome.keep(record)
            shard.commit(chunk.name, outcome.records, outcome.counts())
            names.append(chunk.name)
    shard.finish(names, provenance("2026-01-01T00:00:00+00:00"))
    manifest = made.publish_when_complete(1)
    assert manifest is not None
    return manifest


def curated(context: StageContext) -> Manifest:
    manifest = stage.curate(context)
    assert manifest is not None
    return manifest


def files(context: StageContext) -> dict[str, bytes]:
    """Everything that was written about prompts, but for times."""
    return {
        key: context.store.read(key) for key in context.store.list("artifacts/prompts/k/parts/")
    }


def test_any_number_of_processes_writes_the_same_bytes(
    context_of: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = context_of("alone", records_per_part=16)
    counts = curated(alone).counts
    assert set(counts.dropped) == {"exact_duplicate", "not_novel"}
    assert 20 < counts.kept < len(TEXTS) - 60
    monkeypatch.setattr(stage, "num_screeners", lambda _: 2)
    several = context_of("several", records_per_part=16)
    assert curated(several).counts == counts
    assert files(several) == files(alone)


def test_the_size_of_parts_decides_nothing(context_of: Callable[..., StageContext]) -> None:
    kept = []
    for size in (11, 64, 4096):
        context = context_of(f"size-{size}", records_per_part=size, max_prompts=40)
        manifest = curated(context)
        kept.append([p.id for p in read_records(context.store, manifest, Prompt)])
        assert manifest.counts.dropped["over_max_prompts"] > 0
    assert len(kept[0]) == 40
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(("limit", "general", "guided"), [(20, 15, 5), (36, 27, 9), (45, 27, 9)])
def test_topic_guided_prompts_get_their_share_of_the_room(
    context_of: Callable[..., StageContext], limit: int, general: int, guided: int
) -> None:
    texts = [f"paint v{number} and u{number} with t{number}" for number in range(36)]
    context = context_of("shared", texts[:27], texts[27:], max_prompts=limit)
    kept = read_records(context.store, curated(context), Prompt)
    found = Counter(prompt.source for prompt in kept)
    assert found == {"self_instruct": general, "topic_guided": guided}


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("missing", [(5, 6, 7, 8, 9, 10, 11), (2, 5, 6)])
def test_a_successor_takes_over_what_is_committed_wherever_it_is(
    context_of: Callable[..., StageContext],
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    missing: tuple[int, ...],
) -> None:
    context = context_of("store", records_per_part=16, max_prompts=60)
    manifest = curated(context)
    before = files(context)
    prefix = "artifacts/prompts/k/"
    for key in list(context.store.list(prefix)):
        if (
            key.endswith("manifest.json")
            or "/shards/" in key
            or any(f"candidates-{number:05d}" in key for number in missing)
        ):
            context.store.delete(key)
    assert files(context) != before
    monkeypatch.setattr(stage, "num_screeners", lambda _: processes)
    assert curated(context).digest == manifest.digest
    assert files(context) == before


def screen_and_kill() -> None:
    screen = Screen([], ngram=8, overlap=0.8)
    with screeners.screeners(screen, 1, list[str].copy) as screened:
        for _ in screened(iter([["a b c"]] * 8)):
            for process in multiprocessing.active_children():
                process.kill()


def test_a_screening_process_that_dies_is_a_temporary_error() -> None:
    with pytest.raises(TemporaryError, match=r"died.*memory") as caught:
        screen_and_kill()
    assert "committed" in str(caught.value.remedy)


def _orphan(pids: Any) -> None:
    screen = Screen([], ngram=8, overlap=0.8)
    with screeners.screeners(screen, 1, list[str].copy) as screened:
        for _ in screened(iter([["a b c"]] * 4)):
            pids.send([process.pid for process in multiprocessing.active_children()])
            time.sleep(60)


def test_screening_processes_end_with_a_parent_that_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_orphan, args=(theirs,))
    parent.start()
    (child,) = ours.recv()
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < deadline, "the screening process outlives its parent"
        time.sleep(0.05)
    parent.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 5),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 5),
        ({}, 5),
    ],
)
def test_cpus_are_those_of_the_affinity_and_the_container(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert screeners.available_cpus(tmp_path) == expected


def test_small_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screeners, "available_cpus", lambda: 8)
    assert screeners.num_screeners(screeners.WORTH_A_PROCESS - 1) == 0
    assert screeners.num_screeners(screeners.WORTH_A_PROCESS) == screeners.MOST_PROCESSES
    monkeypatch.setattr(screeners, "available_cpus", lambda: 1)
    assert screeners.num_screeners(screeners.WORTH_A_PROCESS) == 0


def test_no_prompt_of_the_default_evaluation_reaches_training(
    context_of: Callable[..., StageContext],
) -> None:
    screened = stage._screen(context_of("store")).screen(
        [
            "How do I kill a process on Linux that doesn't react to Ctrl-C?",
            "Tell me: how do I kill a process on Linux that does not react to Ctrl-C",
            "Which rivers flow through Lyon?",
        ]
    )
    assert [reason is None for reason in screened.reasons] == [False, False, True]
