"""`selfalign export`: a model out of the store, for whatever loads or publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from selfalign.cli.mlflow_registry import register
from selfalign.cli.options import Place, json_option, print_json, store_options, verify_option
from selfalign.cli.show import find_artifact
from selfalign.cli.tensorboard import write_events
from selfalign.errors import printable
from selfalign.serving.export import export
from selfalign.stages.models import current_model


@click.command("export")
@click.argument("key", required=False)
@click.option(
    "--to",
    "target",
    metavar="DIR|s3://BUCKET/PREFIX|oci://REGISTRY/REPOSITORY[:TAG]",
    help="Where the files go; a directory is made where it does not exist. A registry gets one "
    "artifact (CNCF ModelPack), under the model's digest where no TAG is given.",
)
@click.option(
    "--form",
    type=click.Choice(["merged", "adapter"]),
    default="merged",
    help="merged is the whole model; adapter is what fine-tuning added (LoRA methods).",
)
@click.option(
    "--artifact",
    type=click.Choice(["final_model", "engraved_model"]),
    default="final_model",
    help="What KEY is a key of.",
)
@verify_option("copy")
@click.option(
    "--mlflow",
    "registry",
    metavar="URI",
    help="Register the promoted model in MLflow's model registry, once, and move the alias "
    "`current` to it. Nothing is copied: its source is the store.",
)
@click.option("--mlflow-name", metavar="NAME", default="selfalign", help="Of the registered model.")
@click.option(
    "--tensorboard",
    "events",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the model's loss curve for TensorBoard.",
)
@store_options
@json_option
def export_command(
    key: str | None,
    target: str | None,
    form: Literal["merged", "adapter"],
    artifact: str,
    public_key: Path | None,
    registry: str | None,
    mlflow_name: str,
    events: Path | None,
    where: Place,
    as_json: bool,
) -> None:
    """Copy the promoted model, or the one whose key begins with KEY, out of the store.

    Every file is verified. Stopped, it continues where it was; run again, it copies nothing.
    For a registry, log in before: docker login, podman login or a credential helper.

    \b
    selfalign export --to model                      a directory that servers load
    selfalign export --to oci://ghcr.io/me/model     an artifact, for `oras pull`
    selfalign export --mlflow https://HOST           a version in MLflow's registry
    selfalign export --tensorboard runs              the loss curve
    """
    if target is None and registry is None and events is None:
        raise click.UsageError("nothing to do: give --to, --mlflow or --tensorboard")
    if key is None and artifact != "final_model":
        raise click.UsageError(f"--artifact {artifact} says what KEY is a key of: give KEY too")
    if registry is not None and key is not None:
        raise click.UsageError("--mlflow registers the promoted model: leave KEY out")
    opened = where.open()
    model = current_model(opened.store) if key is None else find_artifact(opened, artifact, key)
    told: dict[str, Any] = {}
    if target is not None:
        done, place = export(opened.store, model, form, target, public_key=public_key)
        size = sum(entry.bytes for entry in done.files)
        told |= {"to": place, "bytes": size, **done.model_dump(mode="json")}
        if not as_json:
            click.echo(
                f"{done.artifact} {done.key} ({form}): {len(done.files)} files, {size:,} bytes, "
                f"verified, in {place}"
            )
    if registry is not None:
        told["mlflow_version"] = register(opened.store, registry, mlflow_name)
        if not as_json:
            click.echo(f"{mlflow_name} version {told['mlflow_version']}: {model.digest[:12]}")
    if events is not None:
        told["tensorboard"] = str(write_events(opened.store, model, events))
        if not as_json:
            click.echo(printable(f"wrote {told['tensorboard']}"))
    if as_json:
        print_json(told)
