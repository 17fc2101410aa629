"""The files of a seeds directory: their bytes, their text, and what is wrong with them by line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from selfalign.errors import ConfigurationError
from selfalign.seeds.model import Templates
from selfalign.store.files import read_regular

ANNOTATION_LIMIT = 300  # lines; Self-Align, abstract: fewer than 300 lines of annotation
GENERAL = "general.txt"
TOPIC_GUIDED = "topic_guided.jsonl"
PRINCIPLES = "principles.txt"
EXEMPLARS = "exemplars.txt"
LABELS = "templates/labels.yaml"
TEMPLATES = {template.name: f"templates/{template.name}.txt" for template in fields(Templates)}
SEED_FILES = (GENERAL, TOPIC_GUIDED, PRINCIPLES, EXEMPLARS, *TEMPLATES.values(), LABELS)
_MAX_BYTES = 64 << 20  # of one file
_SHOWN = 60  # characters of a found value that a message repeats


def shown(value: str) -> str:
    """A value as a message shows it: quoted, cut, on one line."""
    return repr(value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…")


@dataclass(slots=True)
class SeedFile:
    """One file of the directory. Digests are of `data`; nothing in it is normalised.

    Attributes:
        path: where it is, as messages name it.
        data: its bytes; empty where it cannot be read.
        text: what `decode` made of them.
        problems: line and message of each problem, as they were found.
        is_readable: False once it is known that there is no text: one problem is all it has.
    """

    path: Path
    data: bytes = b""
    text: str = ""
    problems: list[tuple[int, str]] = field(default_factory=list)
    is_readable: bool = True

    def refuse(self, line: int, expected: str, found: str, remedy: str) -> None:
        """Note a problem. `line` counts from 1; it is 0 where the whole file is meant."""
        if self.is_readable:
            where = f"{self.path}:{line}" if line else f"{self.path}"
            self.problems.append((line, f"{where}: expected {expected}, found {found}; {remedy}"))

    def refuse_unreadable(self, line: int, expected: str, found: str, remedy: str) -> None:
        """Note the problem for which the file has no text; what follows from that is not noted."""
        self.refuse(line, expected, found, remedy)
        self.is_readable = False

    def decode(self) -> None:
        """Take the bytes for UTF-8 without byte order mark and Windows line ends."""
        try:
            text = self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            byte = f"byte 0x{self.data[error.start]:02x}"
            self.refuse_unreadable(line, "UTF-8", byte, "save the file as UTF-8")
            return
        for odd, what in (("\ufeff", "a byte order mark"), ("\r", "a carriage return")):
            if odd in text:
                line = text.count("\n", 0, text.index(odd)) + 1
                self.refuse(line, "plain text lines", what, "save the file without it")
        self.text = text.replace("\ufeff", "").replace("\r", "")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Numbered lines. A problem is an empty one, or a space at an end; it is left out."""
        lines = self.text.removesuffix("\n").split("\n") if self.text else []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                self.refuse(number, "a line of text", "an empty line", "remove it")
            elif line != line.strip():
                expected = "no space at either end of the line"
                self.refuse(number, expected, shown(line), "remove it, a model would see it")
            else:
                yield number, line


def annotation_lines(directory: Path) -> dict[str, int]:
    """How many lines that are not blank people wrote, by the file's name within the directory.

    SOURCES.md and whatever else reaches no model is left out. Raises ConfigurationError for a
    missing file.
    """
    return {
        name: sum(bool(line.strip()) for line in data.splitlines())
        for name, data in _all_bytes(directory).items()
    }


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 in hex of each seed file's bytes, by its name relative to the directory.

    They enter the identities of artifacts. Raises ConfigurationError for a missing file.
    """
    return {name: hashlib.sha256(data).hexdigest() for name, data in _all_bytes(directory).items()}


def _all_bytes(directory: Path) -> dict[str, bytes]:
    files = read_files(directory)
    raise_problems(directory, files.values())
    return {name: file.data for name, file in files.items()}


def read_files(directory: Path) -> dict[str, SeedFile]:
    """Every file of `SEED_FILES` by its name; one that cannot be read has that as its problem.

    Raises ConfigurationError where there is no such directory.
    """
    if not directory.is_dir():
        raise ConfigurationError(
            f"{directory}: expected a directory of seeds, found "
            + ("a file" if directory.exists() else "nothing"),
            remedy="set seeds.directory; relative paths count from the configuration file",
        )
    files = {name: SeedFile(directory / name) for name in SEED_FILES}
    for file in files.values():
        try:
            file.data = read_regular(file.path, _MAX_BYTES)
        except OSError as error:
            found = error.strerror or "an error"
            file.refuse_unreadable(0, "a readable file", found, "provide it")
    return files


def raise_problems(directory: Path, files: Iterable[SeedFile]) -> None:
    """Raise one ConfigurationError that lists every problem, by file and line, if there is any."""
    lines = [
        message
        for file in sorted(files, key=lambda file: str(file.path))
        for _, message in sorted(file.problems, key=lambda problem: problem[0])
    ]
    if lines:
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise ConfigurationError(
            "\n  ".join((f"{directory}: {count} in the seeds:", *lines)),
            remedy="change the lines named above, or the counts in the section `seeds` of the "
            "configuration",
        )
