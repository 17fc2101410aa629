"""A bad row is set aside, counted and named: sixty hostile rows through every generating stage."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from selfalign.cli.main import cli
from selfalign.config import RunConfig
from selfalign.errors import DataError
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.identity import collect_inputs
from selfalign.records import Json
from selfalign.report.tables import funnel, quarantined
from selfalign.run.plan import Planned, plan_from_store
from selfalign.run.stage import run_stage
from selfalign.stages.instruct import TopicRound
from selfalign.stages.scoring import heldout_task
from selfalign.stages.variants import variants
from selfalign.store.artifact import read_file_as, read_rows
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest
from tests.engines.served import ModelServer, serving
from tests.hostile import HOSTILE, REASONS
from tests.stages.planting import BAD, EXPECTED, GOOD, Escaped, config_of, plant, rows


def generate(
    config: RunConfig, base_model: Path, *, poisoned: bool, served: ModelServer | None = None
) -> dict[str, Manifest]:
    """Every stage that generates from prompts, around trained models that are the base itself."""
    store = LocalStore(Path(config.store))
    plant(config, "candidates")
    plant(config, "prompts", rows(poisoned=poisoned))
    found = {}
    for stage, model in (
        ("align", "engraved_model"),
        ("elaborate", "final_model"),
        ("evaluate", None),
    ):
        manifest = run_stage(stage, config, store)
        assert manifest is not None
        found[stage] = manifest
        if model is not None:
            plant(config, model, model=base_model)
            if served is not None:
                serve_trained(served, config)
    return found


def good_rows(config: RunConfig, manifest: Manifest) -> dict[str, Json]:
    """By id, those that come from a good prompt or held-out item."""
    rows = read_rows(LocalStore(Path(config.store)), manifest)
    return {row["id"]: row for row in rows if row.get("item_id", row["id"]) in GOOD}


def write_heldout(config: RunConfig, *, poisoned: bool) -> None:
    """The good and the hostile items that JSON can spell, as a person's file."""
    texts = dict(islice(GOOD.items(), 12))
    if poisoned:
        texts |= {row: HOSTILE[name] for row, name in BAD.items() if in_heldout(row)}
    config.evaluate.heldout.write_text(
        "".join(
            json.dumps({"id": row, "kind": "k", "prompt": text, "all_of": ["soap"]}) + "\n"
            for row, text in texts.items()
        )
    )


def in_heldout(row: str) -> bool:
    """Not those that the file's reader refuses with their line, nor the one that takes long."""
    text = HOSTILE[BAD[row]]
    return bool(text) and EXPECTED.get(row) != "not_unicode" and len(text) < 2**20 - 5


@pytest.fixture(scope="module")
def server(tiny_base_model: Path) -> Iterator[ModelServer]:
    with serving(tiny_base_model, 512) as found:
        yield found


def serve_trained(server: ModelServer, config: RunConfig) -> None:
    """The server serves what training made, each under its digest, as it must."""
    store = LocalStore(Path(config.store))
    for planned in plan_from_store(config, collect_inputs(config), store):
        if planned.manifest is not None and planned.stage.writes.endswith("_model"):
            server.rows.append(server.rows[0] | {"id": planned.manifest.digest[:32]})


@pytest.fixture(params=["fake", "openai"])
def engine(request: pytest.FixtureRequest) -> str:
    """Without a model, and with one: tests/engines/test_contract.py holds each engine to it."""
    return str(request.param)


@pytest.fixture
def served(engine: str, request: pytest.FixtureRequest) -> ModelServer | None:
    """The server that engine openai asks; None for the other."""
    found: ModelServer | None = request.getfixturevalue("server") if engine == "openai" else None
    return found


