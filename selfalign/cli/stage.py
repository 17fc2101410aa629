"""`selfalign <stage>`: one command per row of the stage table."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from selfalign.cli.options import config_options, json_option, print_json
from selfalign.config import TrainConfig
from selfalign.load import load_config
from selfalign.pipeline import BY_NAME, Stage
from selfalign.store.open import open_store
from selfalign.telemetry import no_progress_bars


def stage_command(stage: Stage) -> click.Command:
    """The command of one stage."""

    @click.command(stage.name, help=_help(stage))
    @config_options
    @click.option(
        "--shard",
        type=click.IntRange(min=0),
        default=0,
        envvar="JOB_COMPLETION_INDEX",  # by which an Indexed Job tells each pod its index
        show_default="$JOB_COMPLETION_INDEX or 0",
        help="Which shard to do.",
    )
    @click.option(
        "--num-shards",
        type=click.IntRange(min=1),
        help=f"How many shards there are.  [default: {stage.name}.num_shards]",
    )
    @click.option(
        "--expect-key",
        metavar="KEY",
        help="Refuse to work unless this is the artifact key planned here.",
    )
    @click.option("--run", metavar="ID", help="The run this is done for (logs).")
    @json_option
    def command(
        config_path: Path,
        overrides: tuple[str, ...],
        shard: int,
        num_shards: int | None,
        expect_key: str | None,
        run: str | None,
        as_json: bool,
    ) -> None:
        from selfalign.run.stage import run_stage

        no_progress_bars()
        config = load_config(config_path, overrides).config
        if stage.workload == "train":
            _launch_processes(getattr(config, stage.name))
        manifest = run_stage(
            stage.name,
            config,
            open_store(config.store),
            shard=0 if not stage.sharded else shard,
            num_shards=num_shards,
            expect_key=expect_key,
            run=run,
        )
        if as_json:
            print_json(
                {
                    "stage": stage.name,
                    "published": manifest is not None,
                    "artifact": stage.writes,
                    "key": manifest.key if manifest else None,
                    "digest": manifest.digest if manifest else None,
                    "counts": manifest.counts.model_dump() if manifest else None,
                }
            )

    return command


def _launch_processes(config: TrainConfig) -> None:
    """Become torchrun, which runs this very command in each training process, where asked."""
    from selfalign.training.processes import launch_command, needs_launch

    if needs_launch(config):
        command = launch_command(config, ["-m", "selfalign", *sys.argv[1:]])
        os.execv(command[0], command)


def _help(stage: Stage) -> str:
    reads = ", ".join(stage.reads) or "seeds only"
    resume = "Run it again after any failure: it goes on after the last committed part."
    return f"""{stage.summary}

    \b
    reads:  {reads}
    writes: {stage.writes}

    {resume}
    A stage whose artifact is published already ends at once.
    """


def __getattr__(name: str) -> click.Command:
    """`selfalign.cli.stage.align` is the command of stage `align`."""
    if name not in BY_NAME:
        raise AttributeError(name)
    return stage_command(BY_NAME[name])
