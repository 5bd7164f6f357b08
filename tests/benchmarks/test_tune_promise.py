"""What is held against a recommendation of `covervlm tune`."""

import random

import pytest
from evaluation.question_sets import Item
from evaluation.records import UNPRUNED, Cell
from tune_promise import Repetition, repetition, report

UNPRUNED_CELL, CELLS = Cell(UNPRUNED, 576), [Cell("mmtok", keep) for keep in (64, 16, 4)]
ITEMS = [Item("standard", scene, kind, "", "") for scene in range(800) for kind in ("color", "shape")]


def right(item: Item, cell: Cell) -> bool:
    """Nine of ten questions; at 16 tokens nothing changes, at 4 half of the answers get lost."""
    chance = random.Random(item.key)
    return chance.random() < 0.9 and (cell.keep > 4 or chance.random() < 0.5)


def test_a_recommendation_is_held_against_scenes_that_did_not_lead_to_it():
    looked_at: list[Item] = []

    def looking(item: Item, cell: Cell) -> bool:
        looked_at.append(item)
        return right(item, cell)

    options = {"own": 300, "others": 600, "tolerance": 0.05, "seed": 3}
    one = repetition(ITEMS, [UNPRUNED_CELL, *CELLS], looking, **options)
    assert one.keep == 16
    assert one.grid == 4 * 300
    assert one.asked < one.grid  # 4 tokens were stopped early
    assert (one.loss, one.holds, one.holds_everywhere) == (0, True, True)
    given = {item.seed for item in looked_at[: one.asked]}
    unseen = {item.seed for item in ITEMS} - given
    expected = [right(item, CELLS[1]) for item in ITEMS if item.seed in unseen]
    assert one.everywhere == pytest.approx(sum(expected) / len(expected), abs=0.01)


def test_what_is_not_recommended_is_counted_as_such():
    text = report([Repetition(None, 40, 60)], others=600, seconds=6.0, answers=60)
    assert "| 0 | nothing recommended | " in text
    assert text.endswith(
        "0 of 1 repetitions recommend a budget. The accuracy on 600 others is within the stated interval in 0 of "
        "these, that on all others in 0; the loss is below the stated bound in 0. The search needs 67% of the whole "
        "grid's answers: at 100 ms each here, 4 instead of 6 s."
    )