def test_sixty_hostile_rows_are_all_counted_and_change_no_other_row(
    engine: str, tmp_path: Path, tiny_base_model: Path, served: ModelServer | None
) -> None:
    found: dict[bool, dict[str, Manifest]] = {}
    configs: dict[bool, RunConfig] = {}
    for poisoned in (False, True):
        url = served.url if served else ""
        config = config_of(tmp_path / str(poisoned), tiny_base_model, engine, server=url)
        write_heldout(config, poisoned=poisoned)
        configs[poisoned] = config
        found[poisoned] = generate(config, tiny_base_model, poisoned=poisoned, served=served)
    for stage in ("align", "elaborate"):
        manifest = found[True][stage]
        counts = manifest.counts
        assert counts.read == len(GOOD) + len(BAD) == 120
        assert counts.kept + sum(counts.dropped.values()) + len(EXPECTED) == counts.read
        assert {row.id: row.reason for row in manifest.quarantined} == EXPECTED
        assert counts.quarantined == Counter(EXPECTED.values())
        written = [row["id"] for row in read_rows(LocalStore(Path(config.store)), manifest)]
        assert len(written) == len(set(written)) == counts.kept
        assert found[False][stage].counts.quarantined == {}
    evaluation = found[True]["evaluate"]
    expected = {row: reason for row, reason in EXPECTED.items() if in_heldout(row)}
    for variant in ("base", "base_principled", "engraved", "final"):
        assert {
            row.id.rpartition("/")[2]: row.reason
            for row in evaluation.quarantined
            if row.id.startswith(f"{variant}/heldout/")
        } == expected
    for stage in found[True]:
        clean, dirty = (good_rows(configs[p], found[p][stage]) for p in (False, True))
        assert dirty == clean
        # a random model's answers under the principles hold no thought, so align keeps none
        assert clean or (stage == "align" and engine != "fake")
    manifests = {m.artifact: m for m in found[True].values()}
    assert [row[:2] for row in quarantined(manifests)] == [
        ("align", len(EXPECTED)),
        ("elaborate", len(EXPECTED)),
        ("evaluate", 4 * len(expected)),
    ]
    assert ("quarantined: nul", 5, 5 / 120) in funnel(manifests)[0].dropped
    if engine == "fake":
        assert_shown(configs[True].store)


def test_sixty_hostile_topics_are_all_counted_and_change_no_other_request(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    kept: list[dict[str, Json]] = []
    for poisoned in (False, True):
        config = config_of(tmp_path / str(poisoned), tiny_base_model, "fake", *ONE_TYPE)
        topics, bad = plant_topics(config, poisoned=poisoned)
        manifest = run_stage("instruct", config, LocalStore(Path(config.store)))
        counts = manifest.counts
        assert counts.read == topics
        assert counts.kept + sum(counts.dropped.values()) + sum(bad.values()) == topics
        assert counts.quarantined == bad
        rows = read_rows(LocalStore(Path(config.store)), manifest)
        same = {f"good soap {number}" for number in range(1, topics, 2)}
        kept.append({row["id"]: row for row in rows if row["topic"] in same})
    assert kept[0] == kept[1]
    assert kept[0]


ONE_TYPE = (
    *("instruct.general_requests=0", "instruct.questions_per_request=1", "seeds.topic_guided=1"),
    *("instruct.max_quarantined=0.3", "instruct.question_sampling.max_new_tokens=8"),
)


def plant_topics(config: RunConfig, *, poisoned: bool) -> tuple[int, Counter[str]]:
    """Topics as rounds would have grown them, good and hostile in turn, of one question type.

    How many there are, and how many of them cannot be asked about, by reason. Those that UTF-8
    cannot hold are left out: a topic comes from a completion.
    """
    guided = config.seeds.directory / "topic_guided.jsonl"
    guided.write_text(guided.read_text().splitlines()[0] + "\n")
    question_type = json.loads(guided.read_text())["type"]
    hostile = {n: t for n, t in HOSTILE.items() if REASONS.get(n) != "not_unicode" and t.strip()}
    names = [f"good soap {number}" for number in range(2 * len(hostile))]
    if poisoned:
        names[::2] = hostile.values()
    store = LocalStore(Path(config.store))
    plan = plan_from_store(config, collect_inputs(config), store)
    assert isinstance(plan[0], Planned)
    round_0 = f"artifacts/candidates/{plan[0].key}/topics/round-00.json"
    store.write(round_0, TopicRound(topics={question_type: names}).to_bytes(round_0))
    bad = Counter(REASONS[name] for name in hostile if name in REASONS) if poisoned else Counter()
    return len(names), bad


def assert_shown(store: str) -> None:
    """What a person sees of rows set aside, and of rows that UTF-8 cannot hold."""
    command = ["show", "aligned_responses", "--store", store, "--dropped", "-n", "0"]
    shown = CliRunner().invoke(cli, command)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"quarantined: not_unicode +4 *\n", shown.output)
    assert "row-00000001: the prompt is empty or white space" in shown.output
    every = CliRunner().invoke(cli, ["show", "prompts", "--store", store, "--records"])
    assert every.exit_code == 0, every.output
    texts = {row["id"]: row["text"] for row in map(json.loads, every.stdout.split("\n")[:-1])}
    assert texts == {row.id: row.text for row in rows(poisoned=True)}


