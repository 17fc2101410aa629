"""What the report says of the budget, the confidence and the rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfalign.cli.report import _of_seeds
from selfalign.evaluation.scores import LENGTH_WORDS, WIN_RATE, ItemScore
from selfalign.evaluation.summary import EvaluationSummary, summarise
from selfalign.load import load_config
from selfalign.report.collect import PastRun, ReportData
from selfalign.report.render import render_report
from selfalign.run.record import RunRecord, RunStatus
from selfalign.seeds import file_digests
from selfalign.store.local import LocalStore


def data(lines: int | None = None, config: dict[str, Any] | None = None) -> ReportData:
    run = RunRecord(
        id="toy", created_at="now", code_version="0", config=config or {}, annotation_lines=lines
    )
    return ReportData(run, RunStatus(id="toy", phase="Succeeded", updated_at="now"), {})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(299, ", not reached"), (300, "over the limit"), (341, "over the limit")],
)
def test_the_limit_on_lines_is_checked_and_not_asserted(lines: int, expected: str) -> None:
    html = render_report(data(lines), {})
    assert f"<strong>{lines}</strong>" in html
    assert [said for said in (", not reached", "over the limit") if said in html] == [expected]


def test_unknown_lines_are_not_said_to_keep_the_limit() -> None:
    assert ", not reached" not in render_report(data(None), {})


def test_what_happened_is_told_of_runs_that_went_well() -> None:
    gathered = data()
    gathered.history = [
        PastRun(gathered.status.model_copy(update={"id": "before", "verdict": "NotPromoted"})),
        PastRun(gathered.status.model_copy(update={"verdict": "Promoted", "message": "by <0.1>"})),
    ]
    html = render_report(gathered, {})
    assert "<td>NotPromoted</td>" in html
    assert '<td>Promoted<div class="small">by &lt;0.1&gt;</div></td>' in html


def test_a_run_that_failed_says_so_first_with_the_cause_and_the_remedy() -> None:
    gathered = data()
    gathered.status = gathered.status.model_copy(
        update={"phase": "Failed", "message": "disk <full>", "remedy": "delete something"}
    )
    verdict = render_report(gathered, {}).partition("</section>")[0]
    assert '<section class="verdict no" aria-label="Verdict"><strong>Failed before' in verdict
    assert "<p>disk &lt;full&gt;</p><p>What to do: delete something</p>" in verdict
    gathered.status = gathered.status.model_copy(update={"phase": "Running"})
    assert "<strong>No verdict yet</strong>" in render_report(gathered, {})


@pytest.mark.parametrize(("confidence", "shown"), [(0.95, "95%"), (0.975, "97.5%")])
def test_the_confidence_is_not_rounded(confidence: float, shown: str) -> None:
    gathered = data()
    row = {"model": "base", "metric": "heldout.aligned", "kind": None, "n": 4, "mean": 0.5,
           "low": 0.2, "high": 0.8, "method": "wilson"}  # fmt: skip
    gathered.summary = EvaluationSummary.model_validate(
        {"models": ["base"], "confidence": confidence, "metrics": [row], "comparisons": [],
         "notes": []}
    )  # fmt: skip
    assert f"Mean with its {shown} interval" in render_report(gathered, {})


def test_what_the_judge_found_stands_beside_how_far_it_can_be_believed() -> None:
    gathered = data()
    assert "What the judge says" not in render_report(gathered, {})
    texts = ["AB", "AB", "BA", "AA", "BB", "AA"]
    values = {"AB": 1.0, "BA": 0.0}
    scores = {
        model: [ItemScore(f"i{n}", LENGTH_WORDS, "k", 3 + shift, 3 + shift, "") for n in range(6)]
        for model, shift in (("base", 0), ("final", 2))
    }
    scores["final"] += [
        ItemScore(f"i{n}", WIN_RATE, "k", values.get(text, 0.5), 5, text, against="base")
        for n, text in enumerate(texts)
    ]
    gathered.summary = summarise(scores)
    html = render_report(gathered, {})
    section = html.partition('<h2 id="judge">')[2].partition("</ul>")[0]
    assert "a win rate of 0.583 [" in section
    assert "2 wins, 1 losses on 6 items. Its answers differ by +2.0 words in the mean." in section
    assert "disagree in 50% of 6 pairs that differ, of these for &#34;A&#34; both times 67%" in (
        section
    )


def test_rules_have_the_names_they_had_in_the_run_or_none(world: Path) -> None:
    config = load_config(world, ()).config
    gathered = data(config=config.model_dump(mode="json"))
    seeds = file_digests(config.seeds.directory)
    gathered.manifests["aligned_responses"] = SimpleNamespace(identity={"seeds": seeds})  # type: ignore[assignment]
    store = LocalStore(world.parent / "store")
    assert _of_seeds(store, gathered)[0][3] == "helpful"
    forged = {"heldout": "s3://elsewhere/huge"}  # no reason to read it, nor to hide the names
    gathered.run.config["evaluate"] |= forged
    assert _of_seeds(store, gathered)[0][3] == "helpful"
    principles = config.seeds.directory / "principles.txt"
    principles.write_text(principles.read_text().replace("(helpful)", "(useful)"))
    assert _of_seeds(store, gathered) == ({}, None)
