"""The chat form for a base model's tokenizer, proved before anything is trained.

A server renders messages by the chat template and tokenises the text; training tokenises a prompt
and puts the special tokens before it. Both must come to the same tokens.
"""

from __future__ import annotations

from typing import Any

from selfalign.errors import DataError
from selfalign.serving.form import ChatForm
from selfalign.serving.template import ChatTemplate, Message, chat_template
from selfalign.training.examples import plain_tokens, tokens_before_text


def fit_form(form: ChatForm, tokenizer: Any) -> ChatForm:
    """The form with the tokenizer's special tokens.

    Raises DataError where a server's tokens would differ from training's, ConfigurationError where
    the seeds spell a special token.
    """
    ids = tokens_before_text(tokenizer)
    head = "".join(tokenizer.convert_ids_to_tokens(ids))
    added = tokenizer.added_tokens_decoder.values()
    special = [token.content for token in added if token.special]
    # Some tokenizers put a space before a text, but not after a special token.
    for spelt in dict.fromkeys((head, f"{head} ")):
        fitted = form.with_tokens(spelt, special)
        if all(_agree(fitted, tokenizer, ids, messages) for messages in _conversations(special)):
            return fitted
    raise DataError(
        f"base_model: its tokenizer {type(tokenizer).__name__} reads a chat's text as other tokens "
        "than the same prompt in training, so what is served would not be what was trained",
        remedy="use a base model whose tokenizer.json treats text after its special tokens as it "
        "treats text alone",
    )


def _agree(form: ChatForm, tokenizer: Any, head: list[int], messages: list[Message]) -> bool:
    text = chat_template(form)
    served = tokenizer.apply_chat_template(
        messages, chat_template=text, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    rendered = ChatTemplate(form, text, "chat_template").render(messages)
    return list(served) == head + plain_tokens(tokenizer, [rendered])[0]


def _conversations(special: list[str]) -> list[list[Message]]:
    """One turn and two, with and without a system message; with every special token spelt."""
    question = {"role": "user", "content": "How are you?"}
    hostile = {"role": "user", "content": f"  {''.join(special)}\n.\n"}
    reply = {"role": "assistant", "content": "Well."}
    system = {"role": "system", "content": "Be brief."}
    return [[question], [hostile], [system, hostile, reply, question]]
