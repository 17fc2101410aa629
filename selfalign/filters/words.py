"""Words as the filters compare and count them, in any script.

What is meant: languages that put spaces between words; and Chinese, Japanese, Thai, Lao, Khmer and
Burmese, which do not: there each character counts as a word, as is usual for ROUGE in Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from unicodedata import normalize

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# A character with its marks where no spaces are, else a run of letters, digits and marks.
WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*"
    rf"|[[\w]--[\p{{Pc}}\p{{M}}{_UNSPACED}]][[\w]--[\p{{Pc}}{_UNSPACED}]]*",
    regex.V1,
)
_TOKEN = regex.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]+")
# Latin, Greek and Cyrillic letters that carry their marks, and ordinary punctuation: all of most
# texts, and in these the quicker pattern below finds the same words.
_PLAIN = re.compile("[\0-\xac\xae-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e€]*")
_PLAIN_WORD = re.compile(r"[^\W_]+")


def folded(text: str) -> str:
    """The text as it is compared: what looks the same, but for case, is the same.

    NFKC (composed accents, ordinary letters for full-width ones and ligatures), case-folded,
    without soft hyphens, zero-width characters and other characters that are never seen.
    """
    if text.isascii():
        return text.lower()
    if not _PLAIN.fullmatch(text):
        text = _INVISIBLE.sub("", text)
    return normalize("NFKC", normalize("NFKC", text).casefold())


def words_of(text: str) -> list[str]:
    """The words of a text, in order, folded; no punctuation."""
    text = folded(text)
    return (_PLAIN_WORD if _PLAIN.fullmatch(text) else WORD).findall(text)


def runs_of(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Every run of `size` words."""
    return (tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def count_words(text: str) -> int:
    """How many words a text has by its spaces; each unspaced character counts for one."""
    return len(text.split() if _PLAIN.fullmatch(text) else _TOKEN.findall(text))
