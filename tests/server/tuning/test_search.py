"""What is asked and recommended, on simulated answers whose true losses are known."""

from itertools import pairwise

import numpy as np
import pytest

from covervlm.server.tuning.search import Cell, Plan, recommended, search

BUDGETS = [16, 32, 64, 128, 192]


class Simulated:
    """A model that is right on 9 of 10 questions; each cell goes wrong on its own share of these, and right on some
    that the unpruned model has wrong. `losses`: per cell, the true loss.
    """

    def __init__(self, losses, questions, seed):
        rng = np.random.default_rng(seed)
        self.losses, self.asked = losses, {cell: set() for cell in losses}
        self.reference = rng.random(questions) < 0.9
        self.right = {}
        for cell, loss in losses.items():
            spoiled, mended = rng.random(questions) < (loss + 0.005) / 0.9, rng.random(questions) < 0.05
            self.right[cell] = np.where(self.reference, ~spoiled, mended)

    def ask(self, wanted):
        for number, cell in wanted:
            self.asked[cell].add(number)

    def verdict(self, number, cell):
        assert number in self.asked[cell]
        return bool(self.reference[number]), bool(self.right[cell][number])


def plan(questions, methods=("a",), tolerance=0.02, seed=0):
    return Plan(range(questions), methods, BUDGETS, tolerance, seed)


def losses(*values, method="a"):
    return {Cell(method, keep): loss for keep, loss in zip(BUDGETS, values, strict=True)}


def test_the_recommendation_holds_in_at_least_18_of_20_repetitions():
    true = losses(0.2, 0.05, 0.012, 0.003, 0.0)
    within, bounds = 0, []
    for seed in range(20):
        model = Simulated(true, 1000, seed)
        best = recommended(search(plan(1000, seed=seed), model.ask, model.verdict), 0.02)
        if best is None:
            within += 1
            continue
        bounds.append(best.loss.high)
        within += true[best.cell] <= best.loss.high < 0.02
    assert within >= 18
    assert len(bounds) >= 15


@pytest.mark.parametrize("methods", [("a",), ("a", "b")])
def test_what_loses_just_more_than_tolerated_is_seldom_recommended_however_many_cells_there_are(methods):
    wrong = 0
    for seed in range(60):
        true = {cell: 0.0201 for method in methods for cell in losses(*[0] * 5, method=method)}
        model = Simulated(true, 300, seed)
        wrong += recommended(search(plan(300, methods, seed=seed), model.ask, model.verdict), 0.02) is not None
    assert wrong <= 60 * 0.05 + 2 * np.sqrt(60 * 0.05 * 0.95)


def test_bad_cells_stop_early_and_with_them_the_smaller_budgets():
    model = Simulated(losses(0.0, 0.5, 0.0, 0.0, 0.0), 800, 0)
    standings = {one.cell.keep: one for one in search(plan(800), model.ask, model.verdict)}
    assert {keep: one.pair.questions for keep, one in standings.items()} == {
        192: 800,
        128: 800,
        64: 800,
        32: 100,
        16: 100,
    }
    assert [keep for keep, one in standings.items() if one.finished] == [192, 128, 64]
    assert recommended(list(standings.values()), 0.02).cell.keep == 64


def test_rounds_are_drawn_from_the_seed_and_end_with_all_questions():
    one, same, other = plan(80).rounds, plan(80).rounds, plan(80, seed=1).rounds
    assert one == same != other
    assert [len(numbers) for numbers in one] == [10, 20, 40, 80]
    assert all(long[: len(short)] == short for short, long in pairwise(one))
    assert sorted(one[-1]) == list(range(80))


def test_a_budget_below_one_that_fails_is_not_recommended():
    model = Simulated(losses(0.0, 0.0, 0.0, 0.03, 0.0), 600, 0)
    assert recommended(search(plan(600), model.ask, model.verdict), 0.02).cell.keep == 192


def test_too_few_questions_recommend_nothing():
    model = Simulated(losses(*[-0.005] * 5), 60, 0)
    assert recommended(search(plan(60), model.ask, model.verdict), 0.02) is None


def test_a_question_without_an_answer_is_left_out_of_its_cell():
    model = Simulated(losses(*[0.0] * 5), 40, 0)
    gone = Cell("a", 64)
    standings = search(plan(40), model.ask, lambda n, cell: None if cell == gone and n == 7 else model.verdict(n, cell))
    assert {one.cell.keep: one.pair.questions for one in standings} == {192: 40, 128: 40, 64: 39, 32: 40, 16: 40}
    with pytest.raises(ValueError, match="a with 64 vision tokens has no answer"):
        search(plan(40), model.ask, lambda n, cell: None if cell == gone else model.verdict(n, cell))
