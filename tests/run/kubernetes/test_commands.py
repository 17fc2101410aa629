"""`selfalign submit`, `selfalign cluster ...` and `selfalign controller` over HTTP."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from selfalign.cli import main as command_line
from selfalign.cli.logs import for_people
from selfalign.cli.main import cli
from selfalign.errors import SelfAlignError
from selfalign.inputs import push
from selfalign.run.executors.kubernetes import logs
from selfalign.run.executors.kubernetes.cluster import ClusterUnavailable, Resource
from selfalign.run.executors.kubernetes.crd import PLATFORM_CONFIG
from selfalign.run.executors.kubernetes.logs import Follower
from selfalign.seeds import SEED_FILES
from selfalign.store.local import LocalStore

from .api_server import ApiServer
from .worlds import PROJECT, World, complete, config_map, ended_pod, fail, nested, platform_values

PROGRESS = {"event": "stage.progress", "unit": "prompts", "per_second": 2.0}


class Laptop:
    """A person's command line, with a kubeconfig for the world behind HTTP."""

    def __init__(self, world: World, kubeconfig: Path) -> None:
        self.world = world
        self.kubeconfig = kubeconfig

    def run(self, *arguments: str, ok: bool = True) -> Result:
        result = CliRunner().invoke(
            cli, [*arguments, "--kubeconfig", str(self.kubeconfig)], standalone_mode=False
        )
        if ok and result.exception is not None:
            raise result.exception
        return result

    def fails(self, *arguments: str) -> SelfAlignError:
        error = self.run(*arguments, ok=False).exception
        assert isinstance(error, SelfAlignError), error
        return error

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    world = World()
    server = ApiServer(world.cluster)
    server.world = world  # type: ignore[attr-defined]
    yield server
    server.close()


@pytest.fixture
def laptop(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.05)
    return Laptop(server.world, server.kubeconfig(tmp_path / "kubeconfig"))  # type: ignore[attr-defined]


@pytest.fixture
def world(laptop: Laptop) -> World:
    return laptop.world


# submit


def test_submit_makes_a_run_with_the_platform_s_configuration(laptop: Laptop) -> None:
    assert laptop.json("submit", "--name", "toy") == {"run": "toy", "namespace": "selfalign"}
    assert laptop.world.run()["spec"] == {}
    laptop.world.to_the_end()
    assert laptop.world.status()["verdict"] == "Promoted"


def test_submit_without_a_name_makes_one_that_fits(laptop: Laptop) -> None:
    name = laptop.json("submit")["run"]
    assert len(name) <= 40
    assert laptop.world.run(name)


def test_submit_passes_on_what_is_asked_for(laptop: Laptop) -> None:
    laptop.run(
        "submit", "--name", "toy", "--set", "align.num_shards=2", "--set", "seed=7", "--suspend",
        "--max-attempts", "5", "--queue", "night", "--priority", "low", "--ttl-seconds", "60",
    )  # fmt: skip
    assert laptop.world.run()["spec"] == {
        "config": {"align": {"num_shards": 2}, "seed": 7},
        "suspend": True,
        "maxAttempts": 5,
        "queueName": "night",
        "priority": "low",
        "ttlSecondsAfterFinished": 60,
    }


def test_submit_uploads_what_a_configuration_names_and_leaves_defaults_to_the_stages(
    laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "bucket")
    monkeypatch.setattr("selfalign.cli.submit.open_store", lambda _url: store)
    local = {"directory": str(PROJECT / "seeds")}
    values = platform_values(store="s3://bucket/x", align={"records_per_part": 64}, seeds=local)
    platform = config_map(PLATFORM_CONFIG, platform_values(store="s3://bucket/x"))
    laptop.world.cluster.patch("configmaps", PLATFORM_CONFIG, {"data": platform["data"]})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    laptop.run("submit", "--config", str(path), "--name", "toy")
    config = laptop.world.run()["spec"]["config"]
    assert config["seeds"]["directory"].startswith("store:inputs/seeds/")
    assert store.exists(config["seeds"]["directory"].removeprefix("store:") + "/manifest.json")
    # The stage's template says how many shards: a default here would overrule it.
    assert config["align"] == {"records_per_part": 64}
    assert "engrave" not in config


