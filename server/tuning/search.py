"""Which cells are asked which questions, and which of them is recommended."""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from covervlm.server.tuning.comparison import Pair, paired
from covervlm.server.tuning.intervals import RISK, Estimate, design_effect, loss_interval

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of the questions, how many have been asked after each round."""


@dataclass(frozen=True)
class Cell:
    """A pruning method with the vision tokens that it keeps of a picture."""

    method: str
    keep: int


@dataclass(frozen=True)
class Plan:
    """What is to be found out. pictures: of each question, what it is about. tolerance: a share of the questions."""

    pictures: Sequence[Hashable]
    methods: Sequence[str]
    budgets: Sequence[int]
    tolerance: float
    seed: int

    @property
    def rounds(self) -> list[list[int]]:
        """The numbers of the questions that have been asked after each round, in an order drawn from the seed."""
        order = list(range(len(self.pictures)))
        random.Random(self.seed).shuffle(order)
        return [order[: round(share * len(order)) or 1] for share in SHARES]

    @property
    def risk(self) -> float:
        """How often each method's bounds may be wrong, so that the recommendation is wrong at rate RISK at most."""
        return RISK / len(self.methods)


@dataclass(frozen=True)
class Standing:
    """What is known of a cell. numbers: of the questions that were compared. finished: whether all were."""

    cell: Cell
    numbers: Sequence[int]
    pair: Pair
    loss: Estimate
    finished: bool


Ask = Callable[[Sequence[tuple[int, Cell]]], None]
"""Asks the cells these questions, except where that was done before."""
Verdict = Callable[[int, Cell], tuple[float, float] | None]
"""How much of their answers the unpruned model and the cell have right, 0 to 1; None where one of them has none."""


def search(plan: Plan, ask: Ask, verdict: Verdict) -> list[Standing]:
    """Successive halving: a cell whose loss is certainly above the tolerance is asked no further.

    Its method's smaller budgets end with it, since they can no longer be recommended (see `recommended`). Raises
    ValueError where a cell has no answer that can be compared.
    """
    living = [Cell(method, keep) for method in plan.methods for keep in sorted(plan.budgets, reverse=True)]
    seen: dict[Cell, list[int]] = {cell: [] for cell in living}
    rounds = plan.rounds
    for numbers in rounds:
        ask([(number, cell) for number in numbers for cell in living])
        seen |= dict.fromkeys(living, numbers)
        if numbers is rounds[-1]:
            break
        standings = _standings(plan, {cell: numbers for cell in living}, verdict, risk=RISK / len(SHARES))
        bad = [one.cell for one in standings if one.loss.low > plan.tolerance]
        living = [cell for cell in living if not any(cell.method == b.method and cell.keep <= b.keep for b in bad)]
    return _standings(plan, seen, verdict, risk=plan.risk)


def recommended(standings: Sequence[Standing], tolerance: float) -> Standing | None:
    """The smallest budget whose loss is below the tolerance, and so is that of all larger ones of its method.

    Budgets are tested from the largest down, up to the first that fails, so that testing several makes a wrong
    recommendation no more likely than testing one.
    """
    passed: list[Standing] = []
    for method in dict.fromkeys(one.cell.method for one in standings):
        of_method = [one for one in standings if one.cell.method == method]
        for one in sorted(of_method, key=lambda one: one.cell.keep, reverse=True):
            if not one.finished or one.loss.high >= tolerance:
                break
            passed.append(one)
    return min(passed, key=lambda one: (one.cell.keep, one.loss.high), default=None)


def _standings(plan: Plan, seen: dict[Cell, list[int]], verdict: Verdict, *, risk: float) -> list[Standing]:
    compared, pairs, losses = [], [], []
    for cell, numbers in seen.items():
        verdicts = {number: both for number in numbers if (both := verdict(number, cell)) is not None}
        if not verdicts:
            raise ValueError(f"{cell.method} with {cell.keep} vision tokens has no answer that could be compared")
        compared.append(list(verdicts))
        pairs.append(paired([first for first, _ in verdicts.values()], [second for _, second in verdicts.values()]))
        losses.append([first - second for first, second in verdicts.values()])
    effect = design_effect(losses, [[plan.pictures[number] for number in numbers] for numbers in compared])
    return [
        Standing(
            cell,
            numbers,
            pair,
            loss_interval(pair, risk=risk, design_effect=effect),
            finished=len(asked) == len(plan.pictures),
        )
        for (cell, asked), numbers, pair in zip(seen.items(), compared, pairs, strict=True)
    ]
