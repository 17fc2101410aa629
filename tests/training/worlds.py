"""A tiny model, a mapping to learn, and trainings in processes of their own that may die.

Child processes come from the fork server of `tests/forked.py`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.config import TrainConfig
from selfalign.seeds import Labels, Template
from selfalign.serving.form import ChatForm
from selfalign.store.local import LocalStore
from selfalign.store.manifest import FileEntry
from selfalign.training.base import Example, TrainResult
from selfalign.training.finetune import train
from selfalign.training.stored import StoreCheckpoints
from tests.artifacts import writer
from tests.forked import context
from tests.pipeline_world import write_llama

QUESTIONS = 8
ANSWER_WORDS = 2
SEED = 11
FORM = ChatForm.of(
    Template("distil_standard", "{user} {query} {answer}"), Labels("Question:", "Why:", "Answer:")
)
_HANGS_SECONDS = 300

CONFIG = TrainConfig(
    method="full",
    learning_rate=1e-2,
    schedule="cosine",
    warmup_steps=2,
    epochs=20,
    global_batch_size=4,
    micro_batch_size=2,
    max_length=16,
    precision="float32",
    checkpoint_every_steps=5,
)
LORA = CONFIG.model_copy(
    update={
        "method": "lora",
        "lora": CONFIG.lora.model_copy(
            update={"r": 8, "alpha": 16, "dropout": 0.05, "target_modules": "all-linear"}
        ),
    }
)


def answer(question: int) -> str:
    """The response the model shall learn."""
    return " ".join(f"a{(question * 5 + word) % QUESTIONS}" for word in range(ANSWER_WORDS))


def prompt(question: int) -> str:
    return f"Question: q{question} Answer:"


EXAMPLES = [Example(prompt(question), answer(question)) for question in range(QUESTIONS)]


def build_base(directory: Path, dtype: str = "float32") -> Path:
    """A base model that knows the questions' and answers' words."""
    numbered = [f"{letter}{number}" for letter in "qa" for number in range(QUESTIONS)]
    write_llama(
        directory,
        ["Question:", "Answer:", *numbered],
        dtype,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,  # so that an adapter alone can tell the words apart
        tie_word_embeddings=True,
    )
    return directory


def sink(root: Path) -> StoreCheckpoints:
    """The product's sink, in a directory."""
    return StoreCheckpoints(writer(LocalStore(root), "engraved_model"))


def newest(root: Path, directory: Path) -> int | None:
    """The step of the checkpoint that an attempt would resume from; its files in `directory`."""
    directory.mkdir(exist_ok=True)
    return sink(root / "sink").latest(directory)


@dataclass
class MortalSink:
    """The product's sink in a process that is killed while it uploads, or when it fetches."""

    kept: StoreCheckpoints
    dies_saving: int | None
    dies_fetching: bool

    def upload(self, step: int, directory: Path) -> list[FileEntry]:
        if step == self.dies_saving:
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            for path in files[len(files) // 2 :]:
                path.unlink()
            self.kept.upload(step, directory)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.kept.upload(step, directory)

    def publish(self, step: int, files: list[FileEntry]) -> None:
        self.kept.publish(step, files)

    def rehearse(self, directory: Path) -> None:
        self.kept.rehearse(directory)

    def latest(self, directory: Path) -> int | None:
        if self.dies_fetching:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.kept.latest(directory)


@dataclass(frozen=True)
class Attempt:
    """One training, as a process runs it.

    `signals` maps steps to signals that the process sends itself when they are reported.
    """

    config: TrainConfig
    base: Path
    root: Path
    signals: Mapping[int, int] = field(default_factory=dict)
    dies_saving: int | None = None
    dies_fetching: bool = False
    examples: Any = field(default_factory=lambda: EXAMPLES)
    work: str = "work"
    on_step: Callable[[int], None] | None = None
    seed: int = SEED

    @property
    def output(self) -> Path:
        return self.root / "output"

    def run(self) -> TrainResult:
        import torch

        torch.set_num_threads(1)

        def progress(step: int, total_steps: int, loss: float, tokens_per_second: float) -> None:
            if self.on_step is not None:
                self.on_step(step)
            if step in self.signals:
                os.kill(os.getpid(), self.signals[step])

        return train(
            self.config,
            base_model=self.base,
            revision=None,
            examples=self.examples,
            form=FORM,
            output=self.output,
            work=self.root / self.work,
            checkpoints=MortalSink(sink(self.root / "sink"), self.dies_saving, self.dies_fetching),
            seed=self.seed,
            on_progress=progress,
        )


def files(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under `directory`."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Failure:
    """An error that ended a child; `name` is its class's."""

    name: str
    trace: str


def _child(attempt: Attempt, environ: Mapping[str, str], connection: Any) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the launcher does, or accelerate warns
    os.environ.update(environ)
    if attempt.config.deepspeed is None:  # which calls what torch has deprecated
        warnings.simplefilter("error")
    try:
        connection.send(attempt.run())
    except BaseException as e:  # noqa: BLE001 the parent asserts on it
        connection.send(Failure(type(e).__name__, traceback.format_exc()))


@dataclass
class Child:
    """A running training; `outcome` waits for its result, error, or death."""

    process: Any
    connection: Any

    def outcome(self) -> TrainResult | Failure | int:
        """What it returned or raised; the negative signal number when it was killed."""
        try:
            if not self.connection.poll(_HANGS_SECONDS):
                self.process.kill()
                raise TimeoutError("the training hangs")
            received: TrainResult | Failure = self.connection.recv()
        except EOFError:
            self.process.join()
            return int(self.process.exitcode)
        self.process.join()
        return received


def start(attempt: Attempt, **environ: str) -> Child:
    """Run a training in a process of its own."""
    receiving, sending = context().Pipe(duplex=False)
    process = context().Process(target=_child, args=(attempt, environ, sending))
    process.start()
    sending.close()
    return Child(process, receiving)
