"""`python -m selfalign.deploy`: the checks before a deployment, and the values of its releases.

Options are also read from the environment, under the names that `make` documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from selfalign import __version__
from selfalign.deploy import cluster, images, release, releases, schema
from selfalign.deploy.helm import read_values, run
from selfalign.deploy.images import Variant
from selfalign.errors import ConfigurationError
from selfalign.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]

_file = click.Path(path_type=Path)
_namespace = click.option("--namespace", envvar="NAMESPACE", default="selfalign")
_variant = click.option(
    "--variant", envvar="VARIANT", type=click.Choice(images.VARIANTS), default="gpu"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def deploy() -> None:
    """Values, schemas and checks of releases. `make help` lists what a person calls."""


@deploy.command("schema")
@click.option("--check", is_flag=True, help="Change nothing; fail when a file is out of date.")
def schema_command(check: bool) -> None:
    """Write charts/*/values.schema.json and the bounds in the AlignmentRun resource."""
    for path, text in schema.generated(ROOT).items():
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        if check:
            raise ConfigurationError(
                f"{path.relative_to(ROOT)} is out of date", remedy="`make chart-schema`, commit it"
            )
        path.write_text(text, "utf-8")
        click.echo(f"wrote {path.relative_to(ROOT)}")


@deploy.command("tag")
@_variant
def tag_command(variant: Variant) -> None:
    """Print the tag of this checkout's images."""
    click.echo(images.code_tag(ROOT, variant))


@deploy.command("version")
def version_command() -> None:
    """Print the version that a release has."""
    click.echo(__version__)


@deploy.command("preflight")
@click.option("--stage", envvar="STAGE", default=None)
@click.option("--need-stage", is_flag=True, help="Refuse without STAGE.")
def preflight_command(stage: str | None, need_stage: bool) -> None:
    """Check only: the stage exists, the cluster answers."""
    if need_stage or stage:
        releases.require_stage(stage)
    cluster.require_cluster()


@deploy.command("namespace")
@_namespace
def namespace_command(namespace: str) -> None:
    """Make the namespace where it is missing."""
    cluster.require_cluster()
    if cluster.ensure_namespace(namespace):
        click.echo(f"made namespace {namespace}, enforcing Pod Security restricted")


@deploy.command("prepare")
@click.option("--out", type=_file, required=True, help="Directory of <release>.yaml.")
@click.option("--stage", default=None, help="One stage's release.  [default: all releases]")
@click.option("--serving", is_flag=True, help="The release that serves the promoted model.")
@click.option("--registry", envvar="REGISTRY", default="", metavar="HOST/PATH")
@click.option("--tag", envvar="IMAGE_TAG", default="")
@click.option("--config", envvar="CONFIG", type=_file, help="As `selfalign inputs push` writes it.")
@click.option("--values", envvar="VALUES", multiple=True, type=_file)
@click.option("--stage-values", envvar="STAGE_VALUES", multiple=True, type=_file)
@click.option("--check-bucket/--no-check-bucket", envvar="CHECK_BUCKET", default=True)
@_namespace
@_variant
def prepare_command(
    out: Path,
    stage: str | None,
    serving: bool,
    registry: str,
    tag: str,
    config: Path | None,
    values: tuple[Path, ...],
    stage_values: tuple[Path, ...],
    check_bucket: bool,
    namespace: str,
    variant: Variant,
) -> None:
    """Check what releases need, and write their values."""
    image = {
        "registry": registry.rstrip("/") or images.LOCAL_REGISTRY,
        "tag": tag or images.code_tag(ROOT, variant),
    }
    if serving:
        merged = releases.serving_values(ROOT, variant=variant, files=values, image=image)
        cluster.require_cluster()
        _write(out, releases.SERVING, merged)
        return
    if stage is not None:
        name = releases.require_stage(stage)
        merged = releases.stage_values(
            ROOT, name, variant=variant, files=values, config=config, image=image
        )
        cluster.require_cluster()
        _write(out, releases.release_name(name), merged)
        return
    platform = releases.platform_values(files=values, config=config, image=image)
    stages = {
        stage.name: releases.stage_values(
            ROOT, stage.name, variant=variant, files=stage_values, image=image
        )
        for stage in STAGES
    }
    checked = releases.check_platform_config(platform, stages.values())
    cluster.require_cluster()
    environment = platform.get("environment") or {}
    if check_bucket and (doubt := releases.check_bucket(checked.store, environment)):
        click.echo(f"note: {checked.store} could not be checked from here: {doubt}", err=True)
    makes_resource = (platform.get("crd") or {}).get("create") is not False
    owner = cluster.resource_owner() if makes_resource else None
    if note := releases.leave_resource_alone(platform, owner, namespace):
        click.echo(f"note: {note}", err=True)
    _write(out, releases.PLATFORM, platform)
    for name, merged in stages.items():
        _write(out, releases.release_name(name), merged)


@deploy.command("pin")
@click.option("--out", type=_file, required=True, help="Directory of <release>.yaml.")
@click.option("--digests", type=_file, required=True, help="Of pushed images, by images/build.")
def pin_command(out: Path, digests: Path) -> None:
    """Name by digest, in the values of releases, the images that were pushed just now."""
    pushed = release.read_digests(digests) if digests.is_file() else {}
    for name, images_of in release.IMAGES_OF_RELEASES.items():
        path = out / f"{name}.yaml"
        found = {place: pushed[image] for image, place in images_of.items() if image in pushed}
        if found and path.is_file():
            _write(out, name, release.with_digests(read_values(path), found))


@deploy.command("release")
@click.option("--out", type=_file, required=True, help="Directory of the charts.")
@click.option("--registry", envvar="REGISTRY", default="", metavar="HOST/PATH")
@click.option("--tag", envvar="IMAGE_TAG", default=__version__)
@click.option("--digests", type=_file, required=True, help="Of pushed images, by images/build.")
def release_command(out: Path, registry: str, tag: str, digests: Path) -> None:
    """Write the charts of this version, which name its images by digest where they were pushed."""
    written = release.write_charts(
        ROOT,
        out,
        registry=registry.rstrip("/") or images.LOCAL_REGISTRY,
        tag=tag or __version__,
        digests=release.read_digests(digests) if digests.is_file() else {},
    )
    for chart in written:
        click.echo(chart)


def _write(directory: Path, release: str, values: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    (directory / f"{release}.yaml").write_text(text, "utf-8")


if __name__ == "__main__":
    run(deploy)
