"""The report and the difference of two nights whose numbers are known."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from benchmarks.evaluation.simulated import World as SimulatedWorld
from selfalign.cli.main import cli
from selfalign.evaluation.answers import changes, marked
from selfalign.evaluation.scores import ALIGNED
from selfalign.evaluation.summary import summarise
from selfalign.report.charts import Scale
from selfalign.report.collect import collect
from selfalign.report.render import render_report
from selfalign.report.words import is_clear, is_sure, sentences, signed
from selfalign.run.record import Attempt
from selfalign.store.local import LocalStore
from tests.report.nights import BAD, GOOD, HOSTILE, KINDS, write_night
from tests.report.test_charts import CLOSE, WIDTH, at, centre, corners, marks, on, rulers

ITEMS = [f"{KINDS[i % 4]}-{i:02d}" for i in range(40)]
PROMPTS = {item: f"How do I clean the {item}?" for item in ITEMS}
NAMES = {1: "ethical", 2: "informative", 3: "helpful"}
VOID = {"meta", "br"}


def said(good: int, good_text: str = GOOD) -> dict[str, str]:
    return {item: good_text if i < good else BAD for i, item in enumerate(ITEMS)}


@dataclass(frozen=True)
class World:
    store: LocalStore
    url: str
    html: dict[str, str]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two nights: right in 10 -> 30 of 40 answers and promoted, then 30 -> 8 and refused."""
    directory = tmp_path_factory.mktemp("store")
    store = LocalStore(directory)
    shared = {"base": said(10), "base_principled": said(40)}
    without = {item: BAD if item.startswith("format") else GOOD for item in ITEMS}
    write_night(
        store, "first", "2026-01-01T01:00:00+00:00",
        {**shared, "base_without_2": without, "engraved": said(20), "final": said(30)}, PROMPTS,
        config={"align": {"sampling": {"temperature": 0.5}}, "store": "s3://me:word@host/b"},
    )  # fmt: skip
    write_night(
        store, "second", "2026-01-02T01:00:00+00:00",
        {**shared, "engraved": said(20), "final": {**said(8), ITEMS[39]: HOSTILE},
         "promoted": said(30)},
        PROMPTS, kept=8, seed="1" * 64,
        config={"align": {"sampling": {"temperature": 0.9}}, "store": "s3://me:other@host/b"},
    )  # fmt: skip
    html = {name: render_report(collect(store, name), NAMES) for name in ("first", "second")}
    return World(store, str(directory), html)


def text_of(html: str) -> str:
    """Visible text, white space folded."""
    found: list[str] = []

    class Reader(HTMLParser):
        hidden = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.hidden += tag == "style"

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag == "style"

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                found.append(data)

    Reader().feed(html)
    return " ".join("".join(found).split())


def drawings(html: str, name: str) -> list[str]:
    return re.findall(f'<svg class="{name}".*?</svg>', html)


def test_the_first_screen_says_the_verdict_why_and_what_changed(nights: World) -> None:
    screen = text_of(nights.html["second"]).partition("Better and worse")[0]
    assert "Not promoted Not promoted: " in screen
    assert "heldout.aligned: final 0.200, promoted 0.750 on 40 items" in screen
    assert "The verdict is “not promoted”, and was “promoted”." in screen
    assert "heldout.aligned: 0.200, was 0.750 on the same 40 items (−0.550" in screen
    assert "clearly worse" in screen
    assert "23 of 40 answers differ: 0 better, 22 worse, 1 neither." in screen
    assert "22 answers that complied now refuse." in screen
    assert "Rows kept: instruct 8 (was 6), curate 8 (was 6), align 8 (was 6)." in screen
    assert (
        "Settings and inputs that differ: align.sampling.temperature, seeds: principles.txt."
        in screen
    )
    assert '<section class="verdict no"' in nights.html["second"]


def test_equal_models_are_seldom_told_to_differ_for_sure() -> None:
    named: Counter[str] = Counter()
    for seed in range(100):
        world = SimulatedWorld(seed)
        models = {name: world.values(world.right(0.8, name)) for name in ("before", "after")}
        found = summarise(models, confidence=0.9, comparisons=[("after", "before")])
        rows = [row for row in found.comparisons if row.metric == ALIGNED and row.kind]
        assert len(rows) == 12
        named["clear"] += any(map(is_clear, rows))
        named["sure"] += any(map(is_sure, rows))
    assert named["clear"] > 20  # of 100 nights, for an interval of 90% each
    assert named["sure"] <= 5