def test_what_may_be_set_aside_is_a_share_of_what_the_variant_is_asked(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    drawn = ("evaluate.samples=3", "evaluate.sampling.temperature=1")
    greedy = 'evaluate.principled_sampling={"temperature": 0}'
    config = config_of(tmp_path / "w", tiny_base_model, "fake", *drawn, greedy)
    write_heldout(config, poisoned=False)
    seeds: Any = None  # no prompt is rendered
    context: Any = SimpleNamespace(config=config, seeds=seeds, promoted=None, anchor=None)
    assert config.evaluate.heldout is not None
    task = heldout_task(context, config.evaluate.heldout)
    asked = [task.num_items * task.samples(each) for each in variants(context)]
    assert asked == [36, 12, 36, 36]


def test_multiple_choice_items_beyond_the_context_do_not_end_the_night(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    hhh = "evaluate.hhh=hhh.jsonl"
    config = config_of(tmp_path / "w", tiny_base_model, "fake", hhh, "evaluate.max_quarantined=0")
    assert config.evaluate.hhh is not None
    items = [
        {"id": f"i{n}", "category": "c", "query": f"q{n}", "chosen": "good", "rejected": "bad"}
        for n in range(10)
    ]
    for item in items[4:]:
        item["query"] = "word " * 900
    config.evaluate.hhh.write_text("".join(json.dumps(item) + "\n" for item in items))
    manifest = generate(config, tiny_base_model, poisoned=False)["evaluate"]
    assert manifest.counts.quarantined == {"too_long": 4 * 6}
    assert [row.id for row in manifest.quarantined] == [
        f"{variant}/hhh/i{n}"
        for variant in ("base", "base_principled", "engraved", "final")
        for n in range(4, 10)
    ]
    store = LocalStore(Path(config.store))
    summary = read_file_as(store, manifest, "summary.json", EvaluationSummary)
    assert {row.n for row in summary.metrics if row.metric == "hhh"} == {4}


def test_more_bad_rows_than_allowed_end_the_stage_and_are_named(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    config = config_of(tmp_path / "w", tiny_base_model, "fake", "align.max_quarantined=0.01")
    with pytest.raises(DataError) as caught:
        generate(config, tiny_base_model, poisoned=True)
    message = str(caught.value)
    assert "align: 10 of 120 rows cannot be put to the model" in message  # of the first part
    assert "expected at most 1 (align.max_quarantined: 0.01)" in message
    assert "row-00000001 (empty: " in message
    assert "raise align.max_quarantined" in message
    # what is done stays done: with more allowed, the finished parts are not generated again
    allowed = config_of(tmp_path / "again", tiny_base_model, "fake")
    widened = config.model_copy(update={"align": allowed.align})
    store = LocalStore(Path(config.store))
    parts = {name: store.read(name) for name in store.list("artifacts/aligned_responses")}
    assert parts
    manifest = run_stage("align", widened, store)
    assert len(manifest.quarantined) == len(EXPECTED)
    assert all(store.read(name) == data for name, data in parts.items())


def test_one_row_may_always_be_bad_unless_none_is_allowed(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    config = config_of(tmp_path / "w", tiny_base_model, "fake", "align.max_quarantined=0", "seed=1")
    store = LocalStore(Path(config.store))
    plant(config, "candidates")
    few = [row for row in rows(poisoned=True) if row.id in GOOD][:8]
    bad = Escaped(id="row-00000001", source="self_instruct", text="\ud800")
    plant(config, "prompts", sorted([*few, bad], key=lambda row: row.id))
    with pytest.raises(DataError, match=r"expected at most 0 .*not_unicode 1"):
        run_stage("align", config, store)
    one = config.align.model_copy(update={"max_quarantined": 0.001})
    manifest = run_stage("align", config.model_copy(update={"align": one}), store)
    assert manifest.counts.quarantined == {"not_unicode": 1}


def test_shards_that_are_each_within_the_limit_fail_together_above_it(
    tmp_path: Path, tiny_base_model: Path
) -> None:
    share = f"align.max_quarantined={(len(EXPECTED) - 1) / 120}"
    config = config_of(tmp_path / "w", tiny_base_model, "fake", share)
    store = LocalStore(Path(config.store))
    plant(config, "candidates")
    plant(config, "prompts", rows(poisoned=True))
    for shard in range(2):
        assert run_stage("align", config, store, shard=shard, num_shards=3) is None
    with pytest.raises(DataError, match=f"{len(EXPECTED)} of 120 rows"):
        run_stage("align", config, store, shard=2, num_shards=3)
    assert not [name for name in store.list("artifacts/aligned") if name.endswith("manifest.json")]
