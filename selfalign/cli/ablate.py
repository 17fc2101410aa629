"""`selfalign ablate`: which behaviours depend on which principle or exemplar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from selfalign.cli.options import config_options, json_option, new_console, print_json
from selfalign.evaluation.summary import Comparison, EvaluationSummary
from selfalign.load import load_config
from selfalign.report.words import is_clear, is_sure, signed
from selfalign.stages.ablation import LeftOut
from selfalign.store.open import open_store
from selfalign.telemetry import no_progress_bars


@click.command("ablate")
@click.option(
    "--principle", "principles", type=int, multiple=True, help="Number of one; may be repeated."
)
@click.option(
    "--exemplar", "exemplars", type=int, multiple=True, help="Number of one; may be repeated."
)
@config_options
@json_option
def ablate_command(
    principles: tuple[int, ...],
    exemplars: tuple[int, ...],
    config_path: Path,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which behaviours of the base model depend on which line that people wrote.

    The base model answers the held-out prompts under the principles, with one principle or one
    exemplar left out at a time: each principle and each exemplar, unless some are named. Nothing
    is trained. A cell is the share of right answers (heldout.aligned) of one kind of prompt
    without the line, less that with it, over the same prompts: below zero, the kind depends on it.

    A principle goes with the exemplars that cite it and is compared with a prompt that lacks these
    alone. * marks cells whose interval leaves zero out, ** those that also hold against the number
    of all cells (Holm, 0.05).

    What is done is kept in the store: interrupted, the command goes on where it was; again, it
    prints what was found.
    """
    from selfalign.run.ablation import run_ablation

    no_progress_bars()
    config = load_config(config_path, overrides).config
    some = bool(principles or exemplars)
    lines, summary = run_ablation(
        config, open_store(config.store), principles if some else None, exemplars if some else None
    )
    if as_json:
        print_json([_row(line, cell) for line in lines for cell in _cells(summary, line).values()])
        return
    _print(lines, summary)


def _cells(summary: EvaluationSummary, line: LeftOut) -> dict[str | None, Comparison]:
    """By kind of prompt, None being all of them."""
    names = (line.without.name, line.control.name)
    return {row.kind: row for row in summary.comparisons if (row.subject, row.against) == names}


def _row(line: LeftOut, cell: Comparison) -> dict[str, Any]:
    return {
        "left_out": line.line,
        "kind": cell.kind,
        "items": cell.n,
        "without": cell.subject_mean,
        "with": cell.against_mean,
        "difference": cell.difference,
        "interval": None if cell.low is None else [cell.low, cell.high],
        "better": cell.wins,
        "worse": cell.losses,
        "p": cell.p_value,
        "p_holm": cell.p_holm,
    }


def _shown(cell: Comparison | None) -> str:
    if cell is None or cell.difference is None:
        return ""
    return signed(cell.difference, 2) + ("**" if is_sure(cell) else "*" if is_clear(cell) else "")


def _p(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def _print(lines: list[LeftOut], summary: EvaluationSummary) -> None:
    """A row for each line, a column for each kind; below, the cells that are clear, in words."""
    found = [(line, _cells(summary, line)) for line in lines]
    kinds = list(dict.fromkeys(kind for _, cells in found for kind in cells))
    table = Table("left out", *(kind or "all" for kind in kinds), box=None, pad_edge=False)
    for line, cells in found:
        table.add_row(escape(line.line), *(_shown(cells.get(kind)) for kind in kinds))
    console = new_console()
    console.print(table)
    clear = [(line, cell) for line, cells in found for cell in cells.values() if is_clear(cell)]
    clear.sort(key=lambda each: (each[1].p_holm or 0, each[1].difference or 0))
    for line, cell in clear:
        assert cell.low is not None
        assert cell.high is not None
        assert cell.difference is not None
        click.echo(
            f"{line.line}: {cell.kind or 'all'} {signed(cell.difference)} "
            f"({100 * summary.confidence:g}% interval {signed(cell.low)} to {signed(cell.high)}, "
            f"{cell.wins} better, {cell.losses} worse of {cell.n}, p {_p(cell.p_value)}, "
            f"among all cells {_p(cell.p_holm)})"
        )
    total = sum(len(cells) for _, cells in found)
    sure = sum(is_sure(cell) for _, cell in clear)
    click.echo(f"{total} cells: {len(clear)} whose interval leaves zero out, {sure} sure (Holm)")
