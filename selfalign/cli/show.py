"""`selfalign show`: an artifact's manifest in short, its records, what its filters dropped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from selfalign.cli.options import Opened, Place, json_option, new_console, print_json, store_options
from selfalign.cli.parquet import write_parquet
from selfalign.errors import ConfigurationError, DataError, json_text, printable
from selfalign.identity import collect_inputs
from selfalign.inputs import localise
from selfalign.pipeline import PRODUCER
from selfalign.run.plan import plan_from_store
from selfalign.store.artifact import artifact_keys, read_manifest, read_rows, verify
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest


@click.command("show")
@click.argument("artifact", type=click.Choice(list(PRODUCER)))
@click.argument("key", required=False)
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(min=0),
    default=3,
    help="How many records to show; 0 is none.",
)
@click.option("--records", is_flag=True, help="Print every record as one JSON line; nothing else.")
@click.option(
    "--parquet",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write every record into this Parquet file, for pandas and datasets; nothing else.",
)
@click.option(
    "--dropped",
    is_flag=True,
    help="Show sample texts that filters dropped, and the rows set aside.",
)
@click.option("--verify", "check", is_flag=True, help="Read every object and check its SHA-256.")
@store_options
@json_option
def show_command(
    artifact: str,
    key: str | None,
    limit: int,
    records: bool,
    target: Path | None,
    dropped: bool,
    check: bool,
    where: Place,
    as_json: bool,
) -> int:
    """Show an artifact: the one of this configuration, or the one whose key begins with KEY."""
    opened = where.open()
    manifest = find_artifact(opened, artifact, key)
    if records:
        for row in read_rows(opened.store, manifest):
            click.echo(json_text(row))
        return 0
    if target is not None:
        rows = write_parquet(opened.store, manifest, target)
        written = {"artifact": artifact, "key": manifest.key, "records": rows, "file": str(target)}
        print_json(written) if as_json else click.echo(
            printable(f"{artifact} {manifest.key}: {rows:,} records, verified, in {target}")
        )
        return 0
    problems = verify(opened.store, manifest) if check else []
    if as_json:
        print_json({**manifest.model_dump(), "problems": problems if check else None})
    else:
        _print(new_console(), opened.store, manifest, limit, dropped)
        for problem in problems:
            click.echo(click.style("corrupt: ", fg="red") + problem, err=True)
        if check and not problems:
            click.echo(f"verified: {len(manifest.entries)} objects match their SHA-256")
    return DataError.exit_code if problems else 0


def find_artifact(opened: Opened, artifact: str, key: str | None) -> Manifest:
    """The manifest by the beginning of its key, or by what the configuration plans.

    Where neither is given, the only one in the store. Raises ConfigurationError when there is
    none or more than one.
    """
    if key is None and opened.loaded is not None:
        config = localise(opened.loaded.config, opened.store)
        plan = plan_from_store(config, collect_inputs(config), opened.store)
        (manifest,) = (p.manifest for p in plan if p.stage.writes == artifact)
        if manifest is not None:
            return manifest
        what, found = "not made for this configuration", []
        keys = artifact_keys(opened.store, artifact)
    else:
        keys = artifact_keys(opened.store, artifact)
        found = [k for k in keys if k.startswith(key or "")]
        if len(found) == 1:
            manifest = read_manifest(opened.store, artifact, found[0])
            assert manifest is not None
            return manifest
        what = f"{len(found)} artifacts match" if found else "no such artifact is published"
    listed = ", ".join((found or keys)[:8])
    raise ConfigurationError(
        f"{opened.store.url}: {artifact}{f' {key}' if key else ''}: {what}",
        remedy=f"published keys of {artifact}: {listed}; selfalign show {artifact} KEY shows one"
        if listed
        else f"make it: selfalign run --until {PRODUCER[artifact].name}",
    )


def _print(console: Console, store: Store, manifest: Manifest, limit: int, dropped: bool) -> None:
    provenance = manifest.provenance
    facts: dict[str, Any] = {
        "artifact": f"{manifest.artifact} {manifest.key}",
        "stage": manifest.stage,
        "digest": manifest.digest,
        "parents": ", ".join(f"{n} {p.key}" for n, p in manifest.parents.items()) or "none",
        "made": f"{provenance.started_at} to {provenance.finished_at}",
        "engine": ", ".join(f"{k} {v}" for k, v in provenance.engine.items()) or "none",
        "objects": f"{len(manifest.entries)}, {sum(e.bytes for e in manifest.entries):,} bytes",
        "read": f"{manifest.counts.read:,}",
        "kept": f"{manifest.counts.kept:,}",
        **{f"dropped: {name}": f"{count:,}" for name, count in manifest.counts.dropped.items()},
        **{f"quarantined: {name}": f"{n:,}" for name, n in manifest.counts.quarantined.items()},
        **{name: str(value) for name, value in manifest.details.items()},
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(f"[bold]{_shown(name)}[/bold]", _shown(value))
    console.print(table)
    if dropped:
        for reason, texts in manifest.dropped_samples(3).items():
            for text in texts:
                console.print(f"[red]{_shown(reason)}[/red]  {_shown(text)}", soft_wrap=True)
        for bad in manifest.quarantined:
            told = _shown(f"{bad.id}: {bad.explanation}")
            console.print(f"[red]quarantined: {_shown(bad.reason)}[/red]  {told}", soft_wrap=True)
    for row in itertools.islice(read_rows(store, manifest), limit):
        console.print_json(json_text(row))


def _shown(value: object) -> str:
    """What a model or a bucket wrote, as it may be printed."""
    return escape(printable(str(value)))
