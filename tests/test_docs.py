"""What the documents say is so: links lead somewhere, commands exist, figures agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from selfalign.cli.commands import COMMANDS
from selfalign.cli.main import cli
from selfalign.errors import EXIT_CODES
from selfalign.pipeline import STAGES
from selfalign.seeds import annotation_lines

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *PROJECT.glob("examples/*/*.md")]
)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{document.name}: {target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(document: Path) -> None:
    text = document.read_text()
    for name in re.findall(r"(?:^|`)selfalign ([a-z][a-z-]*)", text, re.MULTILINE):
        assert name in COMMANDS, f"{document.name}: selfalign {name}"
    makefiles = (PROJECT / "Makefile").read_text() + (PROJECT / "cluster.mk").read_text()
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


def test_help_documents_every_stage_and_every_exit_code() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    for word in (*EXIT_CODES, *(stage.name for stage in STAGES)):
        assert re.search(rf"^ +{word}\b", shown, re.MULTILINE), word


def test_every_dependency_is_pinned_once() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0].lower() for line in lines if line and line[0] != "#"]
    assert all("==" in line for line in lines if line and line[0] != "#")
    assert len(names) == len(set(names))