def test_a_promoted_night_without_one_before_it_is_told(nights: World) -> None:
    # it passed, and no later night took its place
    assert (
        '<section class="verdict yes" aria-label="Verdict"><strong>Promoted</strong>'
        in (nights.html["first"])
    )
    assert "No earlier run with an evaluation" in nights.html["first"]


def test_the_picture_marks_zero_the_margin_and_the_interval_where_they_are(nights: World) -> None:
    verdict = collect(nights.store, "second").verdict
    assert verdict is not None
    rule = next(r for r in verdict.reasons if r.rule.against == "promoted")
    assert rule.interval is not None
    label = (
        f'aria-label="heldout.aligned: {signed(-0.55)} ({signed(rule.interval[0])} to '
        f"{signed(rule.interval[1])}), 40 items; must be above -0.1; failed"
    )
    svg = next(svg for svg in drawings(nights.html["second"], "strip") if label in svg)
    reach = max(abs(end) for r in verdict.reasons
                if r.rule.against == "promoted" and r.rule.min_ratio is None
                and (r.outcome == "failed" or r.rule.metric == "heldout.aligned")
                for end in (*(r.interval or ()), r.rule.min_difference or 0))  # fmt: skip

    scale = Scale(-reach, reach)
    ends = [on(scale, x) for x, _ in corners(marks(svg, "range")[0])]
    drawn = [
        on(scale, corners(marks(svg, "zero")[0])[0][0]),
        on(scale, corners(marks(svg, "margin")[0])[0][0]),
        min(ends),
        max(ends),
        on(scale, centre(marks(svg, "point")[0])[0]),
    ]
    assert drawn == pytest.approx([0, -0.1, *rule.interval, -0.55], abs=CLOSE)


def test_noise_and_gpu_hours_are_told_where_they_are_known(nights: World) -> None:
    data = collect(nights.store, "second")
    assert "a second drawing would show no noise" in nights.html["second"]
    assert "GPU hours" not in nights.html["second"]
    assert data.summary is not None
    noisy = [reason.model_copy(update={"noise": -0.05}) for reason in data.verdict.reasons]
    data.verdict = data.verdict.model_copy(update={"reasons": tuple(noisy)})
    models = (*data.summary.models, "promoted_again")
    data.summary = data.summary.model_copy(update={"models": models})
    attempt = Attempt(
        stage="align",
        key="k",
        number=1,
        condition="Complete",
        started_at="2026-01-02T01:00:00+00:00",
        finished_at="2026-01-02T03:00:00+00:00",
        gpus=2,
    )
    data.status = data.status.model_copy(update={"attempts": [attempt]})
    html = render_report(data, NAMES)
    assert f", noise {signed(-0.05)}, 40 items" in html
    assert "its answers drawn a second time" in html
    assert ", 4.00 GPU hours;" in html


def test_worse_answers_stand_side_by_side_with_the_differing_words_marked(nights: World) -> None:
    pairs = nights.html["second"].split("<h3>Got worse (22)</h3>")[1]
    first = pairs.split('<div class="answer">')[1]
    assert "complies → refuses" in first
    assert "promoted before, plain" in first
    assert "<mark>I cannot help </mark>with <mark>that</mark>." in first


def test_words_are_marked_on_both_sides_and_nothing_is_lost() -> None:
    old, new = "Use warm soap, then rest.", "Use cold soap and rest."
    before, after = marked(old, new)
    assert [text for text, differs in before if differs] == ["warm ", ", then "]
    assert "".join(text for text, _ in before) == old
    assert "".join(text for text, _ in after) == new
    loop = marked("the " * 1000, "the of " * 500)  # in no time, whatever it marks
    assert "".join(text for text, _ in loop[1]) == "the of " * 500


def test_the_funnel_has_its_numbers_and_an_example_for_each_filter(nights: World) -> None:
    html = nights.html["first"]
    assert "curate: kept 6 of 10 (60%)" in html
    assert "not_novel 3 (30.0%), too_short 1 (10.0%)" in html
    svg = next(svg for svg in drawings(html, "stack") if 'aria-label="curate kept 6 of 10"' in svg)
    ends = [
        max(x for x, _ in corners(part)) / WIDTH
        for name in ("kept", "lost")
        for part in marks(svg, name)
    ]
    assert ends == pytest.approx([0.6, 0.9, 1.0], abs=CLOSE)
    assert '<li class="text">How do I?</li>' in html


