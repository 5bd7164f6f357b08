"""The control law alone, on queues that the test writes down; the class's docstring is the reference."""

import itertools
import math
import random

import pytest

from covervlm.server.limits.adaptive_budget import AdaptiveBudget, BudgetRange

# 192 * (64/192) ** (level / 4)
LEVELS = (192, 146, 111, 84, 64)


@pytest.fixture
def budget():
    """16 waiting requests are a full queue, so 4 are a step."""
    return AdaptiveBudget(BudgetRange(64, 192), full_queue=16)


def test_an_empty_queue_is_served_the_ceiling_and_a_full_one_the_floor(budget):
    assert budget.observe(0) == 192
    assert budget.observe(16) == 64
    assert budget.observe(0) == 192


def test_every_whole_step_of_the_queue_takes_one_level(budget):
    assert [budget.observe(waiting) for waiting in range(17)] == [LEVELS[waiting // 4] for waiting in range(17)]


def test_the_budget_recovers_a_step_later_than_it_fell(budget):
    budget.observe(16)
    assert [budget.observe(waiting) for waiting in range(16, -1, -1)] == [
        LEVELS[math.ceil(waiting / 4)] for waiting in range(16, -1, -1)
    ]


@pytest.mark.parametrize("edge", [4, 8, 12, 16])
def test_a_queue_that_wavers_around_an_edge_changes_the_budget_once(budget, edge):
    served = [budget.observe(waiting) for _ in range(50) for waiting in (edge - 1, edge, edge - 2, edge - 1)]
    assert sum(a != b for a, b in itertools.pairwise(served)) == 1


def test_the_budget_never_leaves_its_range_however_long_the_queue(budget):
    numbers = random.Random(0)
    for _ in range(2000):
        assert 64 <= budget.observe(numbers.choice([0, 1, 3, 5, 9, 17, 40, 10**9])) <= 192


def test_observing_again_changes_nothing(budget):
    numbers = random.Random(1)
    for _ in range(500):
        waiting = numbers.randrange(20)
        assert budget.observe(waiting) == budget.observe(waiting)


def test_a_server_that_answers_one_request_at_a_time_falls_at_once():
    budget = AdaptiveBudget(BudgetRange(1, 2), full_queue=0)
    assert (budget.observe(0), budget.observe(1), budget.observe(0)) == (2, 1, 2)


def test_under_twice_the_load_that_the_ceiling_bears_the_queue_stays_bounded():
    """A simulated server whose time per request is proportional to its tokens, with two arrivals per unit of work."""

    def longest_queue(serve):
        queue, work, longest = [], 0.0, 0
        for _ in range(400):
            queue += [serve(len(queue)), serve(len(queue) + 1)]
            work += 192
            while queue and queue[0] <= work:
                work -= queue.pop(0)
            longest = max(longest, len(queue))
        return longest

    budget = AdaptiveBudget(BudgetRange(64, 192), full_queue=16)
    assert longest_queue(budget.observe) <= 16
    assert longest_queue(lambda waiting: 192) >= 390


@pytest.mark.parametrize(
    "text", ["", "64", ":", "64:", ":192", "0:5", "5:5", "9:5", "-1:5", "a:b", "1:2:3", "1.5:2", "²:9"]
)
def test_only_floor_and_ceiling_make_a_range(text):
    with pytest.raises(ValueError, match="FLOOR:CEILING"):
        BudgetRange.parse(text)


def test_a_range_is_written_floor_first():
    assert BudgetRange.parse("64:192") == BudgetRange(floor=64, ceiling=192)


@pytest.mark.parametrize(
    ("excess", "served"),
    # A step is 3 ** (1/4) = 1.316 times fewer tokens, and so 3 ** (1/8) = 1.147 times of the load.
    [
        (0, 192),
        (0.99, 192),
        (1, 192),
        (1.01, 146),
        (1.14, 146),
        (1.16, 111),
        (1.33, 84),
        (1.5, 84),
        (1.52, 64),
        (9, 64),
    ],
)
def test_a_foreseen_load_takes_its_square_in_tokens_before_anybody_waits(excess, served):
    budget = AdaptiveBudget(BudgetRange(64, 192), full_queue=16, excess=lambda: excess)
    assert budget.observe(0) == served
    assert budget.observe(0) * min(max(excess, 1) ** 2, 3) <= 192.5


def test_the_queue_takes_a_foreseen_budget_further_and_never_lifts_it():
    budget = AdaptiveBudget(BudgetRange(64, 192), full_queue=16, excess=lambda: 1.2)
    assert [budget.observe(waiting) for waiting in (0, 4, 8, 12, 16, 0)] == [111, 111, 111, 84, 64, 111]


def test_a_queue_is_of_the_ceilings_making_only_while_nothing_is_foreseen():
    excess = 0.0
    budget = AdaptiveBudget(BudgetRange(64, 192), full_queue=16, excess=lambda: excess)
    assert [budget.crowded(waiting) for waiting in (0, 3, 4, 100)] == [False, False, True, True]
    excess = 1.1
    assert [budget.crowded(waiting) for waiting in (0, 4)] == [None, None]


def test_asking_whether_it_is_crowded_changes_no_budget(budget):
    budget.observe(4)
    budget.crowded(16)
    assert budget.observe(3) == LEVELS[1]
