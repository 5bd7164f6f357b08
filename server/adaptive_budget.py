"""A budget that gives way under load: vision tokens cost prefill, so a long queue is served with fewer of them."""

from dataclasses import dataclass
from typing import Self

LEVELS = 4
"""Steps from the ceiling down to the floor. Few, because caches hold selections by their budget."""


@dataclass(frozen=True)
class BudgetRange:
    """Vision tokens kept of each image: `ceiling` when nobody waits, never less than `floor`."""

    floor: int
    ceiling: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """FLOOR:CEILING, e.g. 64:192. Raises ValueError for anything else."""
        floor, _, ceiling = text.partition(":")
        if not (_is_count(floor) and _is_count(ceiling) and 0 < int(floor) < int(ceiling)):
            raise ValueError("should be FLOOR:CEILING with a floor of at least 1 below the ceiling, e.g. 64:192")
        return cls(int(floor), int(ceiling))


class AdaptiveBudget:
    """Turns the length of the queue into the budget of the next request.

    The queue is measured in steps: `full_queue` waiting requests are LEVELS steps, and each whole step takes the budget
    one level down, from the ceiling at level 0 to the floor at level LEVELS. Levels are spaced by equal ratios: 64:192
    serves 192, 146, 111, 84 or 64 tokens.

    Hysteresis is a play of one step, as in a loose screw: with q steps in the queue any level from floor(q) to ceil(q)
    is right, and the budget moves only when it lies outside, to the nearer end. It therefore falls as soon as the queue
    has grown by a step, stays while the queue wavers within that step, and recovers once the step is gone. An empty
    queue is always served the ceiling.

    The state is the current level alone; there is no clock in it, so observing twice is the same as observing once.
    """

    def __init__(self, budgets: BudgetRange, *, full_queue: int) -> None:
        ratio = budgets.floor / budgets.ceiling
        self.levels = tuple(round(budgets.ceiling * ratio ** (level / LEVELS)) for level in range(LEVELS + 1))
        self._full_queue = max(1, full_queue)
        self._level = 0

    def observe(self, waiting: int) -> int:
        """The budget of a request that finds `waiting` others in the queue."""
        whole, begun = divmod(min(waiting, self._full_queue) * LEVELS, self._full_queue)
        self._level = min(max(self._level, whole), whole + (begun > 0))
        return self.levels[self._level]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