def test_submit_takes_the_platform_s_store_where_the_file_names_none(
    laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = config_map(PLATFORM_CONFIG, platform_values(store="s3://bucket/night"))
    laptop.world.cluster.patch("configmaps", PLATFORM_CONFIG, {"data": platform["data"]})
    opened: list[str] = []

    def opener(url: str) -> LocalStore:
        opened.append(url)
        return LocalStore(tmp_path / "bucket")

    monkeypatch.setattr("selfalign.cli.submit.open_store", opener)
    values = platform_values(seeds={"directory": str(PROJECT / "seeds")})
    del values["store"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    laptop.run("submit", "--config", str(path), "--name", "toy")
    assert opened == ["s3://bucket/night"]
    assert laptop.world.run()["spec"]["config"]["store"] == "s3://bucket/night"


def test_submit_refuses_a_store_that_pods_cannot_reach(laptop: Laptop, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(platform_values(store="here")))
    error = laptop.fails("submit", "--config", str(path))
    assert (error.exit_code, "pods cannot reach it" in error.message) == (2, True)


def test_submit_refuses_a_wrong_value_before_anything_is_made(laptop: Laptop) -> None:
    error = laptop.fails("submit", "--name", "toy", "--set", "align.temprature=1")
    assert error.exit_code == 2
    assert "temprature" in error.message
    assert laptop.world.cluster.list("alignmentruns") == []


def test_submit_refuses_a_name_that_is_taken_or_does_not_fit(laptop: Laptop) -> None:
    laptop.run("submit", "--name", "toy")
    assert "exists" in laptop.fails("submit", "--name", "toy").message
    assert "at most 40" in laptop.fails("submit", "--name", "n" * 41).message


def test_submit_without_a_platform_says_how_to_install_it(laptop: Laptop) -> None:
    found = laptop.world.cluster.get("configmaps", PLATFORM_CONFIG)
    laptop.world.cluster.delete("configmaps", PLATFORM_CONFIG, uid=found["metadata"]["uid"])
    error = laptop.fails("submit")
    assert error.remedy == "make deploy NAMESPACE=selfalign"


def test_nightly_is_refused_with_exit_code_2_and_an_event_while_one_goes_on(laptop: Laptop) -> None:
    first = laptop.json("submit", "--nightly")["run"]
    assert first.startswith("nightly-")
    error = laptop.fails("submit", "--nightly")
    assert error.exit_code == 2
    assert f"{first} has not ended" in error.message
    assert [reason for reason, _ in laptop.world.events()] == ["NightlyRefused"]
    (event,) = laptop.world.cluster.list("events")
    assert event["involvedObject"]["name"] == first


def test_nightly_submitted_again_by_the_same_job_finds_its_own_run(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that was killed after it made the run, or never heard the answer, is tried again."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("HOSTNAME", "selfalign-nightly-29384756-abcde")
    first = laptop.json("submit", "--nightly")["run"]
    monkeypatch.setenv("HOSTNAME", "selfalign-nightly-29384756-fghij")
    assert laptop.json("submit", "--nightly")["run"] == first
    monkeypatch.setenv("HOSTNAME", "selfalign-nightly-29384999-klmno")
    assert laptop.fails("submit", "--nightly").exit_code == 2


def test_nightly_from_a_pod_that_lives_on_makes_a_run_each_night(
    laptop: Laptop, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("HOSTNAME", "notebook-0")
    first = laptop.json("submit", "--nightly")["run"]
    assert laptop.fails("submit", "--nightly").exit_code == 2
    world.to_the_end(first)
    assert laptop.json("submit", "--nightly")["run"] != first


def test_a_fresh_seed_is_the_date_and_a_seed_of_one_s_own_wins(laptop: Laptop) -> None:
    nightly = laptop.json("submit", "--nightly", "--fresh-seed")["run"]
    config = laptop.world.cluster.get("alignmentruns", nightly)["spec"]["config"]
    assert config == {"seed": int(nightly.split("-")[1])}
    laptop.json("submit", "--name", "mine", "--fresh-seed", "--set", "seed=5")
    assert laptop.world.cluster.get("alignmentruns", "mine")["spec"]["config"] == {"seed": 5}


def test_report_and_rollback_find_the_platform_s_store(laptop: Laptop, tmp_path: Path) -> None:
    store = tmp_path / "bucket"
    body = config_map(PLATFORM_CONFIG, platform_values(store=str(store)))
    laptop.world.cluster.patch("configmaps", PLATFORM_CONFIG, {"data": body["data"]})
    for command in ("rollback", "report"):
        assert str(store) in laptop.fails(command).message


def test_nightly_takes_no_file_and_no_name(laptop: Laptop) -> None:
    assert laptop.fails("submit", "--nightly", "--name", "x").exit_code == 2


# status


def test_status_tells_stage_cause_and_next_action(laptop: Laptop, world: World) -> None:
    world.submit()
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=2,
         message="general.txt:3: empty line\nremedy: delete the line")  # fmt: skip
    world.step()
    output = laptop.run("status", "-n", "selfalign").stdout
    assert "run toy in selfalign: Failed, 0/8 stages" in output
    assert "instruct attempt 1: permanent (exit code 2): general.txt:3: empty line" in output
    (cause,) = [line for line in output.splitlines() if line.startswith("cause")]
    assert "general.txt:3: empty line" in cause
    (following,) = [line for line in output.splitlines() if line.startswith("next")]
    assert "delete the line" in following
    assert "submit a new run" in following


def test_status_adds_up_what_the_pods_say(laptop: Laptop, world: World) -> None:
    world.submit()
    world.step()
    world.cluster.set_status("jobs", "toy-instruct-1", {"active": 2, "succeeded": 1})
    for index, (done, eta) in enumerate([(10, 5.0), (4, 4000.0)]):
        pod = running_pod(world, "toy-instruct-1", str(index))
        event = {**PROGRESS, "done": done, "total": 20, "eta_seconds": eta}
        world.cluster.logs[pod] = ["not json", json.dumps(event), '{"event": "part.committed"}']
    view = laptop.json("status", "toy", "-n", "selfalign", "--logs")
    stage = view["stages"][0]
    assert stage["progress"] == {
        "done": 14, "total": 40, "unit": "prompts", "per_second": 4.0, "eta_seconds": 4000.0,
    }  # fmt: skip
    assert (view["attempts"][0]["done"], view["attempts"][0]["total"]) == (1, 3)
    assert len(view["lines"]) == 6
    output = laptop.run("status", "-n", "selfalign").stdout
    assert "14/40 prompts, 1/3 shards" in output
    assert "1 h 06 min" in output
    assert "selfalign logs instruct --run toy -n selfalign --follow" in output


def test_status_chooses_the_newest_run_that_goes_on(laptop: Laptop, world: World) -> None:
    world.submit("first")
    world.now += timedelta(seconds=10)
    world.submit("second", config={"wrong": 1})
    world.step("first")
    world.step("second")
    assert laptop.json("status", "-n", "selfalign")["id"] == "first"
    assert laptop.json("status", "second", "-n", "selfalign")["phase"] == "Failed"


def test_status_of_a_run_that_does_not_exist_names_those_that_do(
    laptop: Laptop, world: World
) -> None:
    assert "selfalign submit" in str(laptop.fails("status", "-n", "selfalign").remedy)
    world.submit()
    error = laptop.fails("status", "other", "-n", "selfalign")
    assert error.remedy == "the latest are toy"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda world: None, "controller is not running"),
        (lambda world: world.step(), "to watch it: selfalign logs instruct"),
        (lambda world: (suspend(world), world.step()), '"suspend":false'),
        (lambda world: world.to_the_end(), "selfalign report toy"),
    ],
)
def test_the_next_action_fits_the_situation(
    laptop: Laptop, world: World, make: Callable[[World], object], expected: str
) -> None:
    world.submit()
    make(world)
    assert expected in laptop.json("status", "-n", "selfalign")["next_action"]


