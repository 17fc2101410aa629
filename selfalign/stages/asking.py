"""How a model is asked: by the chat template that it was trained with, as a server asks it.

A model of this project carries its template and ends an answer by a token alone: servers know no
stop strings by default. The base model, and a model of 0.4.0 or before, carries no such template:
it is asked by the one that the seeds give, and the next turn's label ends its answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfalign.engines.base import Completion, Engine, GenerationRequest, Quarantined
from selfalign.errors import DataError
from selfalign.prompts import stop_strings
from selfalign.seeds import Seeds
from selfalign.serving.directory import is_servable
from selfalign.serving.form import ChatForm
from selfalign.serving.template import ChatTemplate, chat_template
from selfalign.store.artifact import artifact_prefix, read_file
from selfalign.store.base import Store
from selfalign.store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Asking:
    """The template that renders a conversation, and the strings that end an answer."""

    template: ChatTemplate
    stop: tuple[str, ...]

    def question(self, text: str) -> str:
        """The prompt of one question. U+0000 goes to the engine, which sets the row aside."""
        plain = self.template.render([{"role": "user", "content": text.replace("\0", "")}])
        return plain if "\0" not in text else f"{plain}\0"


def put(engine: Engine, request: GenerationRequest) -> Completion:
    """The answer to one request. Raises DataError where the engine sets it aside."""
    (answer,) = engine.generate([request])
    if isinstance(answer, Quarantined):
        raise DataError(
            f"the question cannot be put to the model: {answer.explanation}",
            remedy="ask it in other words, or a shorter one",
        )
    return answer


def asking(store: Store, manifest: Manifest | None, seeds: Seeds) -> Asking:
    """How to ask a model artifact; None is the base model. Raises DataError."""
    if manifest is None or not is_servable(manifest):
        form = ChatForm.of(seeds.templates.distil_standard, seeds.labels)
        template = ChatTemplate(form, chat_template(form), "the seeds' chat template")
        return Asking(template, stop_strings(seeds.labels))
    where = f"{store.url}/{artifact_prefix(manifest.artifact, manifest.key)}files/merged/"
    template = ChatTemplate.read(lambda name: read_file(store, manifest, f"merged/{name}"), where)
    return Asking(template, ())
