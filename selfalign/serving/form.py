"""The chat form: how messages become the prompt that a model was trained on.

    <opening>User: <query>
    Assistant: <answer>
    User: <query>
    Assistant:

One turn is the trained prompt, token for token. Training teaches single turns; a further turn
follows the answer on a line of its own, as in the exemplars' dialogues, without the opening and
without an end of sequence in between. A system message continues the opening's last paragraph.

A message cannot open a turn (`prompts.neutralise`), nor spell a token that has a meaning of its
own to the tokenizer ("</s>"): a space after its first character makes plain text of it, here and
in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from selfalign.errors import ConfigurationError
from selfalign.prompts import compact
from selfalign.seeds import Labels, Template
from selfalign.store.documents import StoredModel

FORM_NAME = "chat_form.json"


class ChatForm(StoredModel):
    """What a chat template is generated from; lies beside the weights as `chat_form.json`.

    Attributes:
        version: of the template that is generated from it.
        opening: what stands once, before the first turn.
        ask: what stands before a query.
        answer: what stands between a query and its answer, without the space before the answer.
        turn_openers: the seeds' labels as `prompts.compact` leaves them.
        head: the special tokens that the tokenizer puts before a text, spelt; an engine adds them
            itself, a server finds them in the template's text.
        special_tokens: what no message may spell.
    """

    version: Literal[1] = 1
    opening: str
    ask: str
    answer: str
    turn_openers: tuple[str, ...]
    head: str = ""
    special_tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, template: Template, labels: Labels) -> Self:
        """The form of a dialogue template, before a tokenizer is known.

        Raises ConfigurationError where the template asks other than once.
        """
        if template.holes.count("query") != 1:
            raise ConfigurationError(
                f"templates/{template.name}.txt: {{query}} stands there "
                f"{template.holes.count('query')} times, expected once",
                remedy="a chat template cannot be made of it otherwise",
            )
        named = {"user": labels.user, "thought": labels.thought, "answer": labels.answer}
        before, _, after = template.fill({**named, "query": "\0"}).partition("\0")
        turn = max(before.rfind(labels.user), 0)
        return cls(
            opening=before[:turn],
            ask=before[turn:],
            answer=after,
            turn_openers=tuple(compact(label) for label in labels.all),
        )

    def with_tokens(self, head: str, special_tokens: Sequence[str]) -> Self:
        """The form for a tokenizer. Raises ConfigurationError where the seeds spell its tokens."""
        for token in special_tokens:
            if any(token in text for text in (self.opening, self.ask, self.answer)):
                raise ConfigurationError(
                    f"the standard prompt or a label spells {token!r}, a special token of the base "
                    "model's tokenizer: a server would read it as that token",
                    remedy="choose other words in seeds/templates",
                )
        longest_first = sorted(filter(None, special_tokens), key=lambda token: (-len(token), token))
        return self.model_copy(update={"head": head, "special_tokens": tuple(longest_first)})

    @property
    def special_starts(self) -> str:
        """The characters that special tokens begin with: a text without them holds none."""
        return "".join(sorted({token[0] for token in self.special_tokens}))

    def spell_out(self, text: str) -> str:
        """The text with its special tokens made plain."""
        if not any(start in text for start in self.special_starts):
            return text
        for token in self.special_tokens:
            if token in text:
                spelling = f"{token[0]} {token[1:]}" if len(token) > 1 else " "
                text = text.replace(token, spelling)
        return text
