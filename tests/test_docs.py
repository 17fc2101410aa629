"""What the documents say is so: links lead somewhere, commands exist, figures agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from selfalign.cli.commands import COMMANDS
from selfalign.errors import EXIT_CODES
from selfalign.pipeline import STAGES
from selfalign.seeds import annotation_lines

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *PROJECT.glob("examples/*/*.md")]
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(document: Path) -> None:
    text = document.read_text()
    for name in re.findall(r"(?:^|`)selfalign ([a-z][a-z-]*)", text, re.MULTILINE):
        assert name in COMMANDS, f"{document.name}: selfalign {name}"
    makefiles = (PROJECT / "Makefile").read_text() + (
        (PROJECT / "cluster.mk").read_text() if (PROJECT / "cluster.mk").exists() else ""
    )
    targets = set(re.findall(r"^([a-z-]+):", makefiles, re.MULTILINE))
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert name in targets, f"{document.name}: make {name}"


def test_the_architecture_shows_the_table_as_it_is() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \|.*\| `([a-z_]+)`", text, re.MULTILINE)
    assert rows == [(stage.name, stage.writes) for stage in STAGES]


def test_the_readme_counts_the_lines_that_are_there() -> None:
    text = (PROJECT / "README.md").read_text()
    total = sum(annotation_lines(PROJECT / "seeds").values())
    assert f"| **all that reaches a model** | **{total}** |" in text
    assert total < 300


def test_help_documents_every_exit_code() -> None:
    from selfalign.cli.main import _EPILOG

    for code in EXIT_CODES:
        assert re.search(rf"^  {code}\b", _EPILOG, re.MULTILINE), code


def test_every_dependency_is_pinned_once() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0].lower() for line in lines if line and line[0] != "#"]
    assert all("==" in line for line in lines if line and line[0] != "#")
    assert len(names) == len(set(names))
