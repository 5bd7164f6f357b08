"""What answers show, worked out by hand."""

import pytest

from covervlm.server.tuning.search import Cell, Plan, recommended, search
from covervlm.server.tuning.trial import Given, Question, Trial, same

CELL = Cell("a", 16)


def trial(*said, truth=None):
    """said: for each question, what the unpruned model and the cell answer."""
    truths = truth or [None] * len(said)
    questions = [Question(f"{n}.png", "?", truth, "odd" if n % 2 else "even") for n, truth in enumerate(truths)]
    answers = {
        (question, cell): Given(text, 100 - 50 * bool(cell), 90, 0.5 + n)
        for n, (question, pair) in enumerate(zip(questions, said, strict=True))
        for cell, text in zip((None, CELL), pair, strict=True)
        if text is not None
    }
    return Trial(questions, lambda question, cell: answers.get((question, cell)))


def standing(one):
    plan = Plan([question.image for question in one.questions], ["a"], [16], 0.5, 0)
    return search(plan, lambda wanted: None, one.verdict)[0]


def test_case_and_white_space_are_no_difference_and_all_else_is():
    assert same(" A red\n Bus", "a RED bus")
    assert same("", "  ")
    assert not same("a red bus.", "a red bus")
    assert not same("redbus", "red bus")


def test_without_true_answers_every_other_answer_is_a_loss():
    one = trial(("red", "Red"), ("two", "three"), ("no", "no"), ("a b", "a  b"))
    assert [one.verdict(n, CELL) for n in range(4)] == [(True, True), (True, False), (True, True), (True, True)]
    row = one.row(standing(one))
    assert (row.agreement.value, row.accuracy, row.standing.loss.value) == (0.75, None, 0.25)


def test_with_true_answers_only_those_count_that_become_wrong_less_those_that_become_right():
    one = trial(("red", "blue"), ("two", "three"), ("no", "yes"), ("a", "a"), truth=["red", "one", "yes", "a"])
    row, unpruned = one.row(standing(one)), one.row(None)
    assert (row.agreement.value, row.accuracy.value, unpruned.accuracy.value) == (0.25, 0.5, 0.5)
    assert row.standing.loss.value == 0
    assert (row.standing.pair.only_first, row.standing.pair.only_second) == (1, 1)


def test_true_answers_count_only_where_every_question_has_one():
    assert not trial(("red", "blue"), ("two", "two"), truth=["blue", None]).judged
    assert trial(("red", "blue"), truth=["blue"]).judged


def test_costs_are_means_over_what_was_compared():
    one = trial(("red", "red"), ("two", None), ("no", "no"))
    row, unpruned = one.row(standing(one)), one.row(None)
    assert (row.questions, row.prompt_tokens, row.seconds) == (2, 50, pytest.approx(1.5))
    assert (unpruned.questions, unpruned.prompt_tokens, unpruned.seconds) == (3, 100, pytest.approx(1.5))


def test_groups_are_compared_within():
    one = trial(("red", "red"), ("two", "three"), ("no", "no"), ("a", "b"), ("c", "d"))
    groups = {row.group: (row.questions, row.loss.value) for row in one.groups(standing(one))}
    assert groups == {"even": (3, pytest.approx(1 / 3)), "odd": (2, 1.0)}


def test_what_was_not_tested_enough_is_not_recommended():
    one = trial(("red", "red"), ("two", "two"))
    assert recommended([standing(one)], 0.5) is None
