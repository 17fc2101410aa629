"""Promotions without models' weights: which model the next ones are held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfalign.config import RunConfig
from selfalign.evaluation.scores import ALIGNED, ItemScore
from selfalign.evaluation.summary import summarise
from selfalign.pipeline import BY_NAME
from selfalign.seeds import load_seeds
from selfalign.stages.contract import StageContext
from selfalign.stages.promote import promote
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest, Parent
from selfalign.store.pointer import Pointer, read_pointer
from tests.artifacts import publish

SEEDS = Path(__file__).parents[2] / "seeds"


class Nights:
    """Each promotes a model that is a little better than the base and equal to the ones before."""

    def __init__(self, store: LocalStore, work: Path) -> None:
        self.store, self.work = store, work

    def promote(self, number: int, pinned: str | None) -> Pointer:
        """The pointer after night `number`, whose final model is `model-<number>`."""
        assert self.judge(number, pinned) is not None
        after = read_pointer(self.store)
        assert after.pointer.model.key == f"model-{number}"
        return after.pointer

    def judge(
        self, number: int, pinned: str | None = None, approval: str = "automatic"
    ) -> Manifest | None:
        """What the stage publishes as promotion `p-<number>`."""
        before = read_pointer(self.store)
        promoted = None if before is None else before.pointer.model.digest
        anchor = None
        if before is not None and pinned is not None:
            (named,) = [m for m in before.pointer.kept_models() if m.key == pinned]
            anchor = None if named.digest == promoted else named.digest
        final = publish(self.store, "final_model", f"model-{number}", {"model": bytes([number])})
        models = {"base": _scores(0), "final": _scores(40)}
        models |= {"promoted": _scores(40)} if promoted else {}
        models |= {"anchor": _scores(40)} if anchor else {}
        summary = summarise(models, tasks=("heldout",)).model_dump_json().encode()
        identity = {"promoted": promoted, "anchor": anchor}
        files = {"summary.json": summary, "prompts.json": b"{}"}
        evaluation = publish(self.store, "evaluation", f"e-{number}", files, identity=identity)
        rules = [{"metric": ALIGNED, "against": "base"}]
        config = RunConfig.model_validate(
            {
                "base_model": {"path": str(self.work)},
                "store": self.store.url,
                "seeds": {"directory": str(SEEDS)},
                "promote": {"rules": rules, "guards": None, "anchor": pinned, "approval": approval},
            }
        )
        return promote(
            StageContext(
                config=config,
                store=self.store,
                stage=BY_NAME["promote"],
                key=f"p-{number}",
                identity={},
                parents={
                    each.artifact: Parent(key=each.key, digest=each.digest)
                    for each in (evaluation, final)
                },
                seeds=load_seeds(config.seeds),
                shard=0,
                num_shards=1,
                work=self.work,
            )
        )


def _scores(ones: int) -> list[ItemScore]:
    # fewer than 50 items: equal answers alone are no verdict of their own
    return [ItemScore(f"i{k}", ALIGNED, None, float(k < ones), 1, "") for k in range(45)]


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(LocalStore(tmp_path / "store"), tmp_path)


def test_the_first_promoted_model_stays_the_anchor_while_none_is_better(nights: Nights) -> None:
    anchors = []
    for number in range(3):
        anchor = nights.promote(number, None).anchor
        anchors.append((anchor.model.key, anchor.promotions))
    assert anchors == [("model-0", 0), ("model-0", 1), ("model-0", 2)]


def test_a_pinned_anchor_is_kept_however_many_models_are_promoted_after_it(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfalign.stages.promote.HISTORY_LENGTH", 2)
    nights.promote(0, None)
    nights.promote(1, None)
    for number in range(2, 6):
        pointer = nights.promote(number, "model-1")
    assert (pointer.anchor.model.key, pointer.anchor.promotions) == ("model-1", 4)
    assert pointer.previous_anchor == pointer.anchor.model
    assert "model-1" not in {model.key for model in pointer.history}
