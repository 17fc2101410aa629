"""Random corruptions of every kind of object that a store holds, and forty forgeries by hand,
against the commands that read it: each is named with a documented exit code or has no effect;
nothing is a traceback."""

from __future__ import annotations

import fnmatch
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfalign.errors import EXIT_CODES
from selfalign.pipeline import PRODUCER, STAGES
from selfalign.run.notify import new_notice
from selfalign.run.record import status_to_show
from tests.forging import FORGERIES, SHOWN, Change, believe, damaged, forge, forged
from tests.forked import selfalign
from tests.whole_store import WholeStore, build, outcome

Told = dict[str, tuple[int, str]]  # by reader: its exit code and what it says
COMMANDS = {
    "status": ["status", "r"],
    "status-json": ["status", "r", "--json"],
    "report": ["report", "r", "--out", "{out}/report.html"],
    "diff": ["diff", "r", "r"],
    "show": ["show", "{artifact}"],
    "show-verify": ["show", "{artifact}", "--verify"],
    "show-dropped": ["show", "{artifact}", "--dropped"],
    "chat": ["chat", "A question?"],
    "export": ["export", "--to", "{out}/model"],
    "export-verify": ["export", "--to", "{out}/verified", "--verify", "{public}"],
    "fetch": ["serving", "fetch", "--to", "{out}/served"],
    "rollback": ["rollback"],
    "gc": ["gc", "--keep-nights", "1", "--dry-run"],
    "try": ["gate", "try", "r"],
    "approve": ["approve", "r", "--as", "berta"],
    "ablate": ["ablate", "--principle", "1"],
    **{stage.name: [stage.name] for stage in STAGES},
}
LOOK = "status status-json report diff"
# These take a run whose status cannot be read for one that has only begun.
QUIET = {("diff", "status.json"), ("approve", "status.json")}
UNPUBLISHED = ("{unit}/manifest.json",)
UNDECIDED = ("artifacts/promotion/*/manifest.json", "current.json", "models/*")
# Objects by a pattern of their keys; what reads them ({maker} is what makes the artifact); what has
# to be missing for that.
KINDS: list[tuple[str, str, tuple[str, ...]]] = [
    ("current.json", f"{LOOK} chat export gc promote rollback", ()),
    ("gc.json", "gc elaborate", ("artifacts/verbose_responses/*/manifest.json",)),
    ("runs/r/run.json", f"{LOOK} gc approve", ()),
    ("runs/r/status.json", f"{LOOK} gc approve notice", ()),
    ("artifacts/*/manifest.json", f"{LOOK} show show-verify gc promote try", ()),
    ("artifacts/*/claim.json", "gc", UNPUBLISHED),
    ("artifacts/*/parts/*.json", "{maker}", (*UNPUBLISHED, "{unit}/shards/*")),
    ("artifacts/*/shards/*.json", "{maker}", UNPUBLISHED),
    ("artifacts/*/parts/*.zst", "show show-verify show-dropped report", ()),
    ("artifacts/*/topics/*", "instruct", (*UNPUBLISHED, "{unit}/shards/*", "{unit}/parts/*")),
    ("artifacts/*/checkpoints/*", "clone", UNPUBLISHED),
    ("artifacts/evaluation/*/files/*", "report show try", ()),
    ("artifacts/evaluation/*/files/*", "promote", UNDECIDED),
    ("artifacts/promotion/*/files/*", "report show notice", ()),
    ("artifacts/promotion/*/request.json", "approve promote", UNDECIDED),
    ("approvals/*.json", "approve promote", UNDECIDED),
    ("artifacts/final_model/*/files/*", "report show chat export", ("models/*",)),
    ("artifacts/engraved_model/*/files/*", "show-verify report", ()),
    ("artifacts/ablation/*", "ablate report", ()),
    ("models/*/model.sig", "export-verify", ()),
    ("models/*", "export chat fetch gc", ()),
    ("inputs/*", "align gc", ("artifacts/aligned_responses/*/manifest.json",)),
]


