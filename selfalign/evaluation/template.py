"""Templates of the prompts that are scored: text files with named holes, filled literally."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Self

from selfalign.errors import ConfigurationError
from selfalign.store.files import read_regular

_MAX_BYTES = 1 << 20
_HOLE = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """Text with holes such as `{query}`; other braces are text.

    The file's last line break ends its last line and is not part of the template.

    Attributes:
        name: the file, for messages.
        text: what the file holds.
        holes: names that occur in it.
    """

    name: str
    text: str
    holes: frozenset[str]

    @classmethod
    def load(
        cls, path: Path, holes: frozenset[str], optional: frozenset[str] = frozenset()
    ) -> Self:
        """Read and check a template file, where `holes` must occur and `optional` ones may.

        Raises ConfigurationError.
        """
        try:
            text = read_regular(path, _MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigurationError(
                f"{path}: expected a template, UTF-8 text with the holes {_spell(holes)}: {e}",
                remedy="correct the path, or leave it null for the built-in template",
            ) from e
        return cls._checked(str(path), text, holes, optional)

    @classmethod
    def built_in(
        cls, name: str, holes: frozenset[str], optional: frozenset[str] = frozenset()
    ) -> Self:
        """The template `name` that ships with this package."""
        file = resources.files("selfalign.evaluation") / "templates" / f"{name}.txt"
        text = file.read_text(encoding="utf-8")
        return cls._checked(f"templates/{name}.txt", text, holes, optional)

    @classmethod
    def _checked(
        cls, name: str, text: str, holes: frozenset[str], optional: frozenset[str]
    ) -> Self:
        text = text.replace("\r\n", "\n").removesuffix("\n")
        found = frozenset(match[1] for match in _HOLE.finditer(text))
        for match in _HOLE.finditer(text):
            if match[1] not in holes | optional:
                line = text.count("\n", 0, match.start()) + 1
                raise ConfigurationError(
                    f"{name}:{line}: unknown hole {match[0]}; expected {_spell(holes | optional)}",
                    remedy=f"remove {match[0]} or rename it",
                )
        if missing := holes - found:
            raise ConfigurationError(
                f"{name}: no hole {_spell(missing)}; expected {_spell(holes)}",
                remedy="write each of them where its text belongs",
            )
        return cls(name, text, found)

    def render(self, **values: str) -> str:
        """Fill every hole in one pass: braces inside a value stay what they are."""
        assert self.holes <= set(values), f"{self.name}: {sorted(values)} for {_spell(self.holes)}"
        return _HOLE.sub(lambda match: values[match[1]], self.text)

    def continuation(self, word: str) -> str:
        """`word` as it directly continues the template: after a space unless one is there."""
        return word if self.text[-1:].isspace() else f" {word}"


def _spell(holes: frozenset[str]) -> str:
    return ", ".join(f"{{{hole}}}" for hole in sorted(holes))
