"""Texts that people or models bring are read within bounds, or end in a clear error."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import regex
import structlog
from click.testing import CliRunner

from selfalign.cli.logs import for_people
from selfalign.cli.main import cli
from selfalign.cli.options import new_console, print_json
from selfalign.config import SeedsConfig
from selfalign.errors import ConfigurationError, DataError, printable
from selfalign.evaluation.datasets import load_truthfulqa
from selfalign.evaluation.generation import PatternTooSlow, judge_answer
from selfalign.evaluation.items import HeldoutItem
from selfalign.inputs import cache_directory
from selfalign.load import load_config
from selfalign.run.record import Attempt, RunStatus, StageState
from selfalign.run.view import next_action, show_status
from selfalign.seeds import load_seeds
from selfalign.store.s3_errors import redact
from selfalign.telemetry import configure_logging, log, parse_event

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: " + "[" * 5000,
        "a: &a {b: *a}",
        f"a: &a [{'1, ' * 20_000}*a]",
        "a: " + "x" * (2 << 20),
        "a: 1" * 400_000,
    ],
    ids=["aliases", "nested", "cycle", "wide cycle", "long", "keys"],
)
def test_a_hostile_configuration_is_refused_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "selfalign.yaml"
    path.write_text(text)
    started = time.process_time()  # whatever else the machine is doing
    with pytest.raises(ConfigurationError, match=r"selfalign\.yaml"):
        load_config(path)
    assert time.process_time() - started < 20


def test_an_alias_that_expands_to_little_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "selfalign.yaml"
    path.write_text("base_model: {path: &p x, revision: *p}\n")
    assert load_config(path).config.base_model.revision == "x"


@pytest.mark.parametrize("line", ["[" * 100_000, "1" * 5000, '{"a":' * 2000])
def test_a_hostile_line_of_the_seeds_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "topic_guided.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=r"topic_guided\.jsonl:1"):
        load_seeds(SeedsConfig(directory=tmp_path))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]"])
def test_a_hostile_evaluation_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mc_task.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"mc_task\.json"):
        load_truthfulqa(path)


def test_a_pattern_that_never_ends_is_named() -> None:
    item = HeldoutItem("slow", "any", "?", all_of=(regex.compile("(a|aa)+$"),))
    with pytest.raises(PatternTooSlow, match=r"pattern '\(a\|aa\)\+\$'"):
        judge_answer(item, "a" * 60 + "!")


@pytest.mark.parametrize("json_lines", [True, False])
def test_no_local_and_no_long_value_reaches_the_log(
    capsys: pytest.CaptureFixture[str], json_lines: bool
) -> None:
    before = structlog.get_config()
    configure_logging(json_lines=json_lines)
    try:
        secret = "s3cr3t" * 1000  # noqa: F841 - a local that a traceback with locals would show
        try:
            raise ValueError("broken http://user:pa55@host" + "y" * 100_000)
        except ValueError:
            log.exception("it.failed", text="x" * 1_000_000, deep={"a": ["z" * 100_000]})
    finally:
        structlog.configure(**before)
    line = capsys.readouterr().err
    assert "broken" in line
    assert "s3cr3t" not in line
    assert "pa55" not in line
    assert len(line) < 20_000
    assert parse_event(line) is None or json.loads(line)["event"] == "it.failed"


def test_a_secret_that_the_cut_goes_through_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    configure_logging(json_lines=True)
    try:
        for end in (2048, 4096):
            text = "x " * ((end - 20) // 2) + "http://user:pa55word@host/ "
            log.info("it.failed", error=text + "y" * 9000)
    finally:
        structlog.configure(**before)
    shown = capsys.readouterr().err
    assert "pa55" not in shown
    assert "http://…" in shown


def test_a_long_text_full_of_urls_is_searched_for_secrets_at_once() -> None:
    started = time.process_time()
    assert printable(str(DataError("s://" * 250_000)))
    assert time.process_time() - started < 20


def test_what_a_model_wrote_does_not_steer_a_terminal() -> None:
    text = "safe\n\ttext é 你 \x1b[31m\x9b\u202eevil\r\x07"
    shown = printable(text)
    assert shown == "safe\n\ttext é 你 \\x1b[31m\\x9b\\u202eevil\\r\\x07"
    assert printable(shown) == shown
    line = json.dumps({"event": "stage.failed", "error": "\x1b]0;x\x07"})
    assert "\x1b" not in printable(for_people("", line))


def test_json_steers_no_terminal_and_reads_back_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\x1b[31m\x9b\u202eevil é 你 \x7f\n"
    print_json({"a": text})
    configure_logging(json_lines=True)
    log.info("it.failed", error=text)
    shown = capsys.readouterr()
    for each in (shown.out, shown.err):
        assert not set(each) & set("\x1b\x9b\u202e\x7f")
        assert "é 你" in each
    assert json.loads(shown.out) == {"a": text}
    assert json.loads(shown.err)["error"] == text


def test_the_configuration_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "selfalign.yaml"
    path.write_text("base_model: {path: x}\nengine: {options: {hf_token: hf_abc, api_key: k3y}}\n")
    output = CliRunner().invoke(cli, ["config", "--config", str(path)]).output
    assert "engine.options.hf_token" in output
    assert re.search(r"align\.sampling\.max_new_tokens +512", output)
    assert "hf_abc" not in output
    assert "k3y" not in output


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, "[1]", "3", "no JSON", ""])
def test_a_line_that_is_no_event_of_a_log_is_none(line: str) -> None:
    assert parse_event(line) is None
    assert parse_event('{"event": "stage.started"}') == {"event": "stage.started"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pa@ss/w@rd@host/path", "http://…@host/path"),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer …"),
        ("token hf_AbCdEfGhIjKl given", "token hf_… given"),
        ("engine.options.hf_overrides", "engine.options.hf_overrides"),
        ("s3://bucket/prefix and a@b.c", "s3://bucket/prefix and a@b.c"),
    ],
)
def test_an_error_and_a_log_line_show_no_secret(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert DataError(text, remedy=text).remedy == DataError(text).message == shown
    assert not re.search(r"w@rd|abc\.def|hf_Ab", redact(text))
    configure_logging(json_lines=True)
    log.info("it.failed", error=text, deep=[{"a": text}])
    event = json.loads(capsys.readouterr().err)
    assert (event["error"], event["deep"]) == (shown, [{"a": shown}])


def test_a_name_that_is_no_utf_8_is_shown_escaped(capsysbinary: Any) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert printable(name) == "caf\\udce9"
    print_json({"path": name})
    assert json.loads(capsysbinary.readouterr().out) == {"path": name}


def test_markup_and_emoji_in_names_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "[/x] :cd: \x1b[2J"
    state = StageState(name="align", phase="Failed", key=None, message=odd)
    attempt = Attempt(
        stage=odd, key="k", number=1, condition="Failed", cause="permanent", message=odd
    )
    status = RunStatus(
        id=odd, phase="Failed", message=odd, started_at=odd, progress=odd, stages=[state],
        attempts=[attempt],
    )  # fmt: skip
    show_status(new_console(), status, odd, odd, {})
    shown = capsys.readouterr().out
    assert shown.count("[/x] :cd: \\x1b[2J") == 8


def test_the_next_command_can_be_pasted() -> None:
    status = RunStatus(id="a; rm -rf ~", phase="Succeeded")
    assert next_action(status).endswith("selfalign report 'a; rm -rf ~'")


def test_a_user_without_a_home_is_told_where_to_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "SELFALIGN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    with pytest.raises(ConfigurationError, match="no home directory") as caught:
        cache_directory()
    assert "SELFALIGN_CACHE_DIR" in str(caught.value)
