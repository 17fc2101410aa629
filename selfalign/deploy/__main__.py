"""`python -m selfalign.deploy`: the cluster's `make` targets, each with its checks before its work.

Options are also read from the environment, under the names that `make` documents.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from selfalign.deploy import charts, cluster, images, manifests, releases, schema
from selfalign.deploy.builders import find_builder
from selfalign.deploy.helm import open_helm
from selfalign.deploy.images import IMAGES, Variant
from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]

_namespace = click.option("--namespace", envvar="NAMESPACE", default="selfalign", show_default=True)
_variant = click.option(
    "--variant", envvar="VARIANT", type=click.Choice(images.VARIANTS), default="gpu",
    show_default=True, help="cpu: the transformers engine, no GPUs.",
)  # fmt: skip
_registry = click.option(
    "--registry", envvar="REGISTRY", default="", metavar="HOST/PATH",
    help=f"Where images are pushed.  [default: {images.LOCAL_REGISTRY}, not pushed]",
)  # fmt: skip
_tag = click.option(
    "--tag", envvar="IMAGE_TAG", default="", help="[default: code version and commit]"
)
_config = click.option(
    "--config", envvar="CONFIG", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A run configuration, as `selfalign inputs push` writes it.",
)  # fmt: skip
_skip_build = click.option("--skip-build", envvar="SKIP_BUILD", is_flag=True)


def _build_options(function: Any) -> Any:
    for option in (
        click.option("--push/--no-push", envvar="PUSH", default=None,
                     help="[default: push where a registry is given]"),
        click.option("--check-login/--no-check-login", envvar="CHECK_LOGIN", default=True),
        click.option("--builder", envvar="BUILDER", default="",
                     help="docker, podman, buildah, or a command called as COMMAND TAG CONTEXT "
                     "FLAGS...  [default: the first that works]"),
        click.option("--build-flags", envvar="BUILD_FLAGS", default="", help="For every build."),
        click.option("--base-cpu", envvar="BASE_CPU", default=""),
        click.option("--base-generation", envvar="BASE_GENERATION", default=""),
        click.option("--base-training", envvar="BASE_TRAINING", default=""),
    ):  # fmt: skip
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def deploy() -> None:
    """Images, charts and releases of the pipeline. `make help` lists the short ways."""


@deploy.command("schema")
@click.option("--check", is_flag=True, help="Change nothing; fail when a file is out of date.")
def schema_command(check: bool) -> None:
    """Write charts/*/values.schema.json from the models of values and configuration."""
    if check:
        stale = [
            str(path.relative_to(ROOT))
            for name in schema.CHARTS
            if (path := schema.schema_path(ROOT, name)).read_text("utf-8")
            != schema.schema_text(name)
        ]
        if stale:
            raise ConfigurationError(
                f"out of date: {', '.join(stale)}", remedy="`make chart-schema`, and commit it"
            )
        return
    for path in schema.write_schemas(ROOT):
        click.echo(f"wrote {path.relative_to(ROOT)}")


@deploy.command("chart")
def chart_command() -> None:
    """Lint and render both charts with every file of values, and validate strictly.

    Where KUBECONFIG is set and its API server answers, that validates too, storing nothing.
    """
    helm = open_helm()
    server = _server_validation()
    judges = f"Kubernetes {', '.join(manifests.VERSIONS)}"
    click.echo(f"{helm.name}; {judges}{' and the API server of KUBECONFIG' if server else ''}")
    failed = 0
    for rendering in charts.renderings(ROOT):
        outcome = charts.examine(helm, ROOT, rendering, "default", server)
        failed += bool(outcome.problems)
        verdict = "FAILED" if outcome.problems else "ok"
        click.echo(f"{verdict:7}{rendering.name} ({outcome.manifests} manifests)")
        for problem in outcome.problems:
            click.echo(f"       {problem}")
    if failed:
        raise ConfigurationError(f"{failed} renderings have problems", remedy="they stand above")


@deploy.command("image")
@click.argument("names", nargs=-1)
@click.option("--need-name", is_flag=True, help="Refuse to build all of them.")
@_variant
@_registry
@_tag
@_build_options
def image_command(
    names: tuple[str, ...], need_name: bool, variant: Variant, registry: str, tag: str, **build: Any
) -> None:
    """Build images, NAMES or all of them, with the bases they lack, and push them."""
    if need_name and not names:
        raise ConfigurationError("STAGE is missing", remedy=f"STAGE=<one of {', '.join(IMAGES)}>")
    images.build_order(names, variant)
    chosen = names or IMAGES
    for reference in _build(
        chosen, variant, registry, tag or images.code_tag(ROOT, variant), build
    ):
        click.echo(reference)


@deploy.command("stage")
@click.argument("stage", envvar="STAGE", required=False)
@_namespace
@_variant
@_registry
@_tag
@_config
@click.option("--values", envvar="VALUES", multiple=True, type=click.Path(path_type=Path),
              help="Of yours, after jobs/<stage>.yaml; a.yaml:b.yaml in VALUES.")  # fmt: skip
@_skip_build
@_build_options
def stage_command(
    stage: str | None,
    namespace: str,
    variant: Variant,
    registry: str,
    tag: str,
    config: Path | None,
    values: tuple[Path, ...],
    skip_build: bool,
    **build: Any,
) -> None:
    """Build and push STAGE's image, install or upgrade its release."""
    name = releases.require_stage(stage)
    image = _image(registry, tag, variant)
    merged = releases.stage_values(
        ROOT, name, variant=variant, files=values, config=config, image=image
    )
    cluster.require_cluster()
    helm = open_helm()
    if not skip_build:
        _build([name], variant, registry, image["tag"], build)
    _ensure_namespace(namespace)
    click.echo(releases.deploy_stage(helm, ROOT, name, namespace, merged))


@deploy.command("platform")
@_namespace
@_variant
@_registry
@_tag
@_config
@click.option("--values", envvar="VALUES", multiple=True, type=click.Path(path_type=Path),
              help="Of the platform's chart.")  # fmt: skip
@click.option("--stage-values", envvar="STAGE_VALUES", multiple=True,
              type=click.Path(path_type=Path), help="Of every stage's chart.")  # fmt: skip
@click.option("--check-bucket/--no-check-bucket", envvar="CHECK_BUCKET", default=True)
@_skip_build
@_build_options
def platform_command(
    namespace: str,
    variant: Variant,
    registry: str,
    tag: str,
    config: Path | None,
    values: tuple[Path, ...],
    stage_values: tuple[Path, ...],
    check_bucket: bool,
    skip_build: bool,
    **build: Any,
) -> None:
    """Build and push all images, install or upgrade the platform and every stage."""
    image = _image(registry, tag, variant)
    platform = releases.platform_values(files=values, config=config, image=image)
    stages = {
        stage.name: releases.stage_values(
            ROOT, stage.name, variant=variant, files=stage_values, image=image
        )
        for stage in STAGES
    }
    checked = releases.check_platform_config(platform, stages.values())
    cluster.require_cluster()
    helm = open_helm()
    if check_bucket and (
        doubt := releases.check_bucket(checked.store, platform.get("environment") or {})
    ):
        click.echo(f"note: {checked.store} could not be checked from here: {doubt}", err=True)
    if not skip_build:
        _build(IMAGES, variant, registry, image["tag"], build)
    _ensure_namespace(namespace)
    if note := releases.leave_resource_alone(platform, cluster.resource_owner(), namespace):
        click.echo(f"note: {note}", err=True)
    notes = releases.deploy_platform(helm, ROOT, namespace, platform)
    for name, merged in stages.items():
        releases.deploy_stage(helm, ROOT, name, namespace, merged)
        click.echo(f"deployed {releases.release_name(name)}")
    click.echo(notes)


@deploy.command("undeploy")
@_namespace
def undeploy_command(namespace: str) -> None:
    """Remove the platform and every stage; runs and everything in the store stay."""
    cluster.require_cluster()
    for name in releases.undeploy(open_helm(), namespace):
        click.echo(f"removed {name}")
    runs = cluster.remaining_runs(namespace)
    click.echo(
        f"kept: the store, the AlignmentRun resource, {len(runs)} runs in {namespace} "
        f"(kubectl -n {namespace} delete alignmentruns --all removes them)"
    )


@deploy.command("nightly-now")
@_namespace
def nightly_now_command(namespace: str) -> None:
    """Submit the nightly run now, as the CronJob would."""
    cluster.require_cluster()
    job = f"selfalign-nightly-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    cluster.create_job("selfalign-nightly", job, namespace)
    click.echo(f"started {job}; next: kubectl -n {namespace} get alignmentruns -w")


@deploy.command("preflight")
@click.option("--stage", envvar="STAGE", default=None)
@click.option("--need-stage", is_flag=True, help="Refuse without STAGE.")
def preflight_command(stage: str | None, need_stage: bool) -> None:
    """Only the checks: a stage that exists, a cluster that answers."""
    if need_stage or stage:
        releases.require_stage(stage)
    cluster.require_cluster()


def _server_validation() -> charts.Validate | None:
    if not os.environ.get("KUBECONFIG"):
        return None
    try:
        cluster.require_cluster()
    except SelfAlignError as error:
        click.echo(f"note: validated without an API server: {error.message}", err=True)
        return None
    return partial(cluster.dry_run, namespace="default")


def _image(registry: str, tag: str, variant: Variant) -> dict[str, str]:
    return releases.image_values(
        registry.rstrip("/") or images.LOCAL_REGISTRY, tag or images.code_tag(ROOT, variant)
    )


def _build(
    names: Any, variant: Variant, registry: str, tag: str, build: dict[str, Any]
) -> list[str]:
    builder = find_builder(build["builder"] or None, build["build_flags"].split())
    push = bool(registry) if build["push"] is None else build["push"]
    if push and not registry:
        raise ConfigurationError(
            "PUSH is set, but REGISTRY is not", remedy="REGISTRY=<host>/<path>, or PUSH=0"
        )
    if push and build["check_login"]:
        builder.check_login(registry)
    bases = {
        name: reference
        for name in ("base-cpu", "base-generation", "base-training")
        if (reference := build[name.replace("-", "_")])
    }
    references = images.build_images(
        ROOT, list(names), builder, variant=variant,
        registry=registry.rstrip("/") or images.LOCAL_REGISTRY, tag=tag, bases=bases,
    )  # fmt: skip
    if push:
        for reference in references:
            builder.push(reference)
    return references


def _ensure_namespace(namespace: str) -> None:
    if cluster.ensure_namespace(namespace):
        click.echo(f"made namespace {namespace}, enforcing Pod Security restricted")


def main() -> None:
    """Run; an error ends with its message, remedy and exit code."""
    try:
        deploy.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except SelfAlignError as error:
        click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
