"""`selfalign gc`: delete what nothing needs any more."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import click
from rich.filesize import decimal
from rich.table import Table

from selfalign.cli.options import Place, json_option, new_console, print_json, store_options
from selfalign.run.gc import collect
from selfalign.run.reachable import Retention, Unit, texts


@click.command("gc")
@click.option(
    "--keep-nights",
    type=click.IntRange(1, 36_500),
    required=True,
    metavar="N",
    help="Keep the runs of the latest N days on which runs began, with all they name.",
)
@click.option(
    "--grace-hours",
    type=click.IntRange(2, 876_000),
    default=48,
    metavar="HOURS",
    help="Keep whatever was written within this time. More than a stage takes that is run by hand.",
)
@click.option("--dry-run", is_flag=True, help="Delete nothing; show what would be.")
@store_options
@json_option
def gc_command(
    keep_nights: int, grace_hours: int, dry_run: bool, where: Place, as_json: bool
) -> None:
    """Delete what nothing needs any more from the store.

    Kept are the promoted model, those that a rollback reaches, runs of the latest nights, runs that
    have not ended (for 30 days), the inputs that these and the configuration name, and what all of
    them were made from. Safe while runs work, and when it is killed: the next one goes on.
    """
    opened = where.open()
    named = () if opened.loaded is None else texts(opened.config.model_dump(mode="json"))
    retention = Retention(keep_nights, timedelta(hours=grace_hours), frozenset(named))
    outcome = collect(opened.store, retention, dry_run=dry_run)
    gone = outcome.condemned if dry_run else outcome.deleted
    deleted, kept = _sum([outcome.units[prefix] for prefix in gone]), _sum(outcome.kept(gone))
    if as_json:
        sums = {"deleted": deleted._asdict(), "kept": kept._asdict()}
        print_json({"dry_run": dry_run, **sums, "prefixes": gone})
        return
    console = new_console()
    for prefix in gone:
        console.print(prefix, highlight=False, soft_wrap=True, markup=False, emoji=False)
    table = Table("", "units", "objects", "size", box=None, pad_edge=False)
    for name, total in {
        "would be deleted" if dry_run else "deleted": deleted,
        "kept": kept,
    }.items():
        table.add_row(name, f"{total.units:,}", f"{total.objects:,}", decimal(total.bytes))
    console.print(table)


class _Sum(NamedTuple):
    units: int
    objects: int
    bytes: int


def _sum(units: list[Unit]) -> _Sum:
    return _Sum(len(units), sum(u.objects for u in units), sum(u.bytes for u in units))
