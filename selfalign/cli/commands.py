"""All commands, in the order `--help` shows them, imported when they are used."""

from __future__ import annotations

from importlib import import_module

import click

from selfalign.pipeline import STAGES

# name, where the command is in selfalign.cli, one line of help
_ROWS = """
run         run:run_command             Run every stage on this machine; resume where it stopped.
status      status:status_command       What is done, running or failed, and the next action.
logs        logs:logs_command           The log of a stage, here or on a cluster.
report      report:report_command       Write one HTML file of a run: verdict, scores, funnel.
diff        diff:diff_command           What differs between two runs: settings, scores, answers.
show        show:show_command           An artifact: counts, filters' losses, records.
chat        chat:chat_command           Ask a model of the pipeline.
export      export:export_command       Copy a model out of the store, verified.
serving     serving:serving_group       Fetch the promoted model, serve it, probe the server.
approve     approve:approve_command     Let a model be promoted that passed the gate and waits.
reject      approve:reject_command      Refuse a model that passed the gate and waits.
rollback    inspect:rollback_command    Point `current` back at an earlier promoted model.
gc          gc:gc_command               Delete from the store what nothing needs any more.
gate        gate:gate_group             What the gate's rules can see; try them on past nights.
ablate      ablate:ablate_command       Which behaviours depend on which principle or exemplar.
config      inspect:config_command      Show every value of the configuration and where it is from.
seeds       inspect:seeds_group         Check the human-written lines; count them.
store       inspect:store_group         Check the object store.
inputs      inspect:inputs_group        Upload seeds, evaluation files and base model to the store.
submit      submit:submit_command       Start a run on a cluster.
start-stage cluster:start_stage_command Start one stage of a run on a cluster and follow it.
controller  cluster:controller_command  Drive the AlignmentRuns of a namespace (runs in a pod).
"""


def _table() -> dict[str, tuple[str, str]]:
    rows = [line.split(maxsplit=2) for line in _ROWS.strip().splitlines()]
    stages = {stage.name: (f"stage:{stage.name}", stage.summary) for stage in STAGES}
    return {name: (place, text) for name, place, text in rows} | stages


COMMANDS = _table()


class LazyGroup(click.Group):
    """Knows its commands by name and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"selfalign.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click looks for a like name among loaded commands
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
