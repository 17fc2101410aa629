"""Words as the filters compare them: without case, punctuation and spacing."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text, in order, case-folded."""
    return _WORD.findall(text.casefold())
