"""`selfalign export`: a model out of the store, for whatever loads or publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from selfalign.cli.options import json_option, open_from, print_json, store_options
from selfalign.cli.show import find_artifact
from selfalign.serving.export import export
from selfalign.serving.signing import VERIFY_KEY
from selfalign.stages.models import current_model


@click.command("export")
@click.argument("key", required=False)
@click.option(
    "--to",
    "target",
    required=True,
    metavar="DIR|s3://BUCKET/PREFIX",
    help="Where the files go; made where it does not exist.",
)
@click.option(
    "--form",
    type=click.Choice(["merged", "adapter"]),
    default="merged",
    show_default=True,
    help="merged is the whole model; adapter is what fine-tuning added (LoRA methods).",
)
@click.option(
    "--artifact",
    type=click.Choice(["final_model", "engraved_model"]),
    default="final_model",
    show_default=True,
    help="What KEY is a key of.",
)
@click.option(
    "--verify",
    "public_key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar=VERIFY_KEY,
    show_envvar=True,
    help="A PEM public key: copy nothing that its key did not sign.",
)
@store_options
@json_option
def export_command(
    key: str | None,
    target: str,
    form: Literal["merged", "adapter"],
    artifact: str,
    public_key: Path | None,
    config_path: Path,
    overrides: tuple[str, ...],
    store_url: str | None,
    as_json: bool,
) -> None:
    """Copy the promoted model, or the one whose key begins with KEY, out of the store.

    Every file is verified. Stopped, it continues where it was; run again, it copies nothing.
    """
    opened = open_from(config_path, overrides, store_url)
    model = current_model(opened.store) if key is None else find_artifact(opened, artifact, key)
    done = export(opened.store, model, form, target, public_key=public_key)
    size = sum(entry.bytes for entry in done.files)
    if as_json:
        print_json({"to": target, "bytes": size, **done.model_dump(mode="json")})
    else:
        click.echo(
            f"{done.artifact} {done.key} ({form}): {len(done.files)} files, {size:,} bytes, "
            f"verified, in {target}"
        )