@pytest.fixture(scope="module")
def whole(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeStore]:
    directory = tmp_path_factory.mktemp("whole")
    yield build(directory, tiny_base_model)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def genuine(
    whole: WholeStore, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str], Told]:
    """What the readers of a kind say of the genuine object, asked once for each artifact."""
    known: dict[tuple[int, str], Told] = {}

    def ask(kind: int, key: str) -> Told:
        about = (kind, key.split("/")[1] if key.startswith("artifacts/") else "")
        if about not in known:
            _, readers, missing = KINDS[kind]
            prepare(whole, missing, key)
            known[about] = look(whole, readers, key, tmp_path_factory.mktemp("genuine"))
        return known[about]

    return ask


def kinds_of(key: str) -> list[int]:
    return [
        number for number, (pattern, _, _) in enumerate(KINDS) if fnmatch.fnmatchcase(key, pattern)
    ]


def look(whole: WholeStore, readers: str, key: str, out: Path) -> Told:
    """What each reader says."""
    artifact = key.split("/")[1] if key.startswith("artifacts/") else ""
    maker = PRODUCER[artifact].name if artifact in PRODUCER else "ablate"
    fill = {"out": out, "artifact": artifact, "public": whole.public}
    told = {}
    for name in readers.format(maker=maker).split():
        if name == "notice":
            status = status_to_show(whole.store, "r")
            new_notice(whole.store, status, unique="u", source="s", where="")
            continue
        arguments = [each.format(**fill) for each in COMMANDS[name]]
        told[name] = outcome(*arguments, "--config", str(whole.config))
        if name == "fetch" and told[name][0] == 0:
            url = ("--url", "http://127.0.0.1:9")
            told["probe"] = outcome("serving", "probe", f"{out}/served", *url)
    return {name: (code, text.replace(str(out), "OUT")) for name, (code, text) in told.items()}


def prepare(whole: WholeStore, missing: tuple[str, ...], key: str) -> None:
    """Put the store back, without what would keep the readers from the object."""
    whole.restore()
    unit = "/".join(key.split("/")[:3])
    for pattern in missing:
        for found in fnmatch.filter(whole.objects(), pattern.format(unit=unit)):
            if found != key:
                whole.store.delete(found)


def judged(told: Told, key: str, genuine: Told, *also: str, accident: bool = False) -> None:
    """Each reader ends as it does on the genuine store, after an accident with the same words, or
    names the object, or says one of `also`, with a documented exit code; none shows what steers a
    terminal."""
    name, unit = key.rpartition("/")[2].partition("-")[0], [*key.split("/"), ""][1:3]
    names = [name, *(each[:12] for each in unit if len(each) >= 12), *also]
    for reader, (code, text) in told.items():
        assert "\x1b]0;" not in text, reader
        same = genuine.get(reader, (0, ""))
        if code in (0, same[0]) and (text == same[1] or not accident or (reader, name) in QUIET):
            continue
        assert code in (0, *EXIT_CODES), (reader, code, text)
        assert any(each in text for each in names), (reader, code, text, same)


def test_every_object_of_a_store_has_readers_here(whole: WholeStore) -> None:
    whole.restore()
    assert [key for key in whole.objects() if not kinds_of(key)] == []
    assert {number for key in whole.objects() for number in kinds_of(key)} == set(range(len(KINDS)))


