"""The charts of a release name images by digest, and are what Artifact Hub and Helm read."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from selfalign import __version__
from selfalign.deploy import helm
from selfalign.deploy.__main__ import deploy
from selfalign.deploy.release import changes_of, with_values, write_charts
from selfalign.deploy.releases import (
    PLATFORM,
    SERVING,
    platform_values,
    release_name,
    serving_values,
    stage_values,
)
from selfalign.errors import ConfigurationError
from selfalign.pipeline import STAGES

from .conftest import ROOT

REGISTRY = "registry.example.com/team"
IMAGES = [*(stage.name for stage in STAGES), "controller"]
DIGESTS = {name: f"sha256:{number:064x}" for number, name in enumerate(IMAGES, 1)}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts as a user gets them: packed by Helm and unpacked."""
    from helm_python import package

    out = tmp_path_factory.mktemp("release")
    for chart in write_charts(ROOT, out / "charts", registry=REGISTRY, tag="t", digests=DIGESTS):
        with tarfile.open(package(chart, destination=out)) as archive:
            archive.extractall(out / "unpacked", filter="data")
    return out / "unpacked"


def images(chart: Path, values: dict[str, Any]) -> set[str]:
    """What every container of a rendered chart runs. Rendering checks the chart's schema too."""
    found = set()
    for name, text in helm.render(chart, "r", "n", values).items():
        lines = text.splitlines() if name.endswith(".yaml") else []
        found |= {line.split()[-1] for line in lines if line.strip(" -").startswith("image: ")}
    return found


def test_every_image_of_a_released_chart_is_named_by_digest(released: Path) -> None:
    def pinned(name: str) -> str:
        return f"{REGISTRY}/{name}@{DIGESTS[name]}"

    assert images(released / "selfalign", {}) == {pinned("controller")}
    assert images(released / "selfalign-serving", {}) == {pinned("align"), pinned("promote")}
    for stage in STAGES:
        jobs = released / "selfalign-stage/jobs"
        values = helm.read_values(jobs / f"{stage.name}.yaml")
        assert images(released / "selfalign-stage", values) == {pinned(stage.name)}
    mine = {"stage": "align", "image": {"registry": "mine", "tag": "1"}}
    assert images(released / "selfalign-stage", mine) == {"mine/align:1"}


def test_a_released_chart_says_what_artifact_hub_asks_for(released: Path) -> None:
    for chart in ("selfalign", "selfalign-serving", "selfalign-stage"):
        metadata = yaml.safe_load((released / chart / "Chart.yaml").read_text("utf-8"))
        assert metadata["version"] == __version__
        said = {
            name.removeprefix("artifacthub.io/"): value
            for name, value in metadata["annotations"].items()
        }
        assert said["license"] == "Apache-2.0"
        assert all(link["url"].startswith("https://") for link in yaml.safe_load(said["links"]))
        for image in yaml.safe_load(said["images"]):
            assert image["image"] == f"{REGISTRY}/{image['name']}@{DIGESTS[image['name']]}"
        changes = yaml.safe_load(said["changes"])
        assert {change["kind"] for change in changes} <= {
            "added", "changed", "deprecated", "removed", "fixed", "security"
        }  # fmt: skip
        assert all(change["description"] for change in changes)
        assert "# -- " in (released / chart / "values.yaml").read_text("utf-8")
        assert not (released / chart / "ci").exists()


def test_without_a_push_images_are_named_by_tag(tmp_path: Path) -> None:
    write_charts(ROOT, tmp_path, registry="localhost/x", tag="1.2", digests={})
    assert images(tmp_path / "stage", {"stage": "align"}) == {"localhost/x/align:1.2"}
    assert images(tmp_path / "selfalign", {}) == {"localhost/x/controller:1.2"}
    with pytest.raises(ConfigurationError, match="charts/stage: no digest of clone"):
        write_charts(ROOT, tmp_path, registry="r", tag="", digests={"align": DIGESTS["align"]})


def test_what_a_deployment_pushed_is_deployed_by_digest(tmp_path: Path) -> None:
    image = {"registry": REGISTRY, "tag": "1"}
    values = {
        PLATFORM: platform_values(image=image),
        SERVING: serving_values(ROOT, variant="gpu", image=image),
        **{
            release_name(stage.name): stage_values(ROOT, stage.name, variant="gpu", image=image)
            for stage in STAGES
        },
    }
    for release, content in values.items():
        (tmp_path / f"{release}.yaml").write_text(yaml.safe_dump(content))
    digests = tmp_path / "digests.txt"
    arguments = ["pin", "--out", str(tmp_path), "--digests", str(digests)]
    assert CliRunner().invoke(deploy, arguments).exit_code == 0  # nothing was pushed
    assert yaml.safe_load((tmp_path / "selfalign.yaml").read_text()) == values["selfalign"]
    digests.write_text("".join(f"{n} {d}\n" for n, d in DIGESTS.items() if n != "engrave"))
    assert CliRunner().invoke(deploy, arguments).exit_code == 0
    for release in values:
        chart = {PLATFORM: "selfalign", SERVING: "serving"}.get(release, "stage")
        found = images(ROOT / "charts" / chart, helm.read_values(tmp_path / f"{release}.yaml"))
        pinned = {f"{REGISTRY}/{name}@{digest}" for name, digest in DIGESTS.items()}
        assert found <= pinned or found == {f"{REGISTRY}/engrave:1"}, release


def test_defaults_are_replaced_in_place_and_comments_stay() -> None:
    text = "# -- Where.\na: {b: '', c: 1} # why\nd:\n  e: {}\n"
    changed = with_values(text, {("a", "b"): "x", ("d", "e"): {"f": "y"}})
    assert changed == '# -- Where.\na: {b: "x", c: 1} # why\nd:\n  e: {"f": "y"}\n'
    with pytest.raises(ConfigurationError, match=r"values.yaml has no a\.z"):
        with_values(text, {("a", "z"): 1})


def test_changes_are_those_of_this_version_alone() -> None:
    log = (
        "# Log\n\n## Unreleased\n\n### Added\n\n- no\n\n## [2.0.0] - today\n\n### Added\n\n- one\n"
        "  [line](x.md)\n- two\n\n### Fixed\n\n- three\n\n## [1.0.0]\n\n### Added\n\n- old\n"
    )
    assert changes_of(log, "2.0.0") == [
        {"kind": "added", "description": "one line"},
        {"kind": "added", "description": "two"},
        {"kind": "fixed", "description": "three"},
    ]
    with pytest.raises(ConfigurationError, match=r"no section of 3\.0\.0, only of Unreleased"):
        changes_of(log, "3.0.0")
