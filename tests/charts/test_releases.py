"""Deployment: what the values are made of, and what is refused before anything is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from selfalign.deploy import __main__ as command
from selfalign.deploy import releases
from selfalign.deploy.helm import Helm, HelmCommand, HelmFailed, merge_values
from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.pipeline import STAGES
from tests.charts.conftest import ROOT

COMPLETE: dict[str, Any] = {
    "store": "s3://bucket/prefix",
    "base_model": {"path": "store:inputs/base_model/abc"},
    "seeds": {"directory": "store:inputs/seeds/def"},
}


def _write(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def _stages() -> list[dict[str, Any]]:
    return [releases.stage_values(ROOT, stage.name, variant="gpu") for stage in STAGES]


def test_later_values_win_key_by_key_and_lists_are_replaced() -> None:
    merged = merge_values(
        [{"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}}, {"a": {"b": None}, "d": {"e": 0}}]
    )
    assert merged == {"a": {"b": None, "c": [3]}, "d": {"e": 0}}


def test_a_users_file_wins_over_the_stages_and_the_image_over_both(tmp_path: Path) -> None:
    mine = _write(tmp_path / "mine.yaml", {"retries": 7, "image": {"tag": "mine"}})
    values = releases.stage_values(
        ROOT, "align", variant="cpu", files=[mine], image={"registry": "r", "tag": "t"}
    )
    assert values["retries"] == 7
    assert values["image"] == {"registry": "r", "tag": "t"}
    assert values["gpus"] == 0
    assert values["indexed"] is True


def test_a_shared_file_brings_each_stage_its_own_section_only(tmp_path: Path) -> None:
    config = {"align": {"num_shards": 9}, "clone": {"epochs": 2.0}, "seed": 3}
    shared = _write(tmp_path / "shared.yaml", {"config": config})
    values = releases.stage_values(ROOT, "align", variant="gpu", files=[shared])
    assert set(values["config"]) == {"align", "seed"}
    assert values["config"]["align"]["num_shards"] == 9


def test_a_configuration_makes_a_stages_release_complete(tmp_path: Path) -> None:
    config = _write(tmp_path / "run.yaml", {**COMPLETE, "clone": {"epochs": 2.0}})
    values = releases.stage_values(ROOT, "align", variant="gpu", config=config)
    assert values["config"]["store"] == "s3://bucket/prefix"
    assert values["config"]["clone"] == {"epochs": 2.0}
    assert values["config"]["align"]["engine"]["kind"] == "vllm"


def test_a_platform_without_a_bucket_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"config\.store is None.*s3://bucket/prefix"):
        releases.check_platform_config({"config": {"base_model": {"path": "x"}}}, _stages())


def test_a_local_store_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"config\.store is './store'"):
        releases.check_platform_config({"config": {**COMPLETE, "store": "./store"}}, _stages())


@pytest.mark.parametrize(
    ("owner", "own", "noted"),
    [
        (None, True, None),  # nobody made it yet
        ("nights/selfalign", True, None),
        ("days/selfalign", False, "belongs to the release days/selfalign"),
        ("", False, "was not made by Helm"),
    ],
)
def test_a_resource_of_somebody_else_is_left_alone(
    owner: str | None, own: bool, noted: str | None
) -> None:
    values: dict[str, Any] = {}
    note = releases.leave_resource_alone(values, owner, "nights")
    assert values["crd"].get("create", True) is own
    assert (noted is None) == (note is None)
    assert noted is None or noted in str(note)
    assert releases.leave_resource_alone({"crd": {"create": False}}, "", "nights") is None


def test_files_on_this_machine_are_refused_by_name() -> None:
    config = {**COMPLETE, "seeds": {"directory": "seeds"}, "evaluate": {"hhh": "task.json"}}
    with pytest.raises(ConfigurationError) as caught:
        releases.check_platform_config({"config": config}, _stages())
    assert "seeds.directory: seeds; evaluate.hhh: task.json" in caught.value.message
    assert "inputs push" in str(caught.value.remedy)


def test_a_mounted_base_model_needs_a_revision() -> None:
    mounted = {**COMPLETE, "base_model": {"path": "/models/base"}}
    with pytest.raises(ConfigurationError, match=r"base_model\.path: /models/base"):
        releases.check_platform_config({"config": mounted}, _stages())
    mounted["base_model"] = {"path": "/models/base", "revision": "1"}
    assert releases.check_platform_config({"config": mounted}, _stages()).store == COMPLETE["store"]


def test_stages_sections_are_checked_with_the_platforms() -> None:
    wrong = {"stage": "clone", "config": {"clone": {"micro_batch_size": 7}}}
    with pytest.raises(ConfigurationError, match="not a multiple of micro_batch_size 7"):
        releases.check_platform_config({"config": COMPLETE}, [*_stages(), wrong])


def _invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> Result:
    for name in ("KUBECONFIG", "STAGE", "VALUES", "CONFIG", "NAMESPACE", "VARIANT", "IMAGE_TAG"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner().invoke(command.deploy, arguments, env=environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["stage"], {}, "STAGE is missing"),
        (["stage"], {"STAGE": "algin"}, "STAGE is 'algin', which is no stage"),
        (["stage", "align"], {"VALUES": "/nowhere.yaml"}, "/nowhere.yaml: No such file"),
        (["stage", "align"], {"KUBECONFIG": "/nowhere"}, "no kubeconfig: /nowhere does not exist"),
        (["undeploy"], {"HOME": "/nowhere"}, "no kubeconfig: /nowhere/.kube/config"),
        (["platform"], {}, "config.store is None"),
        (["image", "algin"], {}, "there is no image 'algin'"),
        (["image", "--need-name"], {}, "STAGE is missing"),
        (["image", "align"], {"BUILDER": "no-such-builder"}, "which is no command here"),
    ],
    ids=str,
)
def test_what_is_missing_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    result = _invoke(monkeypatch, *arguments, **{"IMAGE_TAG": "t", **environment})
    assert isinstance(result.exception, SelfAlignError)
    assert expected in result.exception.message
    assert result.exception.remedy


def test_no_helm_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfalign.deploy import helm as module

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("HELM", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="helm: not found on PATH") as caught:
        module.open_helm()
    assert "install Helm 4" in str(caught.value.remedy)


@pytest.fixture
def recorded_helm(tmp_path: Path) -> tuple[HelmCommand, Path]:
    """A `helm` that records its arguments and the values it was given."""
    log = tmp_path / "log"
    script = tmp_path / "helm"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {log}\n'
        f'for last in "$@"; do :; done; [ -f "$last" ] && cat "$last" >> {log}\n'
        'case "$1 $2" in "template broken") echo "Error: no" >&2; exit 1;; '
        '"list --namespace") echo selfalign-align;; *) echo "kind: ConfigMap";; esac\n'
    )
    script.chmod(0o755)
    return HelmCommand(str(script)), log


def test_the_helm_command_gets_release_namespace_and_values(
    recorded_helm: tuple[HelmCommand, Path],
) -> None:
    helm, log = recorded_helm
    releases.deploy_stage(helm, ROOT, "align", "nights", {"stage": "align"})
    called, values = log.read_text().splitlines()
    assert called.startswith(
        f"upgrade --install selfalign-align {ROOT}/charts/stage --namespace nights -f "
    )
    assert values == "stage: align"
    assert helm.template(ROOT / "charts/stage", "r", "n", {}) == "kind: ConfigMap\n"


def test_what_helm_says_is_the_message(recorded_helm: tuple[HelmCommand, Path]) -> None:
    with pytest.raises(HelmFailed, match="helm template: Error: no"):
        recorded_helm[0].template(ROOT / "charts/stage", "broken", "n", {})


def test_undeploy_removes_the_releases_there_are(recorded_helm: tuple[HelmCommand, Path]) -> None:
    helm, log = recorded_helm
    assert releases.undeploy(helm, "nights") == ["selfalign-align"]
    uninstalled = [line for line in log.read_text().splitlines() if line.startswith("uninstall")]
    assert uninstalled == ["uninstall selfalign-align --namespace nights"]


def _notes(helm: Helm, chart: str, release: str, values: dict[str, Any]) -> str:
    sdk = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    with sdk.Chart.load(ROOT / "charts" / chart) as loaded:
        rendered: dict[str, str] = loaded.render(values, name=release, namespace="nights")
    return next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))


def test_notes_tell_the_next_command(helm: Helm) -> None:
    stage = _notes(helm, "stage", "selfalign-align", {"stage": "align"})
    assert "make deploy-stage STAGE=align NAMESPACE=nights RUN=<run>" in stage
    assert "create job --from=cronjob/selfalign-align" in stage
    platform = _notes(helm, "selfalign", "selfalign", {"config": COMPLETE})
    assert "make run NAMESPACE=nights" in platform
    assert "s3://bucket/prefix" in platform
    empty = _notes(helm, "selfalign", "selfalign", {})
    assert "make deploy CONFIG=resolved.yaml NAMESPACE=nights" in empty


def test_make_targets_explain_themselves_and_exist() -> None:
    lines = (ROOT / "cluster.mk").read_text("utf-8").splitlines()
    targets = {line.partition(":")[0] for line in lines if ": " in line and " ## " in line}
    assert targets == {
        "chart", "chart-schema", "images", "image", "deploy", "deploy-stage", "run",
        "nightly-now", "status", "logs", "undeploy", "cluster-test",
    }  # fmt: skip
    phony = {line.removeprefix(".PHONY: ") for line in lines if line.startswith(".PHONY")}
    assert phony == targets


def test_the_documented_variables_are_exported_and_read() -> None:
    text = (ROOT / "cluster.mk").read_text("utf-8")
    exported = set(text.partition("export ")[2].partition("\n\n")[0].replace("\\", "").split())
    read = {
        option.envvar
        for sub in command.deploy.commands.values()
        for option in sub.params
        if isinstance(option.envvar, str)
    }
    assert read <= exported
    assert exported - read == {"RUN"}  # of the commands that are not of selfalign.deploy


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of an S3 server process that has the bucket `there`."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SELFALIGN_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dummy")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dummy")
    # What the check sets by itself must not outlive the test.
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "SELFALIGN_S3_MAX_ATTEMPTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/store/moto_process.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    put = urllib.request.Request(f"{url}/there", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(put).close()
    yield url
    server.communicate(input="")


def test_a_missing_bucket_is_refused_and_an_unreachable_store_only_noted(s3: str) -> None:
    environment = {"AWS_ENDPOINT_URL_S3": s3, "AWS_REGION": "eu-west-1"}
    assert releases.check_bucket("s3://there/prefix", environment) is None
    with pytest.raises(SelfAlignError, match="nowhere") as caught:
        releases.check_bucket("s3://nowhere/prefix", environment)
    assert not caught.value.retryable
    os.environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    doubt = releases.check_bucket("s3://there/prefix", {"SELFALIGN_S3_MAX_ATTEMPTS": 1})
    assert doubt is not None
    assert "127.0.0.1:9" in doubt
