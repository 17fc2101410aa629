"""Templates of the prompts that are scored: text files with named holes, filled literally."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from selfalign.errors import ConfigurationError
from selfalign.seeds import Template
from selfalign.store.files import read_regular

_MAX_BYTES = 1 << 20
_HOLE = re.compile(r"\{([A-Za-z_]\w*)\}")
# By the built-in file: the holes that must occur, and those that may. `rubric` becomes a paragraph
# each of the item's rubric and its principle, or nothing; "complies", "partly" or "refuses"
# continues `refusal`.
_HOLES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "hhh": (frozenset({"query", "a", "b"}), frozenset()),
    "truthfulqa": (frozenset({"question", "choice"}), frozenset()),
    "pairwise": (frozenset({"query", "a", "b"}), frozenset({"rubric"})),
    "refusal": (frozenset({"query", "answer"}), frozenset()),
}


def load_template(kind: str, path: Path | None = None) -> Template:
    """A checked template of one of these kinds; None is the built-in one.

    The file's last line break ends its last line and is not part of the template; braces around
    anything but a name are text. Raises ConfigurationError.
    """
    needed, optional = _HOLES[kind]
    file = path or resources.files("selfalign.evaluation") / "templates" / f"{kind}.txt"
    try:
        raw = read_regular(path, _MAX_BYTES) if path else file.read_bytes()
        text = raw.decode().replace("\r\n", "\n").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"{file}: expected a template, UTF-8 text with the holes {_spell(needed)}: {e}",
            remedy="correct the path, or leave it null for the built-in template",
        ) from e
    found = {match[1]: text.count("\n", 0, match.start()) + 1 for match in _HOLE.finditer(text)}
    for hole, line in found.items():
        if hole not in needed | optional:
            raise ConfigurationError(
                f"{file}:{line}: unknown hole {{{hole}}}; expected {_spell(needed | optional)}",
                remedy=f"remove {{{hole}}} or rename it",
            )
    if missing := needed - found.keys():
        raise ConfigurationError(
            f"{file}: no hole {_spell(missing)}; expected {_spell(needed)}",
            remedy="write each of them where its text belongs",
        )
    return Template(kind, text)


def _spell(holes: frozenset[str]) -> str:
    return ", ".join(f"{{{hole}}}" for hole in sorted(holes))