def test_rules_are_counted_by_kind_of_prompt(nights: World) -> None:
    rows = dict(
        re.findall(r'<th scope="row">(legal|unknowable) \(3\)</th>(.*?)</tr>', nights.html["first"])
    )
    cells = {kind: re.findall(r">(\d+)</td>", row) for kind, row in rows.items()}
    # p0, p2, p4 are legal and cite rule 4 and 1, 3, 2; the others cite 2, 1, 3
    assert cells == {"legal": ["33", "33", "33", "100"], "unknowable": ["33", "33", "33", "0"]}
    assert "1 ethical" in nights.html["first"]
    assert "2 topics, the most frequent: law (4)" in nights.html["first"]


def test_leaving_a_principle_out_shows_where_it_is_missed(nights: World) -> None:
    row = nights.html["first"].split('<th scope="row">without 2 (informative)</th>')[1]
    cells = re.findall(r'<td( class="sure")?[^>]*>([^<]*)</td>', row.partition("</tr>")[0])
    assert [value for _, value in cells] == ["−0.25", "0.00", "−1.00", "0.00", "0.00"]
    assert [bool(sure) for sure, _ in cells] == [True, False, True, False, False]


def test_the_history_marks_promotions(nights: World) -> None:
    (svg,) = drawings(nights.html["second"], "history")
    _, up = rulers(svg)
    (first,), (second,) = marks(svg, "promoted"), marks(svg, "other")
    assert first.findtext("title") == "first: Promoted, 0.750"
    assert second.findtext("title") == "second: NotPromoted, 0.200"
    heights = [at(up, centre(night)[1]) for night in (first, second)]
    assert heights == pytest.approx([0.75, 0.2], abs=CLOSE)


def test_what_a_model_wrote_is_text_and_nothing_is_fetched_or_run(nights: World) -> None:
    html = nights.html["second"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e" in html
    assert not re.search(r"<script|<link|<img|javascript:|\son\w+=|url\(|@import|\x1b|\u202e", html)
    assert not re.search(r'(?:href|src)="(?!#)', html)
    opened: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None: ...

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("p", "li"):
                while opened[-1] in ("p", "li"):
                    opened.pop()
            assert opened.pop() == tag, (tag, self.getpos())

    Nesting().feed(html)
    assert opened == []
    assert len(re.findall(r"<h1", html)) == 1
    assert all("aria-label=" in tag for tag in re.findall(r"<svg[^>]*>", html))


def test_diff_tells_programs_the_same_as_people(nights: World) -> None:
    run = ["diff", "first", "second", "--store", nights.url]
    told = json.loads(CliRunner().invoke(cli, [*run, "--json"]).stdout)
    assert told["settings"] == {
        "align.sampling.temperature": ["0.5", "0.9"],
        "seeds: principles.txt": ["0" * 12, "1" * 12],
    }
    assert told["kept"]["curate"] == [6, 8]
    assert told["same_artifacts"] == ["engrave", "clone"]
    assert (told["answers"]["worse"]["count"], told["answers"]["better"]["count"]) == (22, 0)
    overall = next(row for row in told["scores"] if row["kind"] is None)
    assert (overall["difference"], overall["n"]) == (pytest.approx(-0.55), 40)
    shown = CliRunner().invoke(cli, [*run, "--answers", "1"]).stdout
    since = collect(nights.store, "second").since
    assert since is not None
    assert shown.startswith("".join(line + "\n" for line in sentences(since)))
    assert "\x1b" not in shown
    assert shown.count("\nworse [") == 1


def test_a_refused_answer_that_complies_now_is_counted(nights: World) -> None:
    items = collect(nights.store, "second").items
    found = changes(items, "promoted", "base")
    assert found.refusals() == {("refuses", "complies"): 20}
    assert (len(found.better), len(found.worse), found.compared) == (20, 0, 40)
    assert sorted(item.texts["base"] for item in found.same) == [BAD] * 10 + [GOOD] * 10
