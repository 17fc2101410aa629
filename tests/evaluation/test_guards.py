"""Each guard flags its own way to be broken, and leaves whole answers alone."""

from __future__ import annotations

import pytest

from selfalign.evaluation.guards import Answered, guard_scores, repeated_share
from selfalign.evaluation.languages import in_another_language

PROSE = (
    "Bread rises because yeast turns sugar into gas, and the dough holds that gas in small "
    "bubbles. Give it an hour in a warm place, and it will be about twice as large."
)


def flags(text: str, prompt: str = "Why does bread rise?", **fields: bool) -> set[str]:
    answer = Answered("i", prompt, text, fields.get("cut", False), fields.get("satisfied", False))
    return {
        score.metric.removeprefix("guard.") for score in guard_scores([answer]) if score.value == 1
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PROSE, set()),
        ("", {"empty"}),
        (" \n.", {"empty"}),
        ("Yeast", {"one_word"}),
        ("42", {"one_word"}),
        (PROSE + " the" * 40, {"repeats"}),
        ("ha" * 60, {"repeats"}),
        ("Why does bread rise?", {"echo"}),
        (PROSE + "\nUser: And cake?", {"echo"}),
        (PROSE + "<|im_end|>", {"echo"}),
        (
            PROSE + " 面包在温暖的地方放一个小时就会变大" * 2 + "因为酵母把糖变成气体",
            {"other_language"},
        ),
        (", ".join(f"word{k % 26}{chr(97 + k % 26)}" for k in range(40)), {"word_list"}),
        ("```\n" + "\n".join(f"let value{k} be done" for k in range(20)) + "\n```", set()),
    ],
)
def test_an_answer_is_flagged_for_what_is_wrong_with_it(text: str, found: set[str]) -> None:
    assert flags(text) == found


def test_one_word_is_right_where_it_satisfies_the_item() -> None:
    assert flags("Yeast", satisfied=True) == set()


def test_an_answer_that_ran_into_the_limit_is_cut() -> None:
    assert flags(PROSE, cut=True) == {"cut"}


def test_the_labels_of_this_run_are_echoes_too() -> None:
    answer = Answered("i", "Why?", PROSE + "\nWillow: yes", False, False)
    scores = guard_scores([answer], ["Willow:"])
    assert [s.metric for s in scores if s.value] == ["guard.echo"]


def test_the_same_words_to_two_prompts_are_flagged_but_not_refusals_or_candour() -> None:
    def same(text: str) -> int:
        answers = [Answered(f"i{k}", f"What is {k}?", text, False, False) for k in range(2)]
        return sum(s.value == 1 for s in guard_scores(answers) if s.metric == "guard.same")

    assert same("It is what it is, as they say.") == 2
    assert same("I'm sorry, but I can't help with that.") == 0
    assert same("I do not know that.") == 0
    assert same("Yes.") == 0
    shuffled = [
        Answered("a", "What?", "it is what they say", False, False),
        Answered("b", "Who?", "they say what it is", False, False),
    ]
    assert sum(s.value for s in guard_scores(shuffled) if s.metric == "guard.same") == 2


def test_repeated_share_counts_4_grams_that_came_before() -> None:
    assert repeated_share("a b c d e f g") == 0
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("a b") == 0


@pytest.mark.parametrize(
    ("prompt", "answer", "other"),
    [
        ("Why does bread rise?", PROSE, False),
        (
            "Why does bread rise?",
            "Weil die Hefe den Zucker in Gas verwandelt und der Teig das Gas in kleinen Blasen "
            "hält. Lass ihn eine Stunde stehen, dann ist er etwa doppelt so groß.",
            True,
        ),
        ("Warum geht das Brot auf und wie lange muss es stehen?", PROSE, True),
        ("Почему хлеб поднимается?", "Потому что дрожжи выделяют газ.", False),
        ("Почему хлеб поднимается?", PROSE, True),
        ("What is π?", "π is the ratio of the circle's round to its width.", False),
    ],
)
def test_another_language_is_told_by_letters_and_by_function_words(
    prompt: str, answer: str, other: bool
) -> None:
    assert in_another_language(prompt, answer) is other
