"""The tree of errors that a reader sees is the tree that there is."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import selfalign
from selfalign import errors
from selfalign.cli.approve import _this_user
from selfalign.cli.options import Place
from selfalign.errors import SelfAlignError

PACKAGE = Path(selfalign.__file__).parent


def subclasses(cls: type) -> set[type]:
    return {cls} | {found for child in cls.__subclasses__() for found in subclasses(child)}


@pytest.fixture(scope="module")
def tree() -> set[type]:
    for path in PACKAGE.rglob("*.py"):
        if re.search(
            r"^class \w+\(\w*(Error|Denied|Unavailable)\)", path.read_text(), re.MULTILINE
        ):
            relative = path.relative_to(PACKAGE.parent).with_suffix("")
            import_module(".".join(relative.parts))
    return {cls for cls in subclasses(SelfAlignError) if cls.__module__.startswith("selfalign.")}


def test_every_error_is_in_the_tree_of_the_docstring(tree: set[type]) -> None:
    shown = set(re.findall(r"[├└]── (\w+)|^(\w+) ", errors.__doc__ or "", re.MULTILINE))
    names = {name for pair in shown for name in pair if name} | {"SelfAlignError"}
    assert {cls.__name__ for cls in tree} <= names


def test_no_expected_error_ends_with_the_code_of_a_bug(tree: set[type]) -> None:
    bases = {SelfAlignError, errors.PermanentError}
    assert [cls for cls in tree - bases if cls.exit_code == 1] == []  # type: ignore[attr-defined]


def test_a_signal_ends_what_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_where: Place) -> None:
        raise errors.Interrupted(15)

    monkeypatch.setattr(Place, "connect", connect)
    with pytest.raises(errors.Interrupted) as ending:
        _this_user(Place(namespace="nights"))  # who approves; it goes on where no cluster says
    assert ending.value.exit_code == 143
