"""Which language a text is in, as far as its letters and its commonest words tell.

Scripts are told apart by their letters; of the languages in Latin letters, the seven below by their
function words. Limits: a text of fewer than 20 words, or in a language that is not listed, is
taken for whatever it was asked in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

MIN_WORDS = 20  # below it, function words say too little
_MIN_SHARE = 0.12  # of the words; running text of these languages has 0.25 to 0.5
_CLEARLY_MORE = 2.0  # times the share of the language that was expected
_FOREIGN_SHARE = 0.2  # of the letters; a name or a formula stays below
_MIN_FOREIGN_LETTERS = 10

_SCRIPTS = {
    name: regex.compile(rf"\p{{{name}}}")
    for name in (
        "Latin", "Greek", "Cyrillic", "Han", "Hiragana", "Katakana", "Hangul", "Arabic", "Hebrew",
        "Devanagari", "Bengali", "Tamil", "Telugu", "Thai", "Armenian", "Georgian", "Ethiopic",
    )
}  # fmt: skip
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the of and to a in is that it for with as on are be this by you or can from "
        "your an if at was have but they which will i we its do their there what how more when so",
        "German": "der die das und ist in den von zu mit sich nicht ein eine auf im dem es sie "
        "wenn oder als für werden kann sind wie aus bei ich wird man aber nur noch",
        "French": "le la les de des et est un une du en que pour dans qui pas sur au par il avec "
        "vous ne plus sont ou cette mais nous je elle peut être aux comme si",
        "Spanish": "el la los las de y que en un una es por con para se no del al lo como su o "
        "pero si puede son le este esta sus hay muy ser",
        "Italian": "il la le di e che un una in è per con non si da del della i gli sono come "
        "più ma o se anche nel questo può alla essere dei",
        "Portuguese": "o a os as de e que em um uma do da é para com não se por no na mais como "
        "mas ao ou pode são ser você isso esta também foi",
        "Dutch": "de het een en van is in dat op te met voor niet zijn er aan je ook als om of "
        "door naar dan wordt kan bij deze wat we uit nog",
    }.items()
}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [found.lower() for found in _WORD.findall(text)]


def function_word_share(tokens: Sequence[str]) -> float:
    """The largest share of function words that any of the listed languages finds."""
    return max(_shares(tokens).values())


def in_another_language(prompt: str, answer: str) -> bool:
    """Whether the answer is, for a good part, in a script or language that the prompt is not in."""
    return _another_script(prompt, answer) or _other_function_words(words(prompt), words(answer))


def _another_script(prompt: str, answer: str) -> bool:
    if answer.isascii() and _SCRIPTS["Latin"].search(prompt):
        return False
    letters = {name: len(script.findall(answer)) for name, script in _SCRIPTS.items()}
    foreign = sum(n for name, n in letters.items() if n and not _SCRIPTS[name].search(prompt))
    return foreign >= _MIN_FOREIGN_LETTERS and foreign > _FOREIGN_SHARE * sum(letters.values())


def _other_function_words(prompt: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether another listed language explains the answer clearly better than the prompt's."""
    if len(answer) < MIN_WORDS:
        return False
    asked = _shares(prompt)
    expected = max(asked, key=lambda language: asked[language])  # the first, English, of equals
    shares = _shares(answer)
    best = max(shares.values())
    return best >= _MIN_SHARE and best > _CLEARLY_MORE * shares[expected]


def _shares(tokens: Sequence[str]) -> dict[str, float]:
    total = max(len(tokens), 1)
    return {
        language: sum(map(listed.__contains__, tokens)) / total
        for language, listed in _FUNCTION_WORDS.items()
    }
