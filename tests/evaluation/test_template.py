from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.errors import ConfigurationError
from selfalign.evaluation.template import load_template
from selfalign.seeds import Template

PROPERTY = settings(deadline=None, derandomize=True)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_values_are_inserted_literally_and_other_braces_stay(tmp_path: Path) -> None:
    template = load_template("hhh", write(tmp_path, '{"q": "{query}"} A) {a} B) {b} {} {0}'))
    rendered = template.fill({"query": "{a} %s {query}", "a": "{b}", "b": "\\1"})
    assert rendered == '{"q": "{a} %s {query}"} A) {b} B) \\1 {} {0}'


@PROPERTY
@given(query=st.text(), a=st.text(), b=st.text())
def test_rendering_is_concatenation_whatever_the_values(query: str, a: str, b: str) -> None:
    template = Template("t", "<{query}|{a}|{b}>")
    assert template.fill({"query": query, "a": a, "b": b}) == f"<{query}|{a}|{b}>"


def test_an_unknown_hole_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "{query}\n{a} {b}\n{c}")
    with pytest.raises(ConfigurationError, match=r"mine\.txt:3: unknown hole \{c\}"):
        load_template("hhh", path)


def test_a_missing_hole_is_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mine\.txt: no hole \{choice\}"):
        load_template("truthfulqa", write(tmp_path, "{question}"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.txt: expected a template"):
        load_template("hhh", tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("text", "continuation"),
    [
        ("{query} {a} {b} Better:", " A"),
        ("{query} {a} {b} Better:\n", " A"),  # a text file's last line end
        ("{query} {a} {b} Better:\r\n", " A"),
        ("{query} {a} {b} Better:\n\n", "A"),
        ("{query} {a} {b} Better: ", "A"),
        ("{query} {a} {b} (\t", "A"),
    ],
)
def test_a_continuation_starts_with_a_space_unless_the_template_ends_in_one(
    tmp_path: Path, text: str, continuation: str
) -> None:
    assert load_template("hhh", write(tmp_path, text)).continuation("A") == continuation


@pytest.mark.parametrize("kind", ["hhh", "truthfulqa", "pairwise", "refusal"])
def test_the_built_in_templates_have_their_holes_and_end_without_a_space(kind: str) -> None:
    template = load_template(kind)
    assert template.continuation("A") == " A"
    rendered = template.fill({hole: f"<{hole}>" for hole in template.holes})
    assert all(f"<{hole}>" in rendered for hole in template.holes)
