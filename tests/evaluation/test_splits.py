"""The items that choose a model are not those that its score is told from."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from selfalign.config import PromoteConfig
from selfalign.evaluation.anchor import surpasses_anchor
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.gate import judge
from selfalign.evaluation.items import HeldoutItem
from selfalign.evaluation.scores import ALIGNED, HHH, WIN_RATE, ItemScore
from selfalign.evaluation.splits import choosing_items, scores_of
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


def test_only_scores_on_held_out_items_are_parted() -> None:
    rows = [
        ItemScore(name, metric, None, 1, 1, "", against="base" if metric == WIN_RATE else None)
        for name in ("a", "b")
        for metric in (ALIGNED, WIN_RATE, HHH)
    ]
    for choosing, item in ((True, "a"), (False, "b")):
        found = scores_of(rows, frozenset("a"), choosing=choosing)
        assert {(row.item_id, row.metric) for row in found} == {
            (item, ALIGNED), (item, WIN_RATE), ("a", HHH), ("b", HHH),
        }  # fmt: skip


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
