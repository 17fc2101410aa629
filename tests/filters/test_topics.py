"""Topics are balanced to the smallest type."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.filters.candidates import balance_topics

BY_TYPE = {"art": ["oil", "ink", "clay", "dye"], "legal": ["lease", "will"], "live": list("abcdef")}


def test_every_type_has_as_many_topics_as_the_smallest_in_their_order() -> None:
    balanced = balance_topics(BY_TYPE, None, seed=1)
    assert list(balanced) == list(BY_TYPE)
    for name, topics in balanced.items():
        assert len(topics) == 2
        assert topics == [topic for topic in BY_TYPE[name] if topic in topics]


def test_cap_holds_below_the_smallest_type() -> None:
    assert {len(topics) for topics in balance_topics(BY_TYPE, 1, seed=1).values()} == {1}
    assert balance_topics(BY_TYPE, 9, seed=1) == balance_topics(BY_TYPE, None, seed=1)


def test_seed_decides_which_topics_stay() -> None:
    chosen = {tuple(balance_topics(BY_TYPE, None, seed)["live"]) for seed in range(30)}
    assert len(chosen) > 5


@settings(deadline=None)
@given(st.permutations(BY_TYPE["live"]))
def test_choice_does_not_depend_on_order(topics: list[str]) -> None:
    shuffled = balance_topics({**BY_TYPE, "live": topics}, None, seed=3)
    expected = balance_topics(BY_TYPE, None, seed=3)
    assert set(shuffled["live"]) == set(expected["live"])
    assert {name: shuffled[name] for name in ("art", "legal")} == {
        name: expected[name] for name in ("art", "legal")
    }


def test_no_types_and_empty_types_leave_nothing() -> None:
    assert balance_topics({}, None, seed=0) == {}
    assert balance_topics({"art": ["oil"], "live": []}, None, seed=0) == {"art": [], "live": []}
