"""The chat template: generated from a chat form, and rendered as a server does.

Reads `chat_form.json` and `chat_template.jinja` of a model. A template is rendered in jinja's
sandbox, and only if it is the one that its form generates: what lies in a bucket decides words,
never what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from selfalign.errors import DataError
from selfalign.serving.form import FORM_NAME, ChatForm
from selfalign.store.documents import parse_document

TEMPLATE_NAME = "chat_template.jinja"
Message = Mapping[str, str]
_SOURCE = Path(__file__).with_name("chat_template_v1.jinja")


def chat_template(form: ChatForm) -> str:
    """The template's text, with the form's values as jinja literals. Pure but for its source."""
    values = {
        "@opening@": _literal(form.opening),
        "@ask@": _literal(form.ask),
        "@answer@": _literal(form.answer),
        "@head@": _literal(form.head),
        "@turn_openers@": _tuple(map(_literal, form.turn_openers)),
        # one string: a tuple of thousands, as some tokenizers have, is slow to compile
        "@special_tokens@": _literal("\0".join(form.special_tokens)),
        "@special_starts@": _literal(form.special_starts),
    }
    pieces = []
    for piece in _SOURCE.read_text(encoding="utf-8").split("\n"):
        name = next((name for name in values if name in piece), None)
        pieces.append(piece.replace(name, values[name]) if name else piece)
    return "\n".join(pieces)


def _literal(text: str) -> str:
    """A jinja string. Braces are escaped too: no text may end or begin a block."""
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return '"' + escaped.replace("{", "\\x7b").replace("}", "\\x7d") + '"'


def _tuple(items: Any) -> str:
    return "(" + "".join(f"{item}, " for item in items).rstrip() + ")"


class ChatTemplate:
    """A model's chat template, ready to render.

    Args:
        form: what it was generated from.
        text: the template itself.
        where: the file's name for messages.

    Raises DataError where the text is not the form's.
    """

    def __init__(self, form: ChatForm, text: str, where: str) -> None:
        if text != chat_template(form):
            raise DataError(
                f"{where}: is not the template that {FORM_NAME} beside it generates",
                remedy="the file was edited or damaged; restore it, or train the model again",
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self.form = form
        self._template = environment.from_string(text)
        self._where = where

    @classmethod
    def read(cls, read: Callable[[str], bytes], where: str) -> ChatTemplate:
        """From the files of a model.

        Args:
            read: gives the bytes of a file of it, by its name.
            where: the model's place for messages, ending in a slash.

        Raises DataError.
        """
        form = parse_document(where + FORM_NAME, read(FORM_NAME), ChatForm)
        text = read(TEMPLATE_NAME).decode("utf-8", errors="replace")
        return cls(form, text, where + TEMPLATE_NAME)

    def render(self, messages: Sequence[Message]) -> str:
        """What an engine is asked; without the special tokens that an engine adds itself.

        Raises DataError, with the template's own words, for messages that it refuses.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, without_head=True, eos_token=""
            )
        except TemplateError as error:
            raise DataError(
                f"{self._where}: {error.message}",
                remedy="a conversation is an optional system message, then the user's and the "
                "assistant's messages in turn, each a text",
            ) from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
