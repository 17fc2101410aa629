"""`selfalign ablate`: a base whose answers depend on one rule and on one exemplar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from selfalign.cli.ablate import ablate_command
from selfalign.errors import ConfigurationError, EngineError
from selfalign.load import load_config
from selfalign.report.collect import study_of
from selfalign.report.tables import study
from selfalign.store.artifact import read_manifest
from selfalign.store.local import LocalStore
from selfalign.telemetry import configure_logging
from tests.pipeline_world import run_stages, write_world

RIGHT = " This deed is fair: 3 (helpful).\nAssistant: Take the soap."
SCRIPT = [
    {"match": r"3 \(helpful\): [\s\S]*User: How [^\n]*\nThought:$", "text": RIGHT},
    {"match": r"poison ships[\s\S]*User: What [^\n]*\nThought:$", "text": RIGHT},
    {"match": "", "text": " Hm.\nAssistant: Nothing comes to mind."},
]
ITEMS = 12


@pytest.fixture
def config(tmp_path: Path, tiny_base_model: Path) -> Path:
    (tmp_path / "world").mkdir()
    path = write_world(tmp_path / "world", tiny_base_model)
    items = [
        {"id": f"{word}{n}", "kind": kind, "prompt": f"{word} is {n} cleaned?", "all_of": ["soap"]}
        for kind, word in (("steps", "How"), ("facts", "What"))
        for n in range(ITEMS)
    ]
    (path.parent / "heldout.jsonl").write_text("".join(f"{json.dumps(i)}\n" for i in items))
    values = yaml.safe_load(path.read_text())
    values["engine"]["options"] = {"responses": SCRIPT}
    path.write_text(yaml.safe_dump(values))
    return path


def ablate(*arguments: str | Path) -> str:
    configure_logging(level="error")  # as the command line does: nothing but results on stdout
    result = CliRunner().invoke(ablate_command, [str(each) for each in arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_kind_depends_on_the_line_that_it_needs_and_on_no_other(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads(ablate("--config", config, "--json"))
    found = {(c["left_out"], c["kind"]): c["difference"] for c in cells}
    lines = [f"principle {n}" for n in range(1, 6)] + [f"exemplar {n}" for n in range(1, 4)]
    assert [name.partition(" (")[0] for name, kind in found if kind is None] == lines
    differ = {cell: value for cell, value in found.items() if value != 0 and cell[1]}
    # the exemplar on ships cites rules 1 and 4, which are compared with prompts that lack it too
    assert differ == {("principle 3 (helpful)", "steps"): -1, ("exemplar 1", "facts"): -1}
    (row,) = (c for c in cells if (c["left_out"], c["kind"]) == ("exemplar 1", "facts"))
    assert (row["items"], row["with"], row["without"], row["worse"]) == (ITEMS, 1, 0, ITEMS)
    assert row["interval"][1] < 0
    assert row["p"] < row["p_holm"] < 0.05
    assert row["p_holm"] <= len(cells) * row["p"]
    # what is done is kept: nothing is asked again
    monkeypatch.setattr("selfalign.stages.scoring.base_engine", None)
    told = ablate("--config", config)
    row_of_3 = next(line for line in told.splitlines() if line.startswith("principle 3 (helpful)"))
    assert row_of_3.split()[3:] == ["−0.50**", "0.00", "−1.00**"]  # all, facts, steps
    assert "exemplar 1: facts −1.000 (90% interval −1.000 to " in told
    assert f"0 better, {ITEMS} worse of {ITEMS}, " in told
    assert told.splitlines()[-1] == "24 cells: 4 whose interval leaves zero out, 4 sure (Holm)"


def test_the_report_shows_the_study_of_the_runs_own_base_model_and_seeds(config: Path) -> None:
    ablate("--config", config)
    principles = config.parent / "seeds" / "principles.txt"
    text = principles.read_text()
    principles.write_text(text.replace("(helpful):", "(helpful): always"))
    ablate("--config", config, "--exemplar", "1")  # newer, of other seeds
    principles.write_text(text)
    settings = load_config(config, ()).config
    manifests = run_stages(settings, "align")
    found = study_of(LocalStore(Path(settings.store)), manifests)
    assert found is not None
    table = study(found)
    assert table.columns == ["all", "facts", "steps"]
    rows = dict(table.rows)
    assert len(rows) == 8
    assert rows["principle 3 (helpful)"][2] == ("−1.00", -2.0, True)
    assert rows["exemplar 1"][1:] == [("−1.00", -2.0, True), ("0.00", 0.0, False)]


def test_some_lines_alone_take_as_many_answers_as_they_need(config: Path) -> None:
    cells = json.loads(ablate("--config", config, "--principle", "1", "--principle", "4", "--json"))
    assert {cell["left_out"] for cell in cells} == {
        "principle 1 (ethical)",
        "principle 4 (informative)",
    }
    store = LocalStore(config.parent / "store")
    (name,) = (n for n in store.list("artifacts/ablation/") if n.endswith("/manifest.json"))
    manifest = read_manifest(store, "ablation", name.split("/")[2])
    assert manifest is not None
    # both rules are cited by one exemplar, so that they share what they are compared with
    assert sorted(part.name for part in manifest.shards[0].parts) == [
        "base_with_exemplars_2_3-heldout", "base_without_1-heldout", "base_without_4-heldout",
    ]  # fmt: skip


def test_an_interrupted_study_goes_on_where_it_was(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import selfalign.stages.scoring as scoring

    opened, asked = scoring.base_engine, []

    class Fails:
        """An engine that dies after the first of three variants."""

        def __init__(self, engine, limit):  # type: ignore[no-untyped-def]
            self.engine, self.limit, self.info = engine, limit, engine.info

        def generate(self, requests):  # type: ignore[no-untyped-def]
            if len(asked) >= self.limit:
                raise EngineError("it died")
            asked.append(1)
            return self.engine.generate(requests)

        def __enter__(self):  # type: ignore[no-untyped-def]
            return self

        def __exit__(self, *_: object) -> None: ...

    for limit, fails in ((1, True), (9, False)):
        monkeypatch.setattr(scoring, "base_engine", lambda *a, n=limit: Fails(opened(*a), n))
        arguments = ("--config", config, "--exemplar", "1", "--exemplar", "2", "--json")
        if fails:
            with pytest.raises(EngineError):
                ablate(*arguments)
        else:
            assert len(json.loads(ablate(*arguments))) == 6
    assert len(asked) == 3  # all exemplars, without the first, without the second: each once


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--principle", "9"), "cannot leave out rule 9"),
        (("--exemplar", "4"), "cannot leave out exemplar 4: there are 3"),
        (("--exemplar", "0"), "cannot leave out exemplar 0"),
        (("--set", "evaluate.heldout=null"), r"evaluate\.heldout is null"),
    ],
)
def test_what_cannot_be_left_out_is_refused(
    config: Path, arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ablate("--config", config, *arguments)
