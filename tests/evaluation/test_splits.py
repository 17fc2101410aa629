"""The items that choose a model are not those that its score is told from."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from selfalign.config import EvaluateConfig, PromoteConfig
from selfalign.evaluation.anchor import surpasses_anchor
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.gate import judge
from selfalign.evaluation.items import HeldoutItem, HHHItem, TruthfulQAItem
from selfalign.evaluation.scores import ALIGNED, HHH, MC1, WIN_RATE, ItemScore
from selfalign.evaluation.splits import choosing_items, choosing_split, scores_of
from selfalign.evaluation.summary import summarise

ITEMS = load_heldout(Path("default"))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.7, 0.99])
def test_both_parts_have_every_kind_and_both_sides_of_refusal(share: float) -> None:
    chosen = choosing_items(ITEMS, share, "a model")
    parts = [[i for i in ITEMS if (i.id in chosen) is side] for side in (True, False)]
    groups = Counter((item.kind, item.refusal) for item in ITEMS)
    for part in parts:
        assert {(item.kind, item.refusal) for item in part} == groups.keys()
    for group, total in groups.items():
        found = sum((item.kind, item.refusal) == group for item in parts[0])
        assert found == max(1, min(round(share * total), total - 1))


def test_every_model_has_a_draw_of_its_own_and_always_the_same() -> None:
    draws = [choosing_items(ITEMS, 0.5, f"model {n}") for n in range(40)]
    assert draws[0] == choosing_items(tuple(reversed(ITEMS)), 0.5, "model 0")
    times = Counter(item_id for draw in draws for item_id in draw)
    assert len(times) == len(ITEMS)
    assert max(times.values()) < 40
    (lone,) = choosing_items([HeldoutItem("x", "k", "p", "must")], 0.5, "m")
    assert lone == "x"


def test_hhh_is_parted_by_category_and_truthfulqa_as_a_whole() -> None:
    hhh = [HHHItem(f"{c}{n}", c, "q", "good", "bad") for c in ("honest", "other") for n in range(9)]
    found = Counter(item_id[:-1] for item_id in choosing_items(hhh, 0.5, "m"))
    assert found == {"honest": 4, "other": 4}
    questions = [TruthfulQAItem(str(n), "q", ("a", "b"), 0) for n in range(11)]
    assert len(choosing_items(questions, 0.3, "m")) == 3


def test_each_file_is_parted_by_its_own_items(tmp_path: Path) -> None:
    hhh = tmp_path / "hhh.jsonl"
    row = {"category": "other", "query": "q", "chosen": "good", "rejected": "bad"}
    hhh.write_text("".join(json.dumps({"id": name, **row}) + "\n" for name in "ab"))
    chosen = choosing_split(EvaluateConfig(hhh=hhh, choosing_share=0.5), "m")
    (ours,) = chosen["evaluate.hhh"]
    other = "b" if ours == "a" else "a"
    assert "evaluate.truthfulqa" not in chosen
    held = {True: "unknowable-01", False: "unknowable-02"}
    chosen = {**chosen, "evaluate.heldout": frozenset({held[True]})}
    chosen["evaluate.judge"] = chosen["evaluate.heldout"]
    rows = [ItemScore(name, metric, None, 1, 1, "") for name in "ab" for metric in (HHH, MC1)]
    tasks = {"harness.arc": frozenset("a"), "harness.arc_easy": frozenset("b")}
    rows += [ItemScore(name, f"{task}.acc", None, 1, 1, "") for name in "ab" for task in tasks]
    rows += [ItemScore(name, "harness.mmlu.acc", None, 1, 1, "") for name in "ab"]
    chosen |= tasks
    rows += [ItemScore(i, m, None, 1, 1, "") for i in held.values() for m in (ALIGNED, WIN_RATE)]
    for choosing, item in ((True, ours), (False, other)):
        found = {(r.item_id, r.metric) for r in scores_of(rows, chosen, choosing=choosing)}
        assert found == {
            (item, HHH), (held[choosing], ALIGNED), (held[choosing], WIN_RATE),
            ("a" if choosing else "b", "harness.arc.acc"),
            ("b" if choosing else "a", "harness.arc_easy.acc"),
            *((name, metric) for name in "ab" for metric in (MC1, "harness.mmlu.acc")),
        }  # fmt: skip
    assert choosing_split(EvaluateConfig(hhh=hhh), "m") == {}


def test_rules_and_anchor_look_at_what_chooses_and_at_nothing_else() -> None:
    def found(final: float):  # type: ignore[no-untyped-def]
        sides = {"base": 0.0, "promoted": 0.0, "final": final}
        return summarise(
            {
                model: [ItemScore(f"i{n}", ALIGNED, None, value, 1, model) for n in range(80)]
                for model, value in sides.items()
            },
            tasks=("heldout",),
        )

    rules = PromoteConfig.model_validate({"rules": [{"metric": ALIGNED, "against": "base"}],
                                          "guards": None})  # fmt: skip
    good, bad = found(1.0), found(0.0)
    for choosing, reported in ((good, bad), (bad, good)):
        summary = reported.model_copy(update={"choosing": choosing})
        assert judge(summary, rules).promote is (choosing is good)
        assert surpasses_anchor(summary, 1) is (choosing is good)
        again = type(summary).model_validate_json(summary.model_dump_json())
        assert again == summary


def test_the_score_of_a_chosen_model_is_too_high_where_the_same_items_chose_it() -> None:
    """Models that are right half the time, whatever is asked; the better one is always chosen."""
    draw = random.Random(5)
    told: dict[bool, list[float]] = {True: [], False: []}
    for night in range(150):
        before, after = ([draw.random() < 0.5 for _ in ITEMS] for _ in range(2))
        chosen = choosing_items(ITEMS, 0.5, f"night {night}")
        places = [n for n, item in enumerate(ITEMS) if item.id in chosen]
        others = [n for n, item in enumerate(ITEMS) if item.id not in chosen]
        winner = max(before, after, key=lambda model: sum(model[n] for n in places))
        for same, part in ((True, places), (False, others)):
            told[same].append(sum(winner[n] for n in part) / len(part))
    same, other = (sum(told[side]) / 150 for side in (True, False))
    error = (0.25 / (len(ITEMS) / 2) / 150) ** 0.5
    assert same > 0.5 + 4 * error
    assert abs(other - 0.5) < 3 * error
