"""Commands that look and check: `config`, `seeds`, `store`, `inputs`, `rollback`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.markup import escape
from rich.table import Table

from selfalign.cli.options import (
    Place,
    config_options,
    json_option,
    new_console,
    place_options,
    print_json,
    store_options,
)
from selfalign.config import RunConfig, SeedsConfig
from selfalign.errors import ConfigurationError, printable
from selfalign.inputs import localise, push_inputs
from selfalign.load import dump_config, flatten, load_config, write_resolved
from selfalign.seeds import ANNOTATION_LIMIT, annotation_lines, load_seeds
from selfalign.stages.preflight import check_run
from selfalign.stages.rollback import roll_back
from selfalign.store.check import check_store
from selfalign.store.files import os_errors
from selfalign.store.open import open_store

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SECRET = re.compile(
    r"(token|password|secret|api[_-]?key|access[_-]?key|authorization)[^.]*$", re.IGNORECASE
)


@click.command("config")
@config_options
@click.option("--schema", is_flag=True, help="Print the JSON schema: every key, meaning, default.")
@json_option
def config_command(
    config_path: Path, overrides: tuple[str, ...], schema: bool, as_json: bool
) -> None:
    """Show every value of the resolved configuration and where it came from: default, file or
    --set. With --schema, the JSON schema of the configuration file instead."""
    if schema:
        print_json(RunConfig.model_json_schema())
        return
    loaded = load_config(config_path, overrides)
    values = flatten(loaded.config.model_dump(mode="json"))
    rows = [
        (
            name,
            "(hidden)" if _SECRET.search(name) and isinstance(value, str) else value,
            _origin(name, loaded.origins),
        )
        for name, value in values.items()
    ]
    if as_json:
        print_json({name: {"value": value, "origin": origin} for name, value, origin in rows})
        return
    table = Table("key", "value", "from", box=None, pad_edge=False)
    for name, value, origin in rows:
        style = "dim" if origin == "default" else None
        table.add_row(name, escape(str(value)), origin, style=style)
    new_console().print(table)


def _origin(name: str, origins: dict[str, str]) -> str:
    while name:
        if name in origins:
            return origins[name]
        name = name.rpartition(".")[0]
    return "default"


@click.group("seeds")
def seeds_group() -> None:
    """The lines written by people: principles, exemplars, seed prompts, templates."""


def _count_options(function: _Function) -> _Function:
    """`--general` and so on: an option for each count of SeedsConfig, with its default."""
    for name, field in reversed(SeedsConfig.model_fields.items()):
        if name != "directory":
            function = click.option(
                f"--{name.replace('_', '-')}",
                type=click.IntRange(min=1),
                default=field.default,
                help=f"How many {field.description} there must be.",
            )(function)
    return function


@seeds_group.command("check")
@click.argument("directory", type=click.Path(path_type=Path), default=Path("seeds"))
@_count_options
@json_option
def seeds_check(directory: Path, as_json: bool, **counts: int) -> None:
    """Check a seeds directory strictly and count its annotation budget."""
    config = SeedsConfig.model_validate({"directory": directory, **counts})
    load_seeds(config)
    lines_of = annotation_lines(directory)
    total = sum(lines_of.values())
    kept = total < ANNOTATION_LIMIT
    if as_json:
        print_json(
            {"files": lines_of, "total": total, "limit": ANNOTATION_LIMIT, "within_limit": kept}
        )
        return
    table = Table("file", "lines", box=None, pad_edge=False)
    for name, lines in lines_of.items():
        table.add_row(name, str(lines))
    table.add_row("[bold]total[/bold]", f"[bold]{total}[/bold] of {ANNOTATION_LIMIT}")
    new_console().print(table)
    if not kept:
        # the method's own limit; a directory of somebody else's lines may be larger
        click.echo(
            click.style("warning: ", fg="yellow")
            + f"{total} lines: over the limit, fewer than {ANNOTATION_LIMIT} are asked for",
            err=True,
        )


@click.group("store")
def store_group() -> None:
    """The object store that artifacts pass through."""


@store_group.command("check")
@store_options
@json_option
def store_check(where: Place, as_json: bool) -> int:
    """Prove that the store honours conditional writes, which publication relies on.

    Some S3-compatible stores accept the conditions and ignore them: two workers could then
    publish the same artifact twice. Writes below one scratch prefix and removes it.
    """
    results = check_store(where.open().store)
    if as_json:
        print_json([{"name": r.name, "ok": r.ok, "detail": r.detail} for r in results])
    else:
        for result in results:
            mark = "[green]ok[/green]    " if result.ok else "[red]FAILED[/red]"
            new_console().print(f"{mark} {result.name}: {escape(result.detail)}", soft_wrap=True)
    return 0 if all(result.ok for result in results) else ConfigurationError.exit_code


@click.group("inputs")
def inputs_group() -> None:
    """Seeds, evaluation files and the base model, content-addressed in the store."""


@inputs_group.command("push")
@config_options
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Write the configuration with `store:` names here.  [default: stdout]",
)
def inputs_push(config_path: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Upload what the configuration names and the store does not have yet.

    The configuration that comes out names everything by `store:inputs/...`, so that workers on
    other machines need nothing but the store.
    """
    config = load_config(config_path, overrides).config
    store = open_store(config.store)
    local = localise(config, store)
    check_run(local, load_seeds(local.seeds))
    resolved = push_inputs(config, store)
    if out is None:
        click.echo(dump_config(resolved), nl=False)
    else:
        with os_errors("--out", "write"):
            write_resolved(resolved, out)
        click.echo(printable(f"wrote {out}"))


@click.command("rollback")
@place_options
@click.option(
    "--to",
    metavar="KEY",
    help="A model promoted before, also one rolled back from (key or its beginning).  "
    "[default: the one before]",
)
@json_option
def rollback_command(where: Place, to: str | None, as_json: bool) -> None:
    """Point `current` back at an earlier promoted model, by compare-and-swap.

    The model rolled back from is not promoted again by a run with the same inputs; `--to` its
    key brings it back. With --namespace, --context or --kubeconfig: in the store of the platform
    there.
    """
    pointer = roll_back(where.open().store, to=to)
    if as_json:
        print_json(pointer.model_dump())
    else:
        click.echo(f"current is now {pointer.model.artifact} {pointer.model.key}")
