"""`selfalign diff`: what differs between two runs of a store."""

from __future__ import annotations

from typing import Any

import click

from selfalign.cli.options import Place, json_option, place_options, print_json
from selfalign.errors import printable
from selfalign.evaluation.answers import Pair
from selfalign.report.compare import RunDiff, compare, view
from selfalign.report.words import sentences


@click.command("diff")
@click.argument("before", metavar="RUN")
@click.argument("after", metavar="RUN")
@click.option(
    "--answers",
    "limit",
    type=click.IntRange(min=0),
    default=3,
    help="How many of the most changed answers to show of each sort.",
)
@place_options
@json_option
def diff_command(before: str, after: str, limit: int, where: Place, as_json: bool) -> None:
    """Say what differs from the first RUN to the second: settings, inputs, rows kept, answers.

    The final models are compared on the held-out prompts that both answered, item by item, with
    intervals.
    """
    store = where.open().store
    diff = compare(view(store, before), view(store, after))
    if as_json:
        print_json(_as_json(diff, limit))
        return
    for line in sentences(diff):
        click.echo(printable(line))
    for setting in diff.settings:
        shown = (
            value if value is not None else "(absent)" for value in (setting.before, setting.after)
        )
        click.echo(printable(f"  {setting.name}: {' -> '.join(shown)}"))
    for title, pairs in _sorts(diff).items():
        for pair in pairs[:limit]:
            click.echo(printable(f"\n{title} [{pair.item.kind}] {pair.item.prompt}"))
            click.echo(printable(f"  was: {pair.before}\n  now: {pair.after}"))


def _sorts(diff: RunDiff) -> dict[str, list[Pair]]:
    found = diff.answers
    if found is None:
        return {}
    return {"worse": found.worse, "better": found.better, "other": found.other}


def _as_json(diff: RunDiff, limit: int) -> dict[str, Any]:
    return {
        "runs": [diff.before.run.id, diff.after.run.id],
        "verdicts": [diff.before.status.verdict, diff.after.status.verdict],
        "settings": {row.name: [row.before, row.after] for row in diff.settings},
        "kept": {row.stage: [row.before, row.after] for row in diff.kept},
        "same_artifacts": [row.stage for row in diff.kept if row.same],
        "scores": [row.model_dump() for row in diff.scores],
        "answers": None
        if diff.answers is None
        else {
            "compared": diff.answers.compared,
            **{
                title: {
                    "count": len(pairs),
                    "most_changed": [
                        {
                            "item": pair.item.id,
                            "kind": pair.item.kind,
                            "prompt": pair.item.prompt,
                            "was": pair.before,
                            "now": pair.after,
                            "refusal": list(pair.classes),
                        }
                        for pair in pairs[:limit]
                    ],
                }
                for title, pairs in _sorts(diff).items()
            },
        },
    }