def suspend(world: World) -> None:
    world.cluster.patch("alignmentruns", "toy", {"spec": {"suspend": True}})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "restore or delete the artifact"),
        (4, "access to the store"),
        (71, "batch_size"),
        (74, "cache and scratch"),
        (1, "log of its stage"),
    ],
)
def test_every_exit_code_has_a_next_action(
    laptop: Laptop, world: World, code: int, words: str
) -> None:
    world.submit(maxAttempts=1)
    world.step()
    fail(world.cluster, "toy-instruct-1", world.now, code=code, message="what happened")
    world.step()
    view = laptop.json("status", "-n", "selfalign")
    assert words in view["next_action"]
    assert "what happened" in view["message"]


# logs


def running_pod(world: World, job: str, index: str, *, ended: int | None = None) -> str:
    pod = ended_pod(world.cluster, job, world.now, code=ended or 0, suffix=index, index=index)
    name = str(pod["metadata"]["name"])
    if ended is None:
        running = [{"name": "stage", "state": {"running": {}}}]
        world.cluster.set_status("pods", name, {"phase": "Running", "containerStatuses": running})
    return name


def test_logs_are_passed_on_as_they_are_where_a_program_reads(laptop: Laptop, world: World) -> None:
    world.submit()
    world.step()
    for index in ("0", "1"):
        pod = running_pod(world, "toy-instruct-1", index)
        world.cluster.logs[pod] = [f'{{"event": "e{number}", "shard": {index}}}' for number in "12"]
    assert len(laptop.run("logs", "-n", "selfalign", "instruct").stdout.splitlines()) == 4
    lines = laptop.run("logs", "-n", "selfalign", "instruct", "--tail", "1").stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["e2", "e2"]


