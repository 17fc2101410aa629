"""The seeds directory is read strictly: whatever is wrong is named by file and line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from selfalign.cli.inspect import seeds_check
from selfalign.config import SeedsConfig
from selfalign.errors import ConfigurationError
from selfalign.seeds import (
    ANNOTATION_LIMIT,
    SEED_FILES,
    Seeds,
    annotation_lines,
    cited_rules,
    file_digests,
    load_seeds,
)

PROJECT = Path(__file__).parents[1]
REAL = PROJECT / "seeds"
TOY = PROJECT / "examples" / "toy_world" / "seeds"
VALID = Path(__file__).parent / "data" / "seeds"
FILES = {name: (VALID / name).read_text(encoding="utf-8") for name in SEED_FILES}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return shutil.copytree(VALID, tmp_path / "seeds")


def load(directory: Path) -> Seeds:
    counts = {"general": 3, "topic_guided": 2, "principles": 3, "exemplars": 2}
    return load_seeds(SeedsConfig(directory=directory, **counts))


def problems_of(directory: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(directory)
    assert caught.value.remedy
    return str(caught.value)


def test_valid_directory_becomes_dataclasses(directory: Path) -> None:
    seeds = load(directory)
    assert seeds.general[2] == "Write a haiku."
    assert seeds.topic_guided[1].hint.text == "art; oil paint"
    assert seeds.principles[1].line == FILES["principles.txt"].splitlines()[1]
    first, second = seeds.exemplars
    assert [turn.query for turn in first.turns] == ["What is new?", "Thanks."]
    assert first.turns[0].answer == "I cannot tell.\nMy texts end somewhere."
    assert second.turns[0].thought == "Harmful: 1 (ethical)."
    assert seeds.templates.distil_standard.text == "A chat.\n\n{user} {query}\n{answer}"


# By file and by what is wrong with it: text of the valid file, what replaces it, the line that
# must be named (0: the file), part of the message.
REFUSALS: dict[str, dict[str, tuple[str, str, int, str]]] = {
    "principles.txt": {
        "a rule too few": ("\n3 (dated knowledge): The assistant marks what may be outdated.", "",
            0, "expected 3 rules, found 2"),
        "a gap in the numbering": ("3 (dated", "4 (dated", 3, "expected rule 3, found rule 4"),
        "a rule without a name": ("2 (candor):", "2:", 2, "expected `N (name): text`"),
        "a name used twice": ("2 (candor)", "2 (Ethical)", 2, "found (Ethical) as in line 1"),
        "an empty line at the end": ("outdated.\n", "outdated.\n\n", 4, "found an empty line"),
    },
    "general.txt": {
        "a task too few": ("Write a haiku.\n", "", 0, "expected 3 lines, found 2"),
        "an empty line among tasks": ("Write", "\nWrite", 3,
            "expected a line of text, found an empty line"),
        "a trailing space": ("tides work.", "tides work. ", 2, "expected no space at either end"),
        "Windows line ends": ("tides work.", "tides work.\r", 2, "found a carriage return"),
        "a byte order mark": ("Name", "\ufeffName", 1, "found a byte order mark"),
    },
    "exemplars.txt": {
        "a dialogue too few": ("\nUser: How do I rob a bank?\nThought: Harmful: 1 (ethical).\n"
            "Bot: I will not help with that.\n", "", 0, "expected 2 dialogues, found 1"),
        "a rule that does not exist": ("Harmful: 1 (ethical)", "Harmful: rules 17 (ethics)", 10,
            "cites rule 17 (ethics), which is not listed"),
        "a bare rule that does not exist": ("Harmful: 1 (ethical)", "Rule 17, and 1 (ethical)", 10,
            "cites rule 17, which is not listed"),
        "a number under another name": ("Rule 2 (candor)", "Rule 1 (candor)", 6,
            "rule 1 is (ethical); candor is rule 2"),
        "a thought that cites nothing": ("Harmful: 1 (ethical).", "Harmful.", 10,
            "expected a thought that cites a rule"),
        "a missing thought": ("Thought: Harmful: 1 (ethical).\n", "", 10,
            "expected 'Thought:' (the thought label), found 'Bot: I will"),
        "a missing answer": ("Bot: I will not help with that.\n", "", 10,
            "expected 'Bot:' (the answer label), found the end of the dialogue"),
        "an empty answer": ("Bot: I will not help with that.", "Bot:", 11,
            "expected text after the answer label"),
        "text before the first label": ("User: What is new?", "What is new?", 1,
            "expected 'User:' (the user label)"),
        "two empty lines": ("\n\n", "\n\n\n", 9, "expected one empty line between dialogues"),
    },
    "topic_guided.jsonl": {
        "a missing type": ('"type": "art", ', "", 2, "exactly the keys type, topic and question"),
        "an empty type": ('"type": "art"', '"type": ""', 2, "type: text on one line"),
        "a type that is no text": ('"type": "art"', '"type": 4', 2, "found 4"),
        "a topic of four words": ('"oil paint"', '"paint made of oil"', 2,
            "at most 3 words, found 'paint made of oil' of 4 words"),
        "a topic used twice": ('"art", "topic": "oil paint"',
            '"scientific", "topic": "Spider silk"', 2, "a topic that its type does not have yet"),
        "a type spelled in two ways": ('"art"', '"Scientific"', 2, "the type spelled as in line 1"),
        "a line that is no JSON": ('{"type": "art"', '"type": "art"', 2, "expected a JSON object"),
    },
    "templates/verbose.txt": {
        "an unknown hole": ("A long chat.", "A long chat of {user_name}.", 1, "found {user_name}"),
        "a hole of another template": ("long", "{principles}", 1,
            "one of the holes {answer}, {query}, {user}, found {principles}"),
    },
    "templates/questions.txt": {
        "a missing hole": ("{hints}\n", "", 0, "expected the hole {hints}"),
    },
    "templates/align.txt": {
        "a prompt that ends elsewhere": ("{thought}", "{answer}", 6,
            "expected {thought} or 'Thought:' at the end"),
    },
    "templates/topics.txt": {
        "a list without a next number at its end": ("{next_number}.", "{next_number}.\nEnd.", 4,
            "expected {next_number} at the end"),
    },
    "templates/labels.yaml": {
        "a missing label": ('answer: "Bot:"\n', "", 0, "exactly the keys user, thought and answer"),
        "a label that begins another": ('"Thought:"', '"User: thinks"', 1,
            "a label that no other label begins with"),
        "labels that are no YAML": ('user: "User:"', 'user: "User:', 2, "expected YAML"),
        "an alias": (
            'user: "User:"',
            'user: &x "User:"\nmore: *x',
            0,
            "expected each label written out, found *x",
        ),
        "labels without an end": ('"Bot:"', f'"{"Bot" * 4000}"', 0, "expected three short labels"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        pytest.param(file, edit, id=name)
        for file, edits in REFUSALS.items()
        for name, edit in edits.items()
    ],
)
def test_refused(directory: Path, file: str, edit: tuple[str, str, int, str]) -> None:
    old, new, line, message = edit
    assert FILES[file].count(old) == 1, "the edit must hit one place"
    (directory / file).write_bytes(FILES[file].replace(old, new).encode())
    found = problems_of(directory)
    where = f"{directory}/{file}" + (f":{line}:" if line else ":")
    assert any(where in row and message in row for row in found.splitlines()), found


def test_labels_may_hold_asterisks(directory: Path) -> None:
    labels = directory / "templates" / "labels.yaml"
    labels.write_text(labels.read_text().replace('"Bot:"', '"**Bot:**"'))
    for file in (directory / "exemplars.txt", *(directory / "templates").glob("distil_*.txt")):
        file.write_text(file.read_text().replace("Bot:", "**Bot:**"))
    assert load(directory).labels.answer == "**Bot:**"


def test_missing_file_is_refused_without_further_complaints_about_it(directory: Path) -> None:
    (directory / "principles.txt").unlink()
    found = problems_of(directory)
    assert f"{directory}/principles.txt: expected a readable file, found No such file" in found
    assert "1 problem" in found
    os.mkfifo(directory / "principles.txt")
    assert "principles.txt: expected a readable file, found it is a pipe" in problems_of(directory)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "expected a directory of seeds, found nothing" in problems_of(tmp_path / "none")


def test_bytes_that_are_not_utf8_are_named_with_their_line(directory: Path) -> None:
    (directory / "general.txt").write_bytes(b"one line here\ncaf\xe9 au lait please\nanother one\n")
    assert f"{directory}/general.txt:2: expected UTF-8, found byte 0xe9" in problems_of(directory)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("Explain how tides work.", "explain  how TIDES work", "the same"),
        ("Explain how tides work.", "Explain how the tides work!", "the same"),
        (
            "Write a short story about a dog that learns to sing in a choir.",
            "Write a short story about a cat that learns to sing in a choir.",
            "almost the same",
        ),
    ],
)
def test_duplicate_seeds_are_refused(
    directory: Path, first: str, second: str, verdict: str
) -> None:
    (directory / "general.txt").write_text(f"{first}\nName three rivers.\n{second}\n")
    found = problems_of(directory)
    assert f"{directory}/general.txt:3: expected a seed unlike the others" in found
    assert f"{verdict} as general.txt:1" in found


def test_question_that_repeats_a_general_task_is_refused(directory: Path) -> None:
    (directory / "general.txt").write_text("Who first mixed oil paint?\nWhy?\nWrite a haiku.\n")
    found = problems_of(directory)
    assert "topic_guided.jsonl:2: expected a seed unlike the others" in found


def test_short_seeds_may_share_a_frame(directory: Path) -> None:
    text = "How do I flood the boat?\nHow do I flood the ship?\nHow do I wash the ship?\n"
    (directory / "general.txt").write_text(text)
    assert len(load(directory).general) == 3


def test_all_problems_are_reported_together_in_order(directory: Path) -> None:
    (directory / "general.txt").write_text("One task here.\n\n")
    (directory / "templates/verbose.txt").write_text("{query} {nobody}\n")
    (directory / "principles.txt").write_text("1 (ethical): Harm nobody.\n3 (candor): Say so.\n")
    (directory / "exemplars.txt").unlink()
    found = problems_of(directory)
    for part in (
        "general.txt: expected 3 lines, found 1",
        "general.txt:2: expected a line of text",
        "principles.txt: expected 3 rules, found 2",
        "principles.txt:2: expected rule 2, found rule 3",
        "exemplars.txt: expected a readable file",
        "verbose.txt:1: expected one of the holes",
        "verbose.txt:1: expected {answer} or 'Bot:' at the end",
    ):
        assert part in found
    assert found.startswith(f"{directory}: 7 problems in the seeds:")
    places = [row.split(": expected")[0].strip() for row in found.splitlines()[1:8]]
    assert places == sorted(places)


def test_digests_are_of_raw_bytes_and_each_file_has_its_own(directory: Path) -> None:
    before = file_digests(directory)
    assert set(before) == set(SEED_FILES) == set(FILES)
    assert before["general.txt"] == hashlib.sha256(FILES["general.txt"].encode()).hexdigest()
    (directory / "principles.txt").write_text(FILES["principles.txt"].rstrip("\n"))
    after = file_digests(directory)
    assert {name for name in before if before[name] != after[name]} == {"principles.txt"}


def test_digest_of_a_missing_file_is_refused(directory: Path) -> None:
    (directory / "general.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"general\.txt: expected a readable file"):
        file_digests(directory)


def test_budget_counts_non_blank_lines_of_what_reaches_a_model(directory: Path) -> None:
    (directory / "SOURCES.md").write_text("Where it all comes from.\n" * 500)
    lines = annotation_lines(directory)
    assert lines["exemplars.txt"] == 10
    assert lines["templates/align.txt"] == 4
    assert sum(lines.values()) == 44


@pytest.mark.parametrize(("lines", "kept"), [(1, True), (ANNOTATION_LIMIT, False)])
def test_seeds_check_warns_over_the_limit(directory: Path, lines: int, kept: bool) -> None:
    (directory / "general.txt").write_text("".join(f"Line {n}?\n" for n in range(lines)))
    options = [str(directory), "--general", str(lines), "--topic-guided", "2",
               "--principles", "3", "--exemplars", "2"]  # fmt: skip
    told = CliRunner().invoke(seeds_check, options)
    assert (told.exit_code, "warning" in told.stderr) == (0, not kept), told.output
    asked = CliRunner().invoke(seeds_check, [*options, "--json"])
    assert json.loads(asked.stdout)["within_limit"] is kept


def test_real_seeds_load_as_configured_and_keep_the_budget() -> None:
    seeds = load_seeds(SeedsConfig(directory=REAL))
    assert len(seeds.general) == 175
    assert len({seed.type for seed in seeds.topic_guided}) == 20
    assert [rule.number for rule in seeds.principles] == list(range(1, 17))
    assert sum(len(exemplar.turns) for exemplar in seeds.exemplars) == 6
    assert sum(annotation_lines(REAL).values()) < 300


def test_toy_seeds_load(tmp_path: Path) -> None:
    copy = shutil.copytree(TOY, tmp_path / "toy")
    budget = annotation_lines(copy)
    counts = {name: budget[f"{name}.txt"] for name in ("general", "principles")}
    dialogues = (copy / "exemplars.txt").read_text().count("\n\n") + 1
    config = SeedsConfig(
        directory=copy, topic_guided=budget["topic_guided.jsonl"], exemplars=dialogues, **counts
    )
    assert load_seeds(config).labels.thought == "Thought:"


def test_removed_principle_takes_its_dialogues_along_and_nothing_else(directory: Path) -> None:
    seeds = load(directory)
    without = seeds.without_principle(1)
    assert [rule.number for rule in without.principles] == [2, 3]
    assert without.exemplars == seeds.exemplars[:1]
    assert (without.general, without.templates) == (seeds.general, seeds.templates)
    control = seeds.without_exemplars_citing(1)
    assert control.principles == seeds.principles
    assert control.exemplars == without.exemplars


def test_rule_cited_in_any_turn_takes_the_dialogue_along(directory: Path) -> None:
    assert load(directory).without_principle(3).exemplars == load(directory).exemplars[1:]


def test_every_real_principle_can_be_removed_and_dialogues_remain() -> None:
    seeds = load_seeds(SeedsConfig(directory=REAL))
    for number in range(1, 17):
        without = seeds.without_principle(number)
        assert len(without.principles) == 15
        assert without.exemplars
        for exemplar in without.exemplars:
            for turn in exemplar.turns:
                assert not cited_rules(turn.thought, without.principles).problems


def test_removing_a_rule_that_does_not_exist_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rule 4: expected one of \[1, 2, 3\]"):
        load(directory).without_principle(4)


def test_half_of_a_surrogate_pair_is_refused_with_its_line(directory: Path) -> None:
    path = directory / "topic_guided.jsonl"
    lines = path.read_text("utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "topic": "x\ud800"})
    path.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(ConfigurationError, match=r"topic_guided\.jsonl:2: .*surrogate"):
        load(directory)
