"""Deployment: what the values are made of, what is refused before anything is installed, and what
the Makefile calls.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from selfalign.deploy import __main__ as command
from selfalign.deploy import cluster, helm, releases
from selfalign.errors import ConfigurationError, SelfAlignError, StoreDenied, StoreUnavailable
from selfalign.pipeline import STAGES
from tests.charts.conftest import ROOT, render

COMPLETE: dict[str, Any] = {
    "store": "s3://bucket/prefix",
    "base_model": {"path": "store:inputs/base_model/abc"},
    "seeds": {"directory": "store:inputs/seeds/def"},
}
RELEASES = ["selfalign", *(releases.release_name(stage.name) for stage in STAGES)]


def _write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def _stages() -> list[dict[str, Any]]:
    return [releases.stage_values(ROOT, stage.name, variant="gpu") for stage in STAGES]


def test_later_values_win_key_by_key_and_the_image_over_all(tmp_path: Path) -> None:
    layers = [{"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}}, {"a": {"b": None}, "d": {}}]
    assert helm.merge_values(layers) == {"a": {"b": None, "c": [3]}, "d": {}}
    mine = _write(tmp_path / "mine.yaml", {"retries": 7, "image": {"tag": "mine"}})
    image = {"registry": "r", "tag": "t"}
    values = releases.stage_values(ROOT, "align", variant="cpu", files=[mine], image=image)
    assert (values["retries"], values["image"]) == (7, image)
    assert (values["gpus"], values["indexed"]) == (0, True)


def test_the_platforms_own_values_win_over_the_configuration_that_was_pushed(
    tmp_path: Path,
) -> None:
    pushed = _write(tmp_path / "resolved.yaml", {**COMPLETE, "promote": {"approval": "automatic"}})
    mine = _write(tmp_path / "cluster.yaml", {"config": {"promote": {"approval": "manual"}}})
    values = releases.platform_values(files=[mine], config=pushed)
    checked = releases.check_platform_config(values, _stages())
    assert checked.promote.approval == "manual"
    assert checked.store == COMPLETE["store"]


def test_a_shared_file_brings_its_own_section_only_and_a_configuration_all(tmp_path: Path) -> None:
    config = {"align": {"num_shards": 9}, "clone": {"epochs": 2.0}, "seed": 3}
    shared = _write(tmp_path / "shared.yaml", {"config": config})
    own = releases.stage_values(ROOT, "align", variant="gpu", files=[shared])["config"]
    assert set(own) == {"align", "seed"}
    assert own["align"]["num_shards"] == 9
    complete = _write(tmp_path / "run.yaml", {**COMPLETE, "clone": {"epochs": 2.0}})
    whole = releases.stage_values(ROOT, "align", variant="gpu", config=complete)["config"]
    assert {**COMPLETE, "clone": {"epochs": 2.0}}.items() <= whole.items()
    assert whole["align"]["engine"]["kind"] == "vllm"


MOUNTED: dict[str, Any] = {**COMPLETE, "base_model": {"path": "/models/base"}}
JUDGED = {**COMPLETE, "evaluate": {"judge": {"model": {"path": "/models/judge"}}}}
LOCAL = {**COMPLETE, "seeds": {"directory": "seeds"}, "evaluate": {"hhh": "task.json"}}
ODD_BATCH = {"stage": "clone", "config": {"clone": {"micro_batch_size": 7}}}


@pytest.mark.parametrize(
    ("config", "stages", "expected"),
    [
        ({"base_model": {"path": "x"}}, [], "config.store is None, expected s3://bucket/prefix"),
        ({**COMPLETE, "store": "./store"}, [], "config.store is './store'"),
        (LOCAL, [], "seeds.directory: seeds; evaluate.hhh: task.json"),
        (MOUNTED, [], "base_model.path: /models/base"),
        (JUDGED, [], "evaluate.judge.model.path: /models/judge"),
        (COMPLETE, [ODD_BATCH], "not a multiple of micro_batch_size 7"),
    ],
    ids=[
        *("no store", "local store", "local files", "no revision", "no revision of the judge"),
        "a stage's section",
    ],
)
def test_a_configuration_that_no_run_could_use_is_refused(
    config: dict[str, Any], stages: list[dict[str, Any]], expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        releases.check_platform_config({"config": config}, [*_stages(), *stages])
    assert expected in caught.value.message
    assert caught.value.remedy
    mounted = {**COMPLETE, "base_model": {"path": "/models/base", "revision": "1"}}
    assert releases.check_platform_config({"config": mounted}, _stages()).store == COMPLETE["store"]


@pytest.mark.parametrize("owner", [None, "nights/selfalign", "days/selfalign", ""])
def test_a_resource_of_somebody_else_is_left_alone(owner: str | None) -> None:
    values: dict[str, Any] = {}
    note = releases.leave_resource_alone(values, owner, "nights")
    notes = {"days/selfalign": "belongs to the release days/selfalign", "": "not made by Helm"}
    assert values["crd"] == ({} if owner not in notes else {"create": False})
    assert note is None if owner not in notes else notes[str(owner)] in str(note)
    assert releases.leave_resource_alone({"crd": {"create": False}}, "", "nights") is None


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["prepare", "--stage", ""], {}, "STAGE is missing"),
        (["prepare", "--stage", "algin"], {}, "STAGE is 'algin', which is no stage"),
        (["prepare", "--stage", "align"], {"VALUES": "/nowhere.yaml"}, "/nowhere.yaml: No such"),
        (["prepare", "--stage", "align"], {"KUBECONFIG": "/nowhere"}, "no kubeconfig: /nowhere do"),
        (["namespace"], {"HOME": "/nowhere"}, "no kubeconfig: /nowhere/.kube/config"),
        (["prepare"], {}, "config.store is None"),
        (["preflight", "--need-stage"], {}, "STAGE is missing"),
    ],
    ids=str,
)
def test_what_is_missing_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    for name in ("KUBECONFIG", "STAGE", "VALUES", "CONFIG", "NAMESPACE", "VARIANT", "IMAGE_TAG"):
        monkeypatch.delenv(name, raising=False)
    out = ["--out", "/nowhere"] if arguments[0] == "prepare" else []
    env = {"IMAGE_TAG": "t", **environment}
    result = CliRunner().invoke(command.deploy, [*arguments, *out], env=env)
    assert isinstance(result.exception, SelfAlignError)
    assert expected in result.exception.message
    assert result.exception.remedy


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Error from server (Forbidden): namespaces is forbidden", StoreDenied),
        ("Unable to connect to the server: net/http: TLS handshake timeout", StoreUnavailable),
    ],
    ids=["forbidden", "timeout"],
)
def test_what_may_not_be_looked_at_is_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[SelfAlignError]
) -> None:
    tool = tmp_path / "kubectl"
    tool.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for look in (lambda: cluster.ensure_namespace("nights"), cluster.resource_owner):
        with pytest.raises(kind, match=re.escape(said)):
            look()


def test_without_helm_and_its_engine_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)
    with pytest.raises(ConfigurationError, match="helm is not on PATH") as caught:
        helm.render(ROOT / "charts/stage", "x", "n", {})
    assert "install Helm 4" in str(caught.value.remedy)


def test_what_helm_says_is_the_message() -> None:
    with pytest.raises(helm.HelmFailed, match=r"(?s)^helm template stage: .*'shards' not"):
        render("stage", "x", {"stage": "align", "shards": 2})


def test_notes_give_the_next_command() -> None:
    def notes(chart: str, values: dict[str, Any]) -> str:
        rendered = helm.render(ROOT / "charts" / chart, "selfalign-align", "nights", values)
        return next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))

    stage = notes("stage", {"stage": "align"})
    assert "make deploy-stage STAGE=align NAMESPACE=nights RUN=<run>" in stage
    assert "create job --from=cronjob/selfalign-align" in stage
    platform = notes("selfalign", {"config": COMPLETE})
    assert "make run NAMESPACE=nights" in platform
    assert "s3://bucket/prefix" in platform
    assert "make deploy CONFIG=resolved.yaml NAMESPACE=nights" in notes("selfalign", {})


Make = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run a target with recorded tools: its exit code, and what it called or printed, by line."""
    log, tools = tmp_path / "log", tmp_path / "tools"
    tools.mkdir()
    # The cluster answers; it has neither the namespace nor the resource.
    for name in ("helm", "kubectl", "build"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n')
        (tools / name).chmod(0o755)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.touch()

    def call(target: str, *flags: str, **variables: str) -> tuple[int, list[str]]:
        settings = {"NAMESPACE": "nights", "IMAGE_TAG": "t1", "CHECK_BUCKET": "0", **variables}
        settings |= {"CLUSTER_TOOLS": "", "PYTHON": sys.executable}
        settings |= {"RELEASES": str(tmp_path / "releases")}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig)}
        arguments = [*flags, target, *(f"{name}={value}" for name, value in settings.items())]
        result = subprocess.run(
            ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        called = log.read_text().splitlines() if log.is_file() else []
        return result.returncode, called + (result.stdout + result.stderr).splitlines()

    return call


def _upgrade(release: str, directory: Path) -> str:
    chart = "selfalign" if release == "selfalign" else "stage"
    values = directory / f"{release}.yaml"
    return f"helm upgrade --install {release} charts/{chart} --namespace nights -f {values}"


def test_make_deploy_checks_builds_and_installs_in_this_order(make: Make, tmp_path: Path) -> None:
    config = _write(tmp_path / "resolved.yaml", COMPLETE)
    mine = _write(tmp_path / "cluster.yaml", {"nightly": {"suspend": True}})
    shared = _write(tmp_path / "stages.yaml", {"queueName": "gpus"})
    builder = str(tmp_path / "tools/build")
    files = {"CONFIG": str(config), "VALUES": str(mine), "STAGE_VALUES": str(shared)}
    images = {"VARIANT": "cpu", "BUILDER": builder, "REGISTRY": "r.example.com/x", "PUSH": "0"}
    code, lines = make("deploy", **files, **images)
    assert code == 0, lines
    called = [line for line in lines if line.startswith(("helm", "kubectl", "build"))]
    assert called[1].endswith("get --raw /readyz")
    first_build = next(i for i, line in enumerate(called) if line.startswith("build"))
    made = next(i for i, line in enumerate(called) if line.endswith("create -f -"))
    installs = [line for line in called if line.startswith("helm upgrade")]
    assert 1 < first_build < made < called.index(installs[0])
    directory = tmp_path / "releases"
    assert installs[0] == _upgrade("selfalign", directory)
    assert sorted(installs) == sorted(_upgrade(release, directory) for release in RELEASES)
    platform = yaml.safe_load((directory / "selfalign.yaml").read_text())
    assert platform["config"] == COMPLETE
    assert platform["nightly"] == {"suspend": True}
    stage = yaml.safe_load((directory / "selfalign-align.yaml").read_text())
    assert stage["image"] == {"registry": "r.example.com/x", "tag": "t1"}
    assert (stage["gpus"], stage["queueName"]) == (0, "gpus")


def test_make_deploy_serving_builds_both_images_and_installs_one_release(
    make: Make, tmp_path: Path
) -> None:
    mine = _write(tmp_path / "mine.yaml", {"replicas": 2})
    builder = {"BUILDER": str(tmp_path / "tools/build"), "PUSH": "0"}
    code, lines = make("deploy-serving", VARIANT="cpu", VALUES=str(mine), **builder)
    assert code == 0, lines
    values = tmp_path / "releases/selfalign-serving.yaml"
    installs = [line for line in lines if line.startswith("helm upgrade")]
    assert installs == [
        f"helm upgrade --install selfalign-serving charts/serving --namespace nights -f {values}"
    ]
    built = [line for line in lines if line.startswith("build")]
    assert {line.split()[1].split("/")[-1].split(":")[0] for line in built} >= {"align", "promote"}
    written = yaml.safe_load(values.read_text())
    assert (written["replicas"], written["gpus"], written["image"]["tag"]) == (2, 0, "t1")


def test_make_deploy_stage_installs_one_stage_as_deploy_mk_and_then_the_command_line_say(
    make: Make, tmp_path: Path
) -> None:
    _write(tmp_path / "stages.yaml", {"queueName": "gpus"})
    mine = (
        "REGISTRY = r.example.com/x",
        "deploy-stage: VALUES = {0}/stages.yaml",
        "deploy: VALUES = no",
    )
    (tmp_path / "deploy.mk").write_text("\n".join(mine).format(tmp_path))
    code, lines = make("deploy-stage", f"-I{tmp_path}", STAGE="align", SKIP_BUILD="1")
    assert code == 0, lines
    assert _upgrade("selfalign-align", tmp_path / "releases") in lines
    assert sum(line.startswith("helm upgrade") for line in lines) == 1
    assert not [line for line in lines if line.startswith("build")]
    written = yaml.safe_load((tmp_path / "releases/selfalign-align.yaml").read_text())
    assert (written["queueName"], written["image"]["registry"]) == ("gpus", "r.example.com/x")
    make("deploy-stage", f"-I{tmp_path}", STAGE="align", SKIP_BUILD="1", REGISTRY="other/y")
    written = yaml.safe_load((tmp_path / "releases/selfalign-align.yaml").read_text())
    assert written["image"]["registry"] == "other/y"


def test_make_stops_at_a_refused_configuration_before_anything_is_built(
    make: Make, tmp_path: Path
) -> None:
    code, lines = make("deploy", BUILDER=str(tmp_path / "tools/build"), PUSH="0")
    assert code == 2
    assert any("config.store is None" in line for line in lines)
    assert not [line for line in lines if line.startswith(("build", "helm upgrade"))]


def test_make_undeploy_removes_every_release_and_nothing_else(make: Make) -> None:
    code, lines = make("undeploy")
    assert code == 0, lines
    removed = [line.split()[2] for line in lines if line.startswith("helm uninstall")]
    assert sorted(removed) == sorted([*RELEASES, "selfalign-serving"])
    assert not [line for line in lines if "delete" in line and line.startswith("kubectl")]


def test_make_targets_explain_themselves_and_exist() -> None:
    lines = (ROOT / "cluster.mk").read_text("utf-8").splitlines()
    explained = {line.partition(":")[0] for line in lines if ": " in line and " ## " in line}
    phony = {line.removeprefix(".PHONY: ") for line in lines if line.startswith(".PHONY")}
    assert phony == explained
    assert {"chart", "images", "deploy", "deploy-stage", "run", "status", "logs"} < explained


def test_the_variables_that_are_read_are_exported_and_explained() -> None:
    text = (ROOT / "cluster.mk").read_text("utf-8")
    exported = set(text.partition("export ")[2].partition("\n\n")[0].replace("\\", "").split())
    options = [option for sub in command.deploy.commands.values() for option in sub.params]
    assert {option.envvar for option in options if isinstance(option.envvar, str)} <= exported
    explained = text.partition("NAMESPACE ?=")[0]
    assert [name for name in exported if name not in explained] == []


def test_a_missing_bucket_is_refused_and_an_unreachable_store_only_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(error: SelfAlignError) -> None:
        def fail(url: str) -> Any:
            raise error

        monkeypatch.setattr(releases, "open_store", fail)

    monkeypatch.setattr(os, "environ", {})
    failing(ConfigurationError("no bucket"))
    with pytest.raises(ConfigurationError, match="no bucket"):
        releases.check_bucket("s3://nowhere", {})
    for error in (StoreUnavailable("no route"), StoreDenied("no access")):
        failing(error)
        assert releases.check_bucket("s3://there", {"AWS_REGION": "eu"}) == error.message
    assert os.environ == {"AWS_REGION": "eu"}
