"""The command line as a person and a program meet it: processes, exit codes, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from selfalign.cli.main import cli
from selfalign.errors import ConfigurationError, DataError
from selfalign.load import load_config
from selfalign.pipeline import STAGES, Stage
from tests.conftest import PROJECT
from tests.forked import selfalign
from tests.pipeline_world import forget_after, run_stages
from tests.whole_store import outcome


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evalute"], "No such command 'evalute'. (Did you mean one of: 'ablate', 'evaluate'?)"),
        (["gate", "tri"], "No such command 'tri'. Did you mean 'try'?"),
        (["chat", "Why?", "--temperature", "nan"], "nan is not a finite number"),
        (["chat", "Why?", "--temperature", "-1"], "-1.0 is not in the range x>=0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_slip_of_the_hand_is_told(arguments: list[str], told: str) -> None:
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 2
    assert told in shown.output


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_help_of_a_stage_names_the_artifact_it_writes(stage: Stage) -> None:
    shown = CliRunner().invoke(cli, [stage.name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert f"writes: {stage.writes}\n" in shown.output


def test_a_run_from_the_command_line_to_its_report_and_back(world: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "selfalign", "run", "--config", str(world), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["promoted"] is True
    again = selfalign("run", "--config", world)
    assert again.returncode == 0
    assert again.stdout.count("reused") == len(STAGES)

    status = json.loads(selfalign("status", "--config", world, "--json").stdout)
    assert status["phase"] == "Succeeded"
    assert {stage["phase"] for stage in status["stages"]} == {"Reused"}
    assert status["current"]["digest"] == result["artifacts"]["final_model"]["digest"]

    report = tmp_path / "report.html"
    written = selfalign("report", result["run"], "--config", world, "--out", report)
    assert written.returncode == 0, written.stderr
    html = report.read_text()
    for expected in ("Promoted", "helpful", "How do I vacuum the sofa?", "InstructGPT", "<svg"):
        assert expected in html
    assert "<script" not in html

    shown = selfalign("show", "aligned_responses", "--config", world, "--records")
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert rows
    assert all(row["rules"] for row in rows)
    verified = selfalign("show", "final_model", "--config", world, "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "match their SHA-256" in verified.stdout

    answer = selfalign("chat", "How do I dust it?", "--config", world, "--model", "final")
    assert answer.stdout.strip() == "To do that, take the soap."
    turns = selfalign(
        "chat", "--config", world, "--conversation", "--json", stdin="How do I dust it?\nWhy?\n"
    )
    assert [json.loads(line)["answer"] for line in turns.stdout.splitlines()] == [
        "To do that, take the soap."
    ] * 2
    out = tmp_path / "adapter"
    exported = selfalign("export", "--config", world, "--form", "adapter", "--to", out, "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["digest"] == status["current"]["digest"]
    names = {path.name for path in out.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "selfalign.json"}
    refused = selfalign("rollback", "--config", world)
    assert refused.returncode == 2
    assert "first ever promoted" in refused.stderr


def test_a_model_waits_for_a_person_who_approves_it_from_the_command_line(
    finished: Path, tmp_path: Path
) -> None:
    world = finished
    forget_after(load_config(world, ()).config, "evaluate")
    manual = ("--config", world, "--set", "promote.approval=manual")
    ran = selfalign("run", *manual, "--run-id", "first", "--json")
    assert ran.returncode == 10, ran.stderr
    told = json.loads(ran.stdout)
    assert told["reason"] == "AwaitingApproval"
    assert "selfalign approve first" in told["next_action"]
    status = json.loads(selfalign("status", "--config", world, "--json").stdout)
    assert (status["current"], status["verdict"]) == (None, None)
    report = tmp_path / "report.html"
    assert selfalign("report", "--config", world, "--out", report).returncode == 0
    assert "Passed the gate, awaits approval" in report.read_text()

    def decide(*arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "--config", str(world)])

    assert decide("approve", "first", "--as", " ").exit_code == 2
    assert decide("reject", "first").exit_code == 2  # without a reason
    assert decide("approve", "first", "--as", "anna").output.startswith(
        "run first: Approved by anna"
    )
    refused = decide("reject", "first", "--reason", "changed my mind").exception
    assert isinstance(refused, ConfigurationError)
    assert "decided already: Approved by anna" in refused.message
    again = selfalign("run", *manual)
    assert again.returncode == 0, again.stderr
    assert "Approved by anna at" in again.stdout
    assert json.loads(selfalign("status", "--config", world, "--json").stdout)["current"]


def test_after_a_rollback_run_and_report_say_what_is_current(
    finished: Path, tmp_path: Path
) -> None:
    world = finished
    first = json.loads(selfalign("run", "--config", world, "--json").stdout)
    other = ("--config", world, "--set", "clone.learning_rate=0.001")
    run_stages(load_config(world, other[3:]).config, "clone")
    second = json.loads(selfalign("run", *other, "--json").stdout)
    assert second["current"]["digest"] == second["artifacts"]["final_model"]["digest"]
    assert selfalign("rollback", "--config", world).returncode == 0

    again = json.loads(selfalign("run", *other, "--json").stdout)
    kept = first["artifacts"]["final_model"]
    assert again["promoted"] is True
    assert (again["current"]["key"], again["current"]["digest"]) == (kept["key"], kept["digest"])
    told = selfalign("run", *other).stdout
    expected = f"passed the gate earlier; current is {kept['key']} since the rollback"
    assert expected in told
    report = tmp_path / "report.html"
    assert selfalign("report", *other, "--out", report).returncode == 0
    assert "P" + expected[1:] in report.read_text()
    assert '<section class="verdict "' in report.read_text()
    assert (
        selfalign(
            "rollback", "--config", world, "--to", second["artifacts"]["final_model"]["key"]
        ).returncode
        == 0
    )
    assert "passed the gate earlier" not in selfalign("run", *other).stdout


def test_another_configuration_s_artifact_is_shown_only_by_its_key(finished: Path) -> None:
    world = finished
    other = selfalign("show", "candidates", "--config", world, "--set", "seed=777")
    assert other.returncode == 2
    assert "not made for this configuration" in other.stderr
    key = json.loads(selfalign("show", "candidates", "--config", world, "--json").stdout)["key"]
    assert f"published keys of candidates: {key}" in other.stderr
    # a wrong key hides none of those there are, and a store alone shows its only one
    assert f"candidates: {key}" in selfalign("show", "candidates", "z", "--config", world).stderr
    store = world.parent / "store"
    alone = selfalign("show", "candidates", "--store", store, "--json", cwd=store)
    assert json.loads(alone.stdout)["key"] == key


def test_a_corrupt_part_is_named_and_never_read(world: Path) -> None:
    run_stages(load_config(world, ()).config, "instruct")
    part = next((world.parent / "store").rglob("general-*.zst"))
    part.write_bytes(part.read_bytes()[:-1])
    done = selfalign("curate", "--config", world)
    assert done.returncode == 3
    assert part.name in done.stderr
    assert "expected SHA-256" in done.stderr
    assert not list((world.parent / "store").rglob("prompts/*/manifest.json"))
    verified = selfalign("show", "candidates", "--config", world, "--verify")
    assert verified.returncode == 3


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"algin": {}}, 2, "did you mean 'align'"),
        ({"base_model": {"path": "absent"}}, 2, "not a directory"),
        ({"seeds": {"directory": "seeds", "principles": 16}}, 2, "principles.txt"),
        ({"evaluate": {"heldout": "absent.jsonl"}}, 2, "does not exist"),
        ({"align": {"sampling": {"temperature": "hot"}}}, 2, "align.sampling.temperature"),
    ],
)
def test_bad_configuration_ends_at_once_with_its_exit_code(
    world: Path, changes: dict[str, object], code: int, expected: str
) -> None:
    raw = yaml.safe_load(world.read_text())
    world.write_text(yaml.safe_dump({**raw, **changes}))
    assert_refused(world, code, expected)


def assert_refused(world: Path, code: int, expected: str) -> None:
    """A run ends so, and has begun nothing."""
    ended, told = outcome("run", "--config", str(world))
    assert ended == code
    assert expected in told
    assert "remedy: " in told
    assert not (world.parent / "store" / "artifacts").exists()


def test_a_run_s_name_is_checked_before_anything_is_read() -> None:
    error = CliRunner().invoke(cli, ["run", "--config", "missing", "--run-id", "A b"]).exception
    assert isinstance(error, ConfigurationError)
    assert "run name 'A b'" in error.message


def test_errors_are_json_for_programs(world: Path) -> None:
    done = selfalign("status", "--config", world, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)
    assert error["exit_code"] == 2
    assert error["remedy"]


def test_a_truncated_model_ends_the_run_before_anything_starts(
    world: Path, tiny_base_model: Path
) -> None:
    raw = yaml.safe_load(world.read_text())
    broken = world.parent / "broken"
    broken.mkdir()
    for file in tiny_base_model.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[:200] if "safetensors" in file.name else data)
    raw["base_model"] = {"path": "broken"}
    raw["engine"] = {"kind": "transformers", "batch_size": 4}
    world.write_text(yaml.safe_dump(raw))
    assert_refused(world, 3, "model.safetensors: damaged or truncated at 200 bytes")


def test_temporary_failures_are_tried_again_and_then_told(world: Path) -> None:
    raw = yaml.safe_load(world.read_text())
    raw["engine"]["options"]["fail_after"] = 0
    world.write_text(yaml.safe_dump(raw))
    done = selfalign("run", "--config", world, "--max-attempts", "2")
    assert done.returncode == 70
    assert done.stdout.count("started  candidates") == 2
    status = json.loads(selfalign("status", "--config", world, "--json").stdout)
    assert status["phase"] == "Failed"
    assert status["reason"] == "AttemptsExhausted"
    assert status["stages"][0]["attempts"] == 2


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_run_outlives_the_reader_of_its_output(world: Path, json_option: tuple[str, ...]) -> None:
    raw = yaml.safe_load(world.read_text())
    raw["engine"]["options"]["fail_after"] = 0
    world.write_text(yaml.safe_dump(raw))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "selfalign", "run", "--config", str(world), "--max-attempts", "1",
         "--until", "instruct", *json_option],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "selfalign", "status", "--config", str(world), *json_option],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("streams", [">/dev/full", ">&- 2>&-"])
def test_an_error_has_its_exit_code_where_no_stream_takes_it(tmp_path: Path, streams: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m selfalign status --store {tmp_path} --json {streams}",
        shell=True, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert ("no run was made yet" in done.stderr) == ("2>" not in streams)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_what_is_done_and_the_next_call_resumes(
    world: Path, number: int, code: int
) -> None:
    raw = yaml.safe_load(world.read_text())
    raw["engine"]["options"]["delay_seconds"] = 0.2
    world.write_text(yaml.safe_dump(raw))
    process = subprocess.Popen(
        [sys.executable, "-m", "selfalign", "run", "--config", str(world), "--until", "instruct"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    store = world.parent / "store"
    deadline = time.monotonic() + 300  # a busy machine imports slowly
    while not list(store.rglob("general-*.json")):
        assert time.monotonic() < deadline, "no part was committed"
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert "finished work is kept" in errors
    status = json.loads(selfalign("status", "--config", world, "--json").stdout)
    assert status["phase"] == "Interrupted"
    kept = {p.name: p.read_bytes() for p in store.rglob("general-*.zst")}
    assert kept
    done = selfalign("run", "--config", world, "--until", "instruct")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((next(store.rglob(name))).read_bytes() == data for name, data in kept.items())


def test_two_workers_share_a_stage(world: Path) -> None:
    done = selfalign(
        "run", "--config", world, "--until", "align", "--set", "instruct.num_shards=2",
        "--set", "align.num_shards=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((world.parent / "store").rglob("shards/*-of-00002.json"))) == 4


def test_config_says_where_each_value_is_from(world: Path) -> None:
    done = selfalign("config", "--config", world, "--set", "seed=3", "--json")
    values = json.loads(done.stdout)
    assert values["seed"] == {"value": 3, "origin": "--set"}
    assert values["align.min_answer_characters"]["origin"] == "file"
    assert values["align.sampling.top_p"]["origin"] == "default"


def test_the_store_proves_its_conditional_writes(world: Path) -> None:
    done = selfalign("store", "check", "--config", world, "--json")
    assert done.returncode == 0, done.stderr
    assert all(result["ok"] for result in json.loads(done.stdout))


def test_inputs_pass_through_the_store_with_the_same_identities(
    world: Path, tmp_path: Path
) -> None:
    resolved = tmp_path / "resolved.yaml"
    assert selfalign("inputs", "push", "--config", world, "--out", resolved).returncode == 0
    assert "store:inputs/seeds/" in resolved.read_text()
    first = selfalign("run", "--config", world, "--until", "curate")
    assert first.returncode == 0, first.stdout + first.stderr
    # elsewhere, with nothing but the store: what the first one made is found
    second = selfalign("run", "--config", resolved, "--until", "curate", cwd=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("reused") == 2


def test_two_processes_train_together_and_one_publishes(finished: Path) -> None:
    """With --run, as the controller starts it: torchrun has an option that begins so."""
    world = finished
    forget_after(load_config(world, ()).config, "align")
    done = selfalign(
        "engrave", "--config", world, "--set", "engrave.num_processes=2", "--run", "toy",
        "--set", "engrave.micro_batch_size=2", SELFALIGN_LOG="json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count('"artifact.published"') == 1
    assert len(list((world.parent / "store").rglob("engraved_model/*/manifest.json"))) == 1


def test_a_mistake_in_the_last_stage_ends_the_run_before_the_first(world: Path) -> None:
    rules = "promote.rules=[{metric: heldout.algned, against: base}]"
    code, told = outcome("run", "--config", str(world), "--set", rules)
    assert code == 2
    assert "heldout.algned" in told
    assert not (world.parent / "store" / "runs").exists()


def test_a_wrong_command_line_answers_json_with_json() -> None:
    for arguments in (["run", "--json", "--max-attempts", "0"], ["frob", "--json"]):
        ran = selfalign(*arguments)
        assert ran.returncode == 2
        assert json.loads(ran.stdout)["exit_code"] == 2
    assert selfalign("align", JOB_COMPLETION_INDEX="two").returncode == 2


def test_what_cannot_be_written_is_told_with_its_exit_code(world: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "selfalign", "config", "--config", str(world)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=PROJECT,
        )  # fmt: skip
    assert (ran.returncode, "no space" in ran.stderr) == (74, True), ran.stderr
    (tmp_path / "x").write_text("")
    shown = selfalign("inputs", "push", "--config", world, "--out", tmp_path / "x" / "y.yaml")
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr


def test_a_question_that_is_no_text_is_refused_and_no_traceback(world: Path) -> None:
    asked = ("chat", "--config", str(world), "--model", "base")
    for bad in (b"caf\xe9\n", b"\xff\n"):
        result = CliRunner().invoke(cli, asked, input=bad)
        assert isinstance(result.exception, DataError), result.exception
        assert "not UTF-8" in str(result.exception)
    result = CliRunner().invoke(cli, [*asked, "caf\udce9"])
    assert isinstance(result.exception, DataError), result.exception
    assert CliRunner().invoke(cli, [*asked, ""]).exit_code == 2


def test_a_question_that_cannot_be_put_does_not_keep_the_others_from_an_answer(world: Path) -> None:
    asked = ["chat", "--config", str(world), "--model", "base", "--json"]
    result = CliRunner().invoke(cli, asked, input="How?\nno\0text\nWhy?\n")
    answered = [json.loads(line)["question"] for line in result.stdout.splitlines()]
    assert answered == ["How?", "Why?"]
    assert "question 2: " in result.stderr
    assert isinstance(result.exception, DataError)
    assert "1 of 3 questions" in str(result.exception)


def test_piped_text_is_not_cut(world: Path) -> None:
    deep = "/" + "/".join(["a-directory-with-a-long-name"] * 8)
    shown = selfalign("config", "--config", world, "--set", f"store={deep}")
    assert deep in shown.stdout


def test_a_configuration_that_lies_here_does_not_stop_a_look_at_another_store(
    tmp_path: Path,
) -> None:
    (tmp_path / "selfalign.yaml").write_text("base_model: [")
    (tmp_path / "store").mkdir()
    implicit = selfalign("status", "--store", tmp_path / "store", cwd=tmp_path)
    (error,) = [line for line in implicit.stderr.splitlines() if line.startswith("error:")]
    assert "no run was made yet" in error
    explicit = selfalign(
        "status", "--store", tmp_path / "store", "--config", "missing.yaml", cwd=tmp_path
    )
    assert explicit.returncode == 2
    assert "missing.yaml" in explicit.stderr


@pytest.mark.parametrize(
    ("typed", "expected"), [(["sho"], "show"), (["show", "aligned"], "aligned_responses")], ids=str
)
def test_the_shell_completes_commands_and_artifacts(
    tmp_path: Path, typed: list[str], expected: str
) -> None:
    program = tmp_path / "selfalign"
    program.write_text(
        f"#!{sys.executable}\nfrom selfalign.cli.main import main\nmain()\n", encoding="utf-8"
    )
    program.chmod(0o755)
    script = (
        'eval "$(_SELFALIGN_COMPLETE=bash_source selfalign)"\n'
        f"COMP_WORDS=(selfalign {' '.join(typed)}); COMP_CWORD={len(typed)}\n"
        '_selfalign_completion selfalign; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.stdout.split() == [expected], done.stderr
