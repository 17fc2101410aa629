"""`selfalign chat`: talk to a model of the pipeline, as it is served: no principles in sight."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from selfalign.cli.options import FiniteRange, Opened, Place, json_option, store_options
from selfalign.cli.show import find_artifact
from selfalign.engines.base import Engine, GenerationRequest, Sampling
from selfalign.errors import DataError, json_text, printable
from selfalign.inputs import local_seeds
from selfalign.prompts import render_align, render_verbose, stop_strings
from selfalign.records import record_seed
from selfalign.seeds import load_seeds
from selfalign.serving.directory import read_served
from selfalign.serving.signing import VERIFY_KEY, key_file, verify
from selfalign.serving.template import Message
from selfalign.stages.asking import asking, put
from selfalign.stages.models import artifact_engine, base_engine, current_model
from selfalign.store.manifest import Manifest
from selfalign.telemetry import no_progress_bars

_PROMPTS = {"verbose": render_verbose, "align": render_align}


@click.command("chat")
@click.argument("question", required=False)
@click.option(
    "--model",
    type=click.Choice(["current", "final", "engraved", "base"]),
    default="current",
    help="The promoted model, or one of this configuration.",
)
@click.option(
    "--prompt",
    type=click.Choice(["standard", *_PROMPTS]),
    default="standard",
    help="standard is the model's chat template, as it is served; align shows the model the "
    "principles and lets it think.",
)
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@click.option("--conversation", is_flag=True, help="The questions are turns of one conversation.")
@click.option("--temperature", type=FiniteRange(min=0), default=0.0)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256)
@store_options
@json_option
def chat_command(
    question: str | None,
    model: str,
    prompt: str,
    system: str | None,
    conversation: bool,
    temperature: float,
    max_new_tokens: int,
    where: Place,
    as_json: bool,
) -> None:
    """Ask QUESTION, or one question per line of standard input, each on its own.

    A line that cannot be put to the model is told on standard error, and the others are asked. The
    exit code is then 3.
    """
    no_progress_bars()
    if question is not None and not question.strip():
        raise click.UsageError("QUESTION is empty")
    if prompt != "standard" and (system or conversation):
        raise click.UsageError(f"--prompt {prompt} asks single questions without a system message")
    opened = where.open()
    seeds = load_seeds(local_seeds(opened.config.seeds, opened.store))
    manifest = _manifest(opened, model)
    found = asking(opened.store, manifest, seeds)
    sampling = Sampling(
        temperature=temperature,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        stop=found.stop if prompt == "standard" else stop_strings(seeds.labels),
    )
    before: list[Message] = [{"role": "system", "content": _text(system)}] if system else []
    refused, number = 0, -1
    with _open(opened, manifest) as engine:
        questions = _questions() if question is None else iter([question])
        for number, typed in enumerate(questions):
            try:
                text = _text(typed)
                messages = [*before, {"role": "user", "content": text}]
                seed = record_seed(opened.config.seed + number, text)
                if prompt == "standard":
                    rendered = found.template.render(messages)
                else:
                    rendered = _PROMPTS[prompt](seeds, text)
                request = GenerationRequest("chat", rendered, sampling, seed)
                answer = put(engine, request).text.strip()
            except DataError as error:
                if question is not None:
                    raise
                refused += 1
                click.echo(f"question {number + 1}: {error}", err=True)
                continue
            if conversation:
                before = [*messages, {"role": "assistant", "content": answer}]
            if as_json:
                told = {"question": text, "answer": answer, "model": model, "prompt": prompt}
                click.echo(json_text(told))  # one line for each question
            else:
                click.echo(printable(answer))
    if refused:
        raise DataError(
            f"{refused} of {number + 1} questions could not be put to the model",
            remedy="what is wrong with each is told above; the others were answered",
        )


def _questions() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            click.echo("> ", nl=False)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise _not_utf8(str(error)) from error
        if not line:
            return
        if line.strip():
            yield line.strip()


def _text(typed: str) -> str:
    """What was typed. Raises DataError where bytes of it are no UTF-8."""
    try:
        typed.encode()
    except UnicodeEncodeError as error:
        raise _not_utf8(str(error)) from error
    return typed


def _not_utf8(reason: str) -> DataError:
    return DataError(f"the question is not UTF-8 text: {reason}", remedy="write it in UTF-8")


def _open(opened: Opened, manifest: Manifest | None) -> Engine:
    config = opened.config
    if manifest is None:
        return base_engine(opened.store, config, config.evaluate.engine)
    return artifact_engine(opened.store, manifest, config, config.evaluate.engine)


def _manifest(opened: Opened, model: str) -> Manifest | None:
    """The model's artifact; None for the base model."""
    if model == "base":
        return None
    if model != "current":
        return find_artifact(opened, f"{model}_model", None)
    manifest = current_model(opened.store)
    if (key := key_file(VERIFY_KEY)) is not None:
        verify(opened.store, read_served(opened.store, manifest.digest), key)
    return manifest
