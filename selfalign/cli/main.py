"""The command line: one subcommand per stage of the table, and what a person needs around them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from selfalign import __version__
from selfalign.cli.commands import LazyGroup
from selfalign.errors import Interrupted, SelfAlignError, StorageFull, StoreDenied, json_text
from selfalign.store.files import translate_os_error
from selfalign.telemetry import configure_logging, drop_output, log

TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes' default terminationMessagePath
_TERMINATION_BYTES = 4096  # what the kubelet reads of it

_EPILOG = """\b
Exit codes:
  0    success
  1    a bug in selfalign
  2    configuration, seeds or command line are wrong     (never retried)
  3    an artifact, model or data file is wrong            (never retried)
  4    the store or the file system refuses access         (never retried)
  10   `selfalign run`: the gate passed, a person decides   (selfalign approve)
  69   the store cannot be reached                         (retried)
  70   the engine failed                                   (retried)
  71   the engine ran out of memory                        (retried)
  73   gc is deleting what is needed                       (retried, free of charge)
  74   no space left on the disk                           (retried)
  75   another failure that may pass                       (retried)
  130  stopped by Ctrl-C, 143 by SIGTERM; finished work is kept

\b
Start here:
  selfalign run --config selfalign.yaml      all stages, resumes where it stopped
  selfalign status                           what is done, what is next
  selfalign report                           one HTML file to look at
"""


@click.group(
    cls=LazyGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="selfalign")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="SELFALIGN_LOG_LEVEL",
    help="Least severe event shown on stderr.",
)
def cli(log_level: str) -> None:
    """Self-Align: turn a base language model and fewer than 300 human-written lines into an
    aligned model, stage by stage, reproducibly, and promote it only if it is better."""
    json_lines = True if os.environ.get("SELFALIGN_LOG") == "json" else None
    configure_logging(json_lines=json_lines, level=log_level)


def main() -> None:
    """Run the command line; turn errors into a message and the documented exit code."""
    for name in ("stdin", "stdout", "stderr"):  # a closed one; no file may get its number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115
    stdout = sys.stdout
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        if "--json" in sys.argv:
            _tell(error.format_message(), _usage_remedy(error), error.exit_code)
        else:
            with contextlib.suppress(OSError):  # the exit code says it too
                error.show()
        sys.exit(error.exit_code)
    except (SelfAlignError, Interrupted) as error:
        _tell(error.message, error.remedy, error.exit_code)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        # The ways of rich and of click (which replaces stdout) to end on a closed pipe.
        if isinstance(ended.__context__, BrokenPipeError) or sys.stdout is not stdout:
            sys.exit(0)
        raise
    except BrokenPipeError:
        # The reader of a pipe has gone: nothing more to say, and nobody to say it to.
        drop_output(sys.stdout)
        sys.exit(0)
    except OSError as error:
        told = translate_os_error(error, "selfalign", "go on")
        if not isinstance(told, StorageFull | StoreDenied):
            raise  # as likely a bug
        _tell(told.message, told.remedy, told.exit_code)
        if error.filename is None:
            drop_output(sys.stdout)  # it is what could not be written
        sys.exit(told.exit_code)
    sys.exit(result if isinstance(result, int) else 0)


def _usage_remedy(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'selfalign'} --help"


def _interrupt(number: int, _frame: Any) -> None:
    # A second signal must not interrupt the clean-up that the first one started.
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def _tell(message: str, remedy: str | None, exit_code: int) -> None:
    _leave_termination_message(message, remedy)
    if os.environ.get("SELFALIGN_LOG") == "json":
        log.error("stage.failed", error=message, remedy=remedy, exit_code=exit_code)
        return
    if "--json" in sys.argv:
        payload = {"error": message, "remedy": remedy, "exit_code": exit_code}
        try:
            click.echo(json_text(payload))
            return
        except OSError:  # nobody reads stdout, or it is a full disk
            drop_output(sys.stdout)
    with contextlib.suppress(OSError):  # the exit code says it too
        click.echo(click.style("error: ", fg="red", bold=True, reset=True) + message, err=True)
        if remedy:
            click.echo(click.style("remedy: ", fg="green") + remedy, err=True)


def _leave_termination_message(message: str, remedy: str | None) -> None:
    """In a pod, leave the message where `kubectl describe` and the controller find it."""
    text = f"{message}\nremedy: {remedy}" if remedy else message
    if TERMINATION_LOG.is_file():
        with contextlib.suppress(OSError):  # the log has it all the same
            TERMINATION_LOG.write_bytes(text.encode()[:_TERMINATION_BYTES])
