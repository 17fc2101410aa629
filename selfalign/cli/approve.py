"""`selfalign approve` and `selfalign reject`: a person decides on a model that passed the gate."""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import click

from selfalign.cli.options import Place, json_option, place_options, print_json
from selfalign.errors import SelfAlignError, printable
from selfalign.run.record import read_run, status_to_show
from selfalign.stages.approval import decide_on

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _this_user(where: Place) -> str:
    """The cluster's name for this person where one was named, and else this machine's."""
    if where.given:
        with contextlib.suppress(SelfAlignError):
            if name := where.connect().user():
                return name
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user id without a name
        raise click.UsageError("this user has no name here: say who decides with --as") from None


def _not_blank(
    _context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("expected a text that is not blank", param=parameter)
    return None if value is None else value.strip()


def _options(function: _Function) -> _Function:
    function = place_options(json_option(function))
    function = click.option(
        "--as",
        "by",
        callback=_not_blank,
        metavar="NAME",
        help="Who decides; it is written down, not proved.  [default: the cluster's user where one "
        "is named, else this user @ this machine]",
    )(function)
    return click.argument("run_id", metavar="RUN")(function)


@click.command("approve")
@_options
@click.option(
    "--reason", default="", show_default=False, metavar="TEXT", help="Why; it is written down."
)
def approve_command(**options: Any) -> None:
    """Let the final model of RUN be promoted, which passed the gate and waits for this.

    With `promote.approval: manual`. Look at `selfalign report RUN` first. Refused where somebody
    has decided already, or another model was promoted since the gate judged. Needs the right to
    write below approvals/ in the store.
    """
    _decide(approved=True, **options)


@click.command("reject")
@_options
@click.option("--reason", required=True, callback=_not_blank, metavar="TEXT", help="Why.")
def reject_command(**options: Any) -> None:
    """Refuse the final model of RUN, which passed the gate and waits for a decision.

    The run then ends with the verdict Rejected. A decision is final: a run with another seed makes
    another model.
    """
    _decide(approved=False, **options)


def _decide(
    *, approved: bool, run_id: str, by: str | None, reason: str, where: Place, as_json: bool
) -> None:
    store = where.open().store
    read_run(store, run_id)
    key = status_to_show(store, run_id).key_of("promote")
    by = by or _this_user(where)
    decision = decide_on(store, run_id, key, approved=approved, by=by, reason=reason)
    if as_json:
        print_json({"run": run_id, "promotion": key, **decision.model_dump(mode="json")})
        return
    click.echo(printable(f"run {run_id}: {decision}"))
    if where.on_cluster:
        click.echo("next: the controller carries it out within a minute: selfalign status")
    else:
        click.echo("next: the controller, or `selfalign run` here once more, carries it out")
