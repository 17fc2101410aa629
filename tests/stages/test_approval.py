"""A model that passed the gate waits for a person, who decides once and on this verdict alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import ConfigurationError, DataError
from selfalign.evaluation.gate import Verdict
from selfalign.stages.approval import Approval, approval_state, decide_on, read_request
from selfalign.store.artifact import read_file_as
from selfalign.store.local import LocalStore
from selfalign.store.pointer import read_pointer

from .test_anchors import Nights


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(LocalStore(tmp_path / "store"), tmp_path)


def decide(nights: Nights, promotion: str = "p-0", **changes: Any) -> Approval:
    asked = {"approved": True, "by": "anna", "reason": "", **changes}
    return decide_on(nights.store, "toy", promotion, **asked)


def test_nothing_is_promoted_before_a_person_approves_and_then_it_says_who_and_when(
    nights: Nights,
) -> None:
    for _ in range(2):  # a second attempt asks nothing new
        assert nights.judge(0, approval="manual") is None
        assert approval_state(nights.store, "p-0") == "awaited"
        assert read_pointer(nights.store) is None
    request = read_request(nights.store, "p-0")
    assert request.verdict["promote"] is True
    decision = decide(nights)
    assert approval_state(nights.store, "p-0") == "given"
    published = nights.judge(0, approval="manual")
    assert published.details["approval"]["by"] == "anna"
    assert f"Approved by anna at {decision.at}" in published.details["reasons"][0]
    current = read_pointer(nights.store)
    assert (current.pointer.promotion, current.pointer.model.key) == ("p-0", "model-0")


def test_a_rejected_model_is_not_promoted_and_its_verdict_says_why(nights: Nights) -> None:
    nights.judge(0, approval="manual")
    decide(nights, approved=False, reason="  too terse ")
    published = nights.judge(0, approval="manual")
    assert (published.details["promoted"], published.details["decision"]) == (False, "rejected")
    verdict = read_file_as(nights.store, published, "verdict.json", Verdict)
    assert not verdict.promote
    assert "Rejected by anna" in verdict.explanation
    assert "too terse. The gate had passed it" in verdict.explanation
    assert read_pointer(nights.store) is None


def test_the_first_decision_stands(nights: Nights) -> None:
    nights.judge(0, approval="manual")
    decide(nights, approved=False, reason="no")
    with pytest.raises(ConfigurationError, match=r"decided already: Rejected by anna at .*: no"):
        decide(nights, by="berta")
    nights.judge(0, approval="manual")
    with pytest.raises(ConfigurationError, match="decided already: Rejected by anna"):
        decide(nights, by="berta")


def test_approval_is_refused_once_another_model_was_promoted(nights: Nights) -> None:
    nights.judge(0, approval="manual")
    nights.promote(1, None)
    with pytest.raises(ConfigurationError, match=r"against nothing; it .*current is model-1"):
        decide(nights)
    assert approval_state(nights.store, "p-0") == "awaited"
    decide(nights, approved=False, reason="superseded")  # a no is a no


def test_a_decision_fits_the_verdict_that_it_was_made_on_and_no_other(nights: Nights) -> None:
    with pytest.raises(ConfigurationError, match="does not wait for approval"):
        decide(nights)
    nights.judge(0, approval="manual")
    with pytest.raises(ConfigurationError, match="the reason has 2001 characters"):
        decide(nights, reason="x" * 2001)
    decide(nights)
    nights.judge(1, approval="manual")
    copied = nights.store.read("approvals/p-0.json")
    nights.store.write("approvals/p-1.json", copied)
    with pytest.raises(DataError, match=r"approvals/p-1\.json: answers another request"):
        nights.judge(1, approval="manual")
    assert read_pointer(nights.store) is None


def test_a_model_that_is_current_needs_no_approval(nights: Nights) -> None:
    nights.promote(0, None)
    nights.store.delete("artifacts/promotion/p-0/manifest.json")
    assert nights.judge(0, approval="manual") is not None


def test_an_attempt_that_was_evicted_after_the_move_leaves_who_approved_to_the_next(
    nights: Nights,
) -> None:
    nights.judge(0, approval="manual")
    decide(nights)
    nights.judge(0, approval="manual")
    nights.store.delete("artifacts/promotion/p-0/manifest.json")  # as if it had not come so far
    published = nights.judge(0, approval="manual")
    assert published is not None
    assert published.details["approval"]["by"] == "anna"
    assert "Approved by anna" in published.details["reasons"][0]
