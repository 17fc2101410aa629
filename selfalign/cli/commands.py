"""All commands, in the order `--help` should be read."""

from __future__ import annotations

import click

from selfalign.cli.chat import chat_command
from selfalign.cli.cluster import controller_command, start_stage_command
from selfalign.cli.inspect import (
    config_command,
    inputs_group,
    rollback_command,
    seeds_group,
    store_group,
)
from selfalign.cli.logs import logs_command
from selfalign.cli.report import report_command
from selfalign.cli.run import run_command
from selfalign.cli.show import show_command
from selfalign.cli.stage import STAGE_COMMANDS
from selfalign.cli.status import status_command
from selfalign.cli.submit import submit_command

COMMANDS: list[click.Command] = [
    run_command,
    status_command,
    logs_command,
    report_command,
    show_command,
    chat_command,
    rollback_command,
    config_command,
    seeds_group,
    store_group,
    inputs_group,
    submit_command,
    start_stage_command,
    controller_command,
    *STAGE_COMMANDS,
]