def test_a_log_line_for_people_is_short() -> None:
    event = {"timestamp": "2026-11-01T01:02:03.4Z", "level": "info", "run": "toy", **PROGRESS}
    line = for_people("2", json.dumps({**event, "done": 7, "eta_seconds": None}))
    assert line == "[2] 01:02:03 stage.progress       unit=prompts per_second=2.0 done=7"
    assert for_people("", "plain") == "plain"
    assert for_people("1", '["a"]') == '[1] ["a"]'


def test_logs_of_a_stage_without_a_job_say_why_there_are_none(laptop: Laptop, world: World) -> None:
    world.submit()
    world.step()
    assert "has not begun" in laptop.fails("logs", "-n", "selfalign", "align").message


def test_the_log_of_a_store_s_run_is_asked_of_no_cluster(
    laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFALIGN_NAMESPACE", "selfalign")
    error = laptop.fails("logs", "instruct", "--store", str(tmp_path))
    assert "no run was made yet" in error.message


def follow(laptop: Laptop, *arguments: str, then: Callable[[], None]) -> Result:
    """Run a command that follows, and let something happen once it does."""
    timer = threading.Timer(0.5, then)
    timer.start()
    try:
        return laptop.run(*arguments)
    finally:
        timer.join()


def test_following_ends_with_the_stage_s_exit_code(laptop: Laptop, world: World) -> None:
    world.submit()
    world.step()
    pod = running_pod(world, "toy-instruct-1", "0", ended=71)
    world.cluster.logs[pod] = ["working", "out of memory"]
    result = follow(
        laptop, "logs", "-n", "selfalign", "instruct", "--follow",
        then=lambda: fail(world.cluster, "toy-instruct-1", world.now, code=71, pods=False),
    )  # fmt: skip
    assert result.return_value == 71
    assert result.stdout.splitlines() == ["working", "out of memory"]
    assert "Job toy-instruct-1 failed" in result.stderr


def test_a_log_that_broke_off_is_followed_from_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.submit()
    world.step()
    running_pod(world, "toy-instruct-1", "0", ended=0)
    monkeypatch.setattr("selfalign.run.executors.kubernetes.logs._POLL_SECONDS", 0.01)
    broken = [True]

    def log_lines(_pod: str, **_options: Any) -> Iterator[str]:
        yield from ["one", "two"]
        if broken:
            broken.clear()
            raise ClusterUnavailable("the API server restarts")
        yield "three"
        complete(world.cluster, "toy-instruct-1", world.now)

    monkeypatch.setattr(world.cluster, "log_lines", log_lines)
    shown: list[str] = []
    told: list[str] = []
    follower = Follower(world.cluster, lambda _shard, line: shown.append(line), told.append)
    assert follower.to_the_end("toy-instruct-1") == 0
    assert shown == ["one", "two", "three"]
    assert "broke off" in told[0]


def test_following_a_job_that_completes_is_0_and_one_that_is_deleted_75(
    laptop: Laptop, world: World
) -> None:
    world.submit()
    world.step()
    done = follow(laptop, "logs", "-n", "selfalign", "instruct", "-f",
                  then=lambda: complete(world.cluster, "toy-instruct-1", world.now))  # fmt: skip
    assert done.return_value == 0
    world.step(after=60)
    assert world.jobs() == ["toy-instruct-1", "toy-instruct-2"]
    uid = world.cluster.get("jobs", "toy-instruct-2")["metadata"]["uid"]
    gone = follow(laptop, "logs", "-n", "selfalign", "instruct", "-f",
                  then=lambda: world.cluster.delete("jobs", "toy-instruct-2", uid=uid))  # fmt: skip
    assert gone.return_value == 75
    assert "was deleted" in gone.stderr


# start-stage


def test_a_stage_started_by_hand_is_an_attempt_like_any_other(laptop: Laptop, world: World) -> None:
    world.submit(suspend=True)
    world.step()
    assert world.jobs() == []
    result = laptop.run("start-stage", "instruct", "--run", "toy", "--no-follow")
    assert result.return_value == 0
    assert world.jobs() == ["toy-instruct-1"]
    world.finish("toy-instruct-1")
    world.step()
    assert world.stage("instruct")["phase"] == "Done"
    again = laptop.run("start-stage", "instruct", "--run", "toy")
    assert "published already" in again.stderr
    assert world.jobs() == ["toy-instruct-1"]


def test_a_stage_that_is_being_worked_on_is_followed_not_started_twice(
    laptop: Laptop, world: World
) -> None:
    world.submit()
    world.step()
    result = follow(laptop, "start-stage", "instruct", "--run", "toy",
                    then=lambda: world.finish("toy-instruct-1"))  # fmt: skip
    assert result.return_value == 0
    assert "is running already" in result.stderr
    assert world.jobs() == ["toy-instruct-1"]


def test_a_stage_whose_inputs_are_missing_is_not_started(laptop: Laptop, world: World) -> None:
    world.submit(suspend=True)
    world.step()
    error = laptop.fails("start-stage", "align", "--run", "toy")
    assert error.exit_code == 3
    assert world.jobs() == []


def test_a_stage_of_a_failed_run_says_why_it_failed(laptop: Laptop, world: World) -> None:
    world.submit(config={"wrong": 1})
    world.step()
    error = laptop.fails("start-stage", "align", "--run", "toy")
    assert "wrong" in error.message


# controller


def test_the_controller_serves_drives_and_ends_in_order_on_sigterm(
    laptop: Laptop, world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A real process: it finds the runs, starts the first stage of one, and ends in order.

    The other run is nested as deeply as the API server takes it, and is told why it fails.
    """
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(50_000)
    values = config_map(PLATFORM_CONFIG, platform_values(store=str(tmp_path / "store")))
    world.cluster.patch("configmaps", PLATFORM_CONFIG, {"data": values["data"]})
    push(LocalStore(tmp_path / "store"), "seeds", PROJECT / "seeds", only=SEED_FILES)
    world.submit("deep", config={"align": nested(9900)})
    world.submit()
    process = subprocess.Popen(
        [sys.executable, "-m", "selfalign", "controller", "--kubeconfig", str(laptop.kubeconfig),
         "--metrics-port", "0"],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "SELFALIGN_LOG": "json"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[Resource] = []
    try:
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "job.created":
                break
        process.send_signal(signal.SIGTERM)
        lines += [json.loads(line) for line in process.stderr]
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stderr.close()
        process.wait()
    assert lines[-1]["event"] == "controller.stopped"
    created = next(line for line in lines if line["event"] == "job.created")
    assert (created["run"], created["job"]) == ("toy", "toy-instruct-1")
    assert [line for line in lines if line["level"] == "warning"] == []  # no watch failed
    assert "nested more than 20 deep" in world.status("deep")["message"]


# what a stage leaves for all this


def test_a_failure_is_left_where_the_kubelet_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(command_line, "TERMINATION_LOG", log)
    monkeypatch.setattr(sys, "argv", ["selfalign", "align", "--config", str(tmp_path / "none")])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert ended.value.code == 2
    first, second = log.read_text().splitlines()
    assert "no such file" in first
    assert second.startswith("remedy: ")
    assert "no such file" in capsys.readouterr().err


def test_outside_of_pods_no_termination_message_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "TERMINATION_LOG", tmp_path / "none")
    command_line._leave_termination_message("x" * 10_000, None)
    assert not (tmp_path / "none").exists()
    (tmp_path / "log").touch()
    monkeypatch.setattr(command_line, "TERMINATION_LOG", tmp_path / "log")
    command_line._leave_termination_message("ü" * 10_000, None)
    assert (tmp_path / "log").stat().st_size == 4096