def test_a_corruption_has_no_effect_or_is_named(
    whole: WholeStore,
    genuine: Callable[[int, str], Told],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    for number in range(pytestconfig.getoption("--corruptions")):
        chance = random.Random(number)
        kind = number % len(KINDS)
        pattern, readers, missing = KINDS[kind]
        whole.restore()
        key = chance.choice(fnmatch.filter(whole.objects(), pattern))
        out = tmp_path / str(number)
        monkeypatch.setenv("SELFALIGN_CACHE_DIR", str(out / "cache"))
        expected = genuine(kind, key)
        prepare(whole, missing, key)
        before = whole.store.read(key)
        knows = chance.random() < 0.75
        data = forged(before, chance) if knows else damaged(before, chance)
        whole.store.write(key, data)
        if knows:
            believe(whole.store, key, data)
        try:
            judged(look(whole, readers, key, out), key, expected, accident=not knows)
        except BaseException as error:
            error.add_note(f"corruption {number} of {key}: {readers}")
            raise
        shutil.rmtree(out, ignore_errors=True)


# One of each sort that was a traceback.
HUGE = 10**400
FOUND: list[tuple[str, Change, str]] = [
    ("artifacts/evaluation/*/manifest.json", lambda v: v["identity"].update(judge="x"), "gc"),
    ("artifacts/candidates/*/manifest.json", lambda v: v["identity"].update(seeds=["x"]), "diff"),
    ("artifacts/final_model/*/manifest.json", lambda v: v["files"][0].update(bytes=HUGE), "status"),
    ("artifacts/prompts/*/manifest.json", lambda v: v["counts"].update(kept=HUGE), "report"),
    ("runs/r/status.json", lambda v: v["attempts"][0].update(finished_at="2026-01-01"), "notice"),
    ("runs/r/status.json", lambda v: v["attempts"][0].update(gpus=HUGE), "notice"),
    (
        "runs/r/status.json",
        lambda v: v["stages"][0].update(phase="Running", done=HUGE, total=1),
        "status",
    ),
    (
        "artifacts/evaluation/*/files/summary.json-*",
        lambda v: (
            [row.update(model="base_without_x") for row in v["metrics"]]
            and v.update(models=["base_without_x"])
        ),
        "report",
    ),
    (
        "artifacts/ablation/*/files/summary.json-*",
        lambda v: v["comparisons"][0].update(low=0.5, high=0.6, difference=None),
        "ablate",
    ),
    (
        "artifacts/promotion/*/files/verdict.json-*",
        lambda v: v["reasons"][0].update(
            measured=None, opponent=1.0, rule={"metric": "hhh", "against": "base", "min_ratio": 1.0}
        ),
        "report",
    ),
]


@pytest.mark.parametrize(("pattern", "change", "readers"), FOUND)
def test_a_forgery_that_once_was_a_traceback_is_named(
    whole: WholeStore, tmp_path: Path, pattern: str, change: Change, readers: str
) -> None:
    whole.restore()
    key = forge(whole.store, pattern, change)
    judged(look(whole, readers, key, tmp_path), key, {})


@pytest.mark.parametrize(("pattern", "change"), [*FORGERIES, *SHOWN])
def test_a_forged_object_is_named_and_nothing_else_happens(
    whole: WholeStore,
    genuine: Callable[[int, str], Told],
    tmp_path: Path,
    pattern: str,
    change: Change | bytes,
) -> None:
    refused = []
    for number, kind in enumerate(kinds_of(pattern)):
        _, readers, missing = KINDS[kind]
        whole.restore()
        (key, *_) = fnmatch.filter(whole.objects(), pattern)
        expected = genuine(kind, key)
        prepare(whole, missing, key)
        assert forge(whole.store, pattern, change) == key
        told = look(whole, readers, key, tmp_path / str(number))
        judged(told, key, expected, "promoted model", "does not hold for this configuration")
        refused += [name for name, (code, _) in told.items() if code > expected[name][0]]
    assert refused or (pattern, change) in SHOWN


@pytest.mark.parametrize(("pattern", "change"), dict(reversed(FORGERIES)).items())
def test_a_run_over_a_forged_object_has_no_traceback(
    whole: WholeStore, pattern: str, change: Change | bytes
) -> None:
    whole.restore()
    forge(whole.store, pattern, change)
    ran = selfalign("run", "--run-id", "a", "--max-attempts", "1", "--config", whole.config)
    assert ran.returncode in (0, *EXIT_CODES), ran.stderr
    assert "Traceback" not in ran.stderr
    assert "\x1b]0;" not in ran.stdout + ran.stderr
